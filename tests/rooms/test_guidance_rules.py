"""What every guidance rule promises: cond at weight 1, rows by themselves, derivatives in every number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.prediction import Prediction
from genbo.diffusion.process import effective_weights, process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Seed, batch_of
from genbo.diffusion.tuned import export, load

STEPS, ROWS, SHAPE = 4, 3, (3, 8, 8)
AXES = (-1, 1, 1, 1)
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tables(rule) -> dict[str, Tensor]:
    """Every numeric option as the process holds it, (1, T)."""
    return dict(process_of(Gaussian().open(), Ddim(steps=STEPS), rule).options)


def guided(rule, options: dict[str, Tensor], kind: str = "epsilon", rows: slice = slice(None)) -> Tensor:
    """The rule over STEPS steps for options (M, T): outputs (T, B, *shape). M is 1 or a row each."""
    weights = effective_weights(rule, options)
    state, outputs = None, []
    for i in range(STEPS):
        cond, uncond, x_t = (2 * normal(ROWS, *SHAPE, seed=10 * i + k)[rows] for k in range(3))
        level = torch.tensor(0.9 - 0.2 * i, dtype=torch.float64)
        predict = Prediction(kind, x_t, (1 - level**2).sqrt(), level)
        here = {name: value[:, i].reshape(AXES) for name, value in {**options, "weight": weights}.items()}
        output, state = rule.combine(cond, uncond, here, predict, state)
        outputs.append(output)
    return torch.stack(outputs)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_weight_1_is_the_conditional_model(rule_class, kind):
    options = tables(rule_class())
    options["weight"] = torch.ones_like(options["weight"])
    assert torch.equal(effective_weights(rule_class(), options), options["weight"])
    cond = torch.stack([2 * normal(ROWS, *SHAPE, seed=10 * i) for i in range(STEPS)])
    torch.testing.assert_close(guided(rule_class(), options, kind), cond, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_another_weight_is_another_model(rule_class, kind):
    options = tables(rule_class())
    cond = torch.stack([2 * normal(ROWS, *SHAPE, seed=10 * i) for i in range(STEPS)])
    assert (guided(rule_class(), options, kind) - cond).abs().mean() > 0.1


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_rows_are_by_themselves(rule_class, kind):
    """Each row under options of its own, together and alone."""
    factor = torch.tensor([0.8, 1.0, 1.2], dtype=torch.float64)[:, None]
    options = {name: value * factor for name, value in tables(rule_class()).items()}
    together = guided(rule_class(), options, kind)
    for row in range(ROWS):
        own = {name: value[row : row + 1] for name, value in options.items()}
        alone = guided(rule_class(), own, kind, slice(row, row + 1))
        torch.testing.assert_close(together[:, row], alone[:, 0], atol=1e-12, rtol=1e-12)


def test_members_may_differ_in_one_option_alone(rule_class):
    for name, value in tables(rule_class()).items():
        members = torch.cat([value, 0.9 * value, 1.1 * value])
        options = {**tables(rule_class()), name: members}
        for row in range(ROWS):
            own = {**options, name: members[row : row + 1]}
            alone = guided(rule_class(), own, rows=slice(row, row + 1))
            torch.testing.assert_close(guided(rule_class(), options)[:, row], alone[:, 0], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", ["epsilon", "sample"])
def test_every_number_has_a_derivative(rule_class, kind):
    """Of all outputs of a run, in each option's value at each step, against central differences."""
    options = tables(rule_class())
    direction = normal(STEPS, ROWS, *SHAPE, seed=99)

    def along(*values: Tensor) -> Tensor:
        return (guided(rule_class(), dict(zip(options, values, strict=True)), kind) * direction).sum()

    values = [value.clone().requires_grad_() for value in options.values()]
    assert torch.autograd.gradcheck(along, values, eps=1e-6, atol=1e-5, rtol=1e-4)
    for name, grad in zip(options, torch.autograd.grad(along(*values), values), strict=True):
        assert grad.any(), f"{name} does nothing"


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_both_predictions_have_derivatives(rule_class, kind):
    """The gradient of a run goes through them from step to step: nothing on the way may be held fixed."""
    shape = (2, 2, 3, 3)
    one, two, x_t, state = (4 * normal(*shape, seed=n) for n in range(4))
    here = {name: value[:, :1].reshape(AXES) for name, value in tables(rule_class()).items()}
    weights = normal(*shape, seed=9)

    def along(cond: Tensor, uncond: Tensor, x_t: Tensor, state: Tensor) -> Tensor:
        predict = Prediction(kind, x_t, torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64))
        kept = state if rule_class.traits.keeps_state else None
        output, kept = rule_class().combine(cond, uncond, here, predict, kept)
        return (output * weights).sum() + (0 if kept is None else (kept * weights).sum())

    live = [tensor.requires_grad_() for tensor in (one, two, x_t, state)]
    assert torch.autograd.gradcheck(along, live, eps=1e-6, atol=1e-5, rtol=1e-4)


def test_the_plan_sees_the_weights_of_the_run(rule_class):
    rule, steps = rule_class(), 30
    for n in range(20):
        numbers = {name: value * (0.5 + 0.05 * n) for name, value in vars(rule).items()}
        table = {k: torch.full((1, steps), v, dtype=torch.float64) for k, v in numbers.items()}
        planned = [rule.effective_weight(numbers, i, steps) for i in range(steps)]
        assert planned == pytest.approx(effective_weights(rule, table)[0].tolist(), abs=1e-10)


def test_one_step_is_enough(rule_class):
    """A share of the way that divides by `steps - 1` has none."""
    options = {name: value[:, :1] for name, value in tables(rule_class()).items()}
    assert effective_weights(rule_class(), options).isfinite().all()


def test_state_is_kept_for_momentum_alone(rule_class):
    rule = rule_class()
    one = torch.ones(1, *SHAPE, dtype=torch.float64)
    predict = Prediction("epsilon", one, one * 0.6, one * 0.8)
    here = {name: value[:, :1].reshape(AXES) for name, value in tables(rule).items()}
    _, state = rule.combine(one, 0 * one, here, predict, None)
    assert (state is not None) == rule.traits.keeps_state


def test_precision_is_the_networks(rule_class):
    one = normal(1, *SHAPE, seed=0).float()
    predict = Prediction("epsilon", one, one.new_tensor(0.6), one.new_tensor(0.8))
    here = {name: value[:, :1].reshape(AXES).float() for name, value in tables(rule_class()).items()}
    output, _ = rule_class().combine(one, -one, here, predict, None)
    assert output.dtype == torch.float32 and output.shape == one.shape


def test_two_equal_predictions_are_left_alone_and_do_not_divide_by_zero(rule_class):
    one = normal(1, *SHAPE, seed=0).requires_grad_()
    predict = Prediction("epsilon", one.detach(), torch.tensor(0.6), torch.tensor(0.8))
    here = {name: value[:, :1].reshape(AXES) for name, value in tables(rule_class()).items()}
    output, _ = rule_class().combine(one, one.detach(), here, predict, None)
    torch.testing.assert_close(output, one)
    assert torch.autograd.grad(output.sum(), one)[0].isfinite().all()


# -- what it declares, and a pipeline ----------------------------------------------------------------------------------


def test_what_switches_it_is_declared(rule_class):
    """The plan counts network passes by `switches`: the options beside `weight` that move the weight in effect."""
    options = tables(rule_class())
    before = effective_weights(rule_class(), options)

    def moves(name: str, factor: float) -> bool:
        return not torch.equal(effective_weights(rule_class(), {**options, name: factor * options[name]}), before)

    moved = {name for name in options if moves(name, 0.5) or moves(name, 0.9)}
    assert moved - {"weight"} == set(rule_class.traits.switches)


def test_it_draws_from_a_pipeline_and_again_from_its_tuned_folder(rule_class, tiny_sd, tmp_path):
    """With another weight at each step, as tuning leaves it: `genbo.load` of the folder draws the same samples."""
    model = Diffusers(pretrained=str(tiny_sd), device="cpu", dtype="fp32").open()
    process = process_of(model, Ddim(steps=STEPS), rule_class(weight=[3.0, 2.0, 4.0, 1.5]))
    batch = batch_of(("a red apple", "a dog"), 2, Seed(0))
    with torch.no_grad():
        drawn = sample(process, batch)
    assert drawn.shape == (2, *model.shape) and drawn.isfinite().all()
    export(process, tmp_path / "tuned", {})
    again = load(tmp_path / "tuned", device="cpu", dtype="fp32").process
    assert again.rule == process.rule
    assert all(torch.equal(again.options[name], value) for name, value in process.options.items())
    with torch.no_grad():
        torch.testing.assert_close(sample(again, batch), drawn)
