"""What every sampler promises of one step: exact where the prediction is exact, linear, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from genbo.diffusion import scheduler_settings
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.process import Step, process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.seed import Seed, batch_of
from genbo.diffusion.tuned import export, load

ROWS = 3
LEVELS = [0.999, 0.9, 0.6, 0.25, 0.0]  # sigma, noisiest first
ONE = torch.ones(ROWS, 1, 1, 1, dtype=torch.float64)


def normal(seed: int) -> Tensor:
    return torch.randn(ROWS, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def variants(cls: type[Any], **given: Any) -> Iterator[Any]:
    """The defaults, and each of `eta`'s values where there is one; with the options that are given."""
    yield cls(**given)
    if "eta" in {f.name for f in fields(cls)}:
        yield from (cls(**given, eta=eta) for eta in (0.5, 1.0))


def step_at(index: int) -> Step:
    sigma_t, sigma_s = LEVELS[index] * ONE, LEVELS[index + 1] * ONE
    alpha_t, alpha_s = (1 - sigma_t**2).sqrt(), (1 - sigma_s**2).sqrt()
    return Step(index, index == len(LEVELS) - 2, alpha_t, sigma_t, alpha_s, sigma_s)


def walk(sampler: Any, first: int, states: list[tuple[Tensor, Tensor, Tensor]], noise: Tensor | None) -> Tensor:
    """Steps from level `first` on given (x_t, x_0, eps), with the memory handed on; the last x_s."""
    memory: tuple[Any, ...] = ()
    for i, (x_t, x_0, eps) in enumerate(states):
        x_s, memory = sampler.step(step_at(first + i), x_t, x_0, eps, memory, noise)
    return x_s


def test_with_a_perfect_x_0_the_last_step_ends_on_it(sampler_class):
    at = replace(step_at(3), alpha_s=0.97 * ONE)  # a model's last level need not be free of scale
    x_0, eps = normal(0), normal(1)
    for sampler in variants(sampler_class):
        noise = normal(2) if sampler.stochastic else None
        x_s, _ = sampler.step(at, at.alpha_t * x_0 + at.sigma_t * eps, x_0, eps, (), noise)
        torch.testing.assert_close(x_s, 0.97 * x_0, atol=1e-12, rtol=1e-12)


def test_a_point_is_carried_exactly_from_level_to_level(sampler_class):
    """Where x_0 never changes, alpha x_0 + sigma eps is the path, and a sampler without noise stays on it."""
    x_0, eps = normal(0), normal(1)
    for sampler in variants(sampler_class):
        if sampler.stochastic:
            continue
        memory: tuple[Any, ...] = ()
        x = LEVELS[0] * eps + (1 - LEVELS[0] ** 2) ** 0.5 * x_0
        for i in range(len(LEVELS) - 1):
            at = step_at(i)
            x, memory = sampler.step(at, x, x_0, eps, memory, None)
            torch.testing.assert_close(x, at.alpha_s * x_0 + at.sigma_s * eps, atol=1e-12, rtol=1e-12)


def test_fresh_noise_takes_the_place_of_as_much_old(sampler_class):
    zero, at = 0 * normal(0), step_at(1)
    for sampler in variants(sampler_class):
        if not sampler.stochastic:
            continue
        kept, _ = sampler.step(at, at.sigma_t * ONE + zero, zero, ONE + zero, (), zero)
        fresh, _ = sampler.step(at, zero, zero, zero, (), ONE + zero)
        torch.testing.assert_close(kept**2 + fresh**2, (at.sigma_s**2).expand_as(kept))
        assert (fresh > 0.05).all()


def test_a_step_is_linear(sampler_class):
    for sampler in variants(sampler_class):
        noise = normal(9) if sampler.stochastic else None
        states = [(normal(3 * i), normal(3 * i + 1), normal(3 * i + 2)) for i in range(2)]
        scaled = [(3 * x, 3 * x_0, 3 * eps) for x, x_0, eps in states]
        once = walk(sampler, 1, states, noise)
        thrice = walk(sampler, 1, scaled, 3 * noise if noise is not None else None)
        torch.testing.assert_close(thrice, 3 * once, atol=1e-12, rtol=1e-12)


def test_rows_are_by_themselves(sampler_class):
    for sampler in variants(sampler_class):
        noise = normal(9) if sampler.stochastic else None
        states = [(normal(3 * i), normal(3 * i + 1), normal(3 * i + 2)) for i in range(3)]
        other = [tuple(torch.cat([x[:1], -x[1:]]) for x in state) for state in states]
        before, after = (walk(sampler, 0, s, noise) for s in (states, other))
        torch.testing.assert_close(before[0], after[0], atol=1e-12, rtol=1e-12)
        assert not torch.allclose(before[1], after[1])


def test_gradients_are_finite_down_to_no_noise_at_all(sampler_class):
    """In x_t and the prediction, at the last step, where 0 / 0 lurks under square roots and logarithms."""
    for sampler in variants(sampler_class):
        noise = normal(9) if sampler.stochastic else None
        live = [normal(i).requires_grad_() for i in range(3)]
        memory: tuple[Any, ...] = ()
        x, x_0, eps = live
        for i in (2, 3):
            x, memory = sampler.step(step_at(i), x, x_0, eps, memory, noise)
        for grad in torch.autograd.grad(x.sum(), live, allow_unused=True):
            assert grad is None or grad.isfinite().all()


def test_gradients_go_through_the_memory(sampler_class):
    """Of the end of three steps in everything that each of them was given, against central differences."""
    for sampler in variants(sampler_class):
        noise = normal(9) if sampler.stochastic else None
        direction = normal(10)

        def along(*given: Tensor, sampler: Any = sampler, noise: Any = noise, direction: Tensor = direction) -> Tensor:
            return (walk(sampler, 0, list(zip(*[iter(given)] * 3, strict=True)), noise) * direction).sum()

        live = [normal(i).requires_grad_() for i in range(9)]
        assert torch.autograd.gradcheck(along, live, eps=1e-6, atol=1e-5, rtol=1e-4)


def test_levels_have_finite_gradients_down_to_no_noise_at_all(sampler_class):
    for sampler in variants(sampler_class):
        noise = normal(9) if sampler.stochastic else None
        names = ("alpha_t", "sigma_t", "alpha_s", "sigma_s")
        live = {name: getattr(step_at(3), name).clone().requires_grad_() for name in names}
        x_s, _ = sampler.step(replace(step_at(3), **live), normal(0), normal(1), normal(2), (), noise)
        for grad in torch.autograd.grad(x_s.sum(), list(live.values()), allow_unused=True):
            assert grad is None or grad.isfinite().all()


# -- what it declares, and a pipeline ----------------------------------------------------------------------------------


def test_what_it_declares_is_there(sampler_class):
    traits, options = sampler_class.traits, {f.name for f in fields(sampler_class)}
    assert traits.levels_of is None or traits.levels_of in scheduler_settings.CLASSES
    assert not traits.in_diffusers or traits.levels_of is not None
    assert {*traits.call_options, *traits.settings} <= options
    for sampler in variants(sampler_class):
        assert isinstance(sampler.stochastic, bool)
        assert set(traits.call(sampler)) == set(traits.call_options)


def test_it_draws_from_a_pipeline_and_again_from_its_tuned_folder(sampler_class, tiny_sd, tmp_path):
    """Four steps at the levels that it declares; what `genbo.load` makes of the folder draws the same samples."""
    if sampler_class.traits.levels_of is None:
        pytest.skip("takes no levels from a scheduler")
    model = Diffusers(pretrained=str(tiny_sd), device="cpu", dtype="fp32").open()
    for k, sampler in enumerate(variants(sampler_class, steps=4)):
        process = process_of(model, sampler, Plain(weight=3.0))
        with torch.no_grad():
            drawn = sample(process, batch_of(("a red apple", "a dog"), 2, Seed(0)))
        assert drawn.shape == (2, *model.shape) and drawn.isfinite().all()
        assert not torch.allclose(drawn[0], drawn[1])
        export(process, tmp_path / f"tuned-{k}", {})
        again = load(tmp_path / f"tuned-{k}", device="cpu", dtype="fp32").process
        assert again.sampler == sampler
        with torch.no_grad():
            torch.testing.assert_close(sample(again, batch_of(("a red apple", "a dog"), 2, Seed(0))), drawn)
