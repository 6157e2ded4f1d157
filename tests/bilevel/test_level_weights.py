"""Weights of noise levels: what they are, that they move no minimiser, and that they lessen the error."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from genbo.bilevel.lower.finetune import LEVEL_ROWS, Finetune
from genbo.bilevel.training.finetuning import Denoise, Pace, Training
from genbo.bilevel.training.level_weights import FLOOR, inverse, level_weights
from genbo.diffusion.adapt import Adapter, adapt
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.process import process_of
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.seed import Seed

SEED = Seed(5)


def gaussian(steps: int = 9, batch: int = 20_000):
    return process_of(Gaussian(means={"a": [0.0]}, std=0.7).open(), Ddim(steps=steps), Plain(weight=1.0), batch=batch)


def samples(n: int) -> torch.Tensor:
    return 0.7 * torch.randn(1, n, 1, 1, 1, generator=SEED.generator(), dtype=torch.float64)


def even(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(x.shape[:2], dtype=torch.float64)


def test_they_are_the_inverse_of_what_cannot_be_known():
    """For a Gaussian of variance v: var_t = alpha^2 v / (alpha^2 v + sigma^2)."""
    process, x = gaussian(), samples(4000)
    alpha_2 = process.grid.alpha_t[0].double() ** 2
    exact = inverse(alpha_2 * 0.49 / (alpha_2 * 0.49 + 1 - alpha_2))
    found = level_weights(process, ("a",), x, even(x), 4000, SEED)
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0)
    assert float(found.mean()) == pytest.approx(1) and float(found.max() / found.min()) > 20


def test_calls_of_any_size_give_the_same_and_so_does_another_time():
    x = samples(50)
    one, *others = (level_weights(gaussian(batch=size), ("a",), x, even(x), 16, SEED) for size in (20_000, 7, 1, 7))
    for other in others:
        torch.testing.assert_close(other, one)
    assert torch.equal(others[0], others[2])


def test_a_level_without_scatter_does_not_count_without_end():
    assert inverse(torch.zeros(3).double()).tolist() == [1, 1, 1]
    weights = inverse(torch.tensor([0.0, 1.0, 4.0]).double())
    assert float(weights[0] / weights[2]) == pytest.approx(1 / FLOOR) and float(weights.mean()) == pytest.approx(1)


def test_the_minimiser_is_the_same():
    """The tilt of N(0, 0.49) by exp(x) is N(0.49, 0.49), whatever each level counts."""
    x, process = samples(20_000), gaussian()
    levels = level_weights(process, ("a",), x, even(x), 64, SEED)
    for given in (None, levels):
        own = replace(process, model=adapt(process.model, Adapter("full"), SEED))
        loss = Denoise(("a",), x, x.reshape(1, -1), 20_000, SEED, base=process, levels=given)
        tuned = Training(own, loss, Pace(40, 1.0, newton=True)).run()
        assert float(tuned.model.weights["means"].detach()) == pytest.approx(0.49, abs=0.03)
        assert float(tuned.model.weights["log_std"].detach().exp()) == pytest.approx(0.7, abs=0.03)


def test_a_shared_number_has_less_error():
    """The shift of N(0, 0.49) at every level is one number: over draws the minimiser scatters less with the weights."""
    process, found = gaussian(20), {"even": [], "scatter": []}
    for k in range(30):
        x = 0.7 * torch.randn(1, 400, 1, 1, 1, generator=Seed(k).generator(), dtype=torch.float64)
        levels = level_weights(process, ("a",), x, even(x), LEVEL_ROWS, Seed(k))
        for name, given in (("even", None), ("scatter", levels)):
            own = replace(process, model=adapt(process.model, Adapter("full"), SEED))
            own.model.weights["log_std"].requires_grad_(False)
            loss = Denoise(("a",), x, 0 * x.reshape(1, -1), 400, Seed(k), levels=given)
            found[name].append(_best_shift(own, loss))
    spread = {name: torch.tensor(values).std().item() for name, values in found.items()}
    assert spread["scatter"] < 0.8 * spread["even"]


def _best_shift(process, loss: Denoise) -> float:
    """The mean at which a loss that is quadratic in it is least: by its gradient at two places."""
    means, slopes = process.model.weights["means"], []
    for at in (0.0, 1.0):
        with torch.no_grad():
            means.fill_(at)
        means.grad = None
        loss.backward(process, 0)
        slopes.append(float(means.grad))
    return -slopes[0] / (slopes[1] - slopes[0])


# -- of a network --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(tiny_sd):
    model = Diffusers(pretrained=str(tiny_sd), device="cpu").open()
    process = process_of(model, Dpmpp(steps=4), Plain(weight=2.0))
    return process, torch.randn(2, 3, *process.model.shape, generator=SEED.generator())


def test_a_networks_levels_count_by_default_and_are_asked_for_once(network):
    process, x = network
    given = process, ("a dog", "a cat"), x, torch.zeros(2, 3), SEED
    options = Finetune(rank=2, steps=2, batch=4)
    before = process.meter.as_dict()["image_forwards"]
    training = options.weighted(*given)
    assert process.meter.as_dict()["image_forwards"] - before == 4 * LEVEL_ROWS * 2  # both halves of the guidance
    levels = training.fixed["levels"]
    assert float(levels.mean()) == pytest.approx(1) and len(levels) == 4 and float(levels.std()) > 0
    assert training.loss.levels is levels
    middle = process.meter.as_dict()["image_forwards"]
    again = options.weighted(*given, state=training.state())
    assert process.meter.as_dict()["image_forwards"] == middle and torch.equal(again.fixed["levels"], levels)
    assert replace(options, levels="even").weighted(*given).loss.levels is None


def test_the_loss_of_a_row_counts_by_its_level(network):
    """With the weight of one level alone, nothing else has a gradient; and chunks make no difference."""
    process, x = network
    own = replace(process, model=adapt(process.model, Adapter("full"), SEED))
    logw = torch.randn(2, 3, generator=SEED.generator()).double()
    loss = Denoise(("a dog", "a cat"), x, logw, 8, SEED, base=process, hold=0.1)

    def gradient(levels, batch: int) -> torch.Tensor:
        for weight in own.model.weights.values():
            weight.grad = None
        replace(loss, levels=levels).backward(replace(own, batch=batch), 0)
        return torch.cat([w.grad.flatten() for w in own.model.weights.values()])

    parts = [gradient(torch.eye(4).double()[k], 8) for k in range(4)]
    some = torch.tensor([0.5, 2.0, 1.0, 0.25]).double()
    expected = sum(part * factor for part, factor in zip(parts, some.tolist(), strict=True))
    scale = float(expected.abs().max())
    torch.testing.assert_close(gradient(some, 8), expected, rtol=1e-3, atol=1e-5 * scale)
    torch.testing.assert_close(gradient(some, 3), expected, rtol=1e-3, atol=1e-5 * scale)
    assert math.isfinite(scale) and all(float(part.abs().max()) > 0 for part in parts)
