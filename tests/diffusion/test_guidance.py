"""Guidance rules against diffusers' own, and the unconditional half left out where the weight is 1."""

from __future__ import annotations

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from genbo.diffusion.guidance.apg import Apg
from genbo.diffusion.guidance.interval import Interval
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.guidance.rescaled import Rescaled
from genbo.diffusion.models.mixture import Mixture
from genbo.diffusion.prediction import Prediction
from genbo.diffusion.process import Process, effective_weights, process_of
from genbo.diffusion.sample import _guided_rows, sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Batch

SHAPE = (2, 4, 8, 8)
ALPHA, SIGMA = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64)


def normal(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prediction(kind: str) -> Prediction:
    return Prediction(kind, normal(7), ALPHA, SIGMA)


def combined(rule, cond: Tensor, uncond: Tensor, kind: str = "sample", state: Tensor | None = None):
    numbers = {name: torch.full((2, 1, 1, 1), float(value), dtype=torch.float64) for name, value in vars(rule).items()}
    return rule.combine(cond, uncond, numbers, prediction(kind), state)


def plain(weight: float, cond: Tensor, uncond: Tensor) -> Tensor:
    return uncond + weight * (cond - uncond)


# -- rescaled --------------------------------------------------------------


@pytest.mark.parametrize("rescale", [0.0, 0.3, 1.0])
def test_rescaled_is_diffusers(rescale):
    cond, uncond = normal(0), normal(1)
    found, _ = combined(Rescaled(weight=6.0, rescale=rescale), cond, uncond)
    expected = rescale_noise_cfg(plain(6.0, cond, uncond), cond, guidance_rescale=rescale)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# -- adaptive projected --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sample", "epsilon", "v_prediction", "flow_prediction"])
def test_apg_without_its_three_numbers_is_plain(kind):
    cond, uncond = normal(0), normal(1)
    found, _ = combined(Apg(weight=6.0, eta=1.0, norm_threshold=0.0, momentum=0.0), cond, uncond, kind)
    torch.testing.assert_close(found, plain(6.0, cond, uncond), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("norm_threshold", [0.0, 5.0, 1e6])
@pytest.mark.parametrize("momentum", [0.0, -0.5])
def test_apg_is_diffusers_on_predictions_of_x_0(eta, norm_threshold, momentum):
    """diffusers' original formulation is cond + scale d: its scale is our weight - 1. Three steps of it."""
    rule = Apg(weight=6.0, eta=eta, norm_threshold=norm_threshold, momentum=momentum)
    buffer, state = MomentumBuffer(momentum), None
    for i in range(3):
        cond, uncond = normal(2 * i), normal(2 * i + 1)
        found, state = combined(rule, cond, uncond, "sample", state)
        expected = normalized_guidance(cond, uncond, 5.0, buffer, eta, norm_threshold, use_original_formulation=True)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("norm_threshold", [0.0, 5.0])
def test_apg_of_epsilon_works_on_x_0(norm_threshold):
    """x_0 = (x_t - sigma eps) / alpha, so differences of x_0 are those of eps times -sigma / alpha, and norms
    sigma / alpha: with eta = 1 (no projection) a threshold of x_0 is one of eps times sigma / alpha. With a
    projection the two spaces differ, and the paper's Algorithm 1 works on x_0."""
    cond, uncond = normal(0), normal(1)
    ratio = float(SIGMA / ALPHA)
    rule = Apg(weight=6.0, eta=1.0, norm_threshold=norm_threshold * ratio, momentum=0.0)
    found, _ = combined(rule, cond, uncond, "epsilon")
    expected = normalized_guidance(cond, uncond, 5.0, None, 1.0, norm_threshold, use_original_formulation=True)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)

    sideways = Apg(weight=6.0, eta=0.0, norm_threshold=norm_threshold * ratio, momentum=0.0)
    found, _ = combined(sideways, cond, uncond, "epsilon")
    predict = prediction("epsilon")
    x_0 = normalized_guidance(
        predict.x_0(cond),
        predict.x_0(uncond),
        5.0,
        None,
        0.0,
        norm_threshold * ratio,
        use_original_formulation=True,
    )
    torch.testing.assert_close(predict.x_0(found), x_0, rtol=1e-10, atol=1e-10)


def test_apg_with_eta_0_moves_across_cond_alone():
    cond, uncond = normal(0), normal(1)
    found, _ = combined(Apg(weight=6.0, eta=0.0, norm_threshold=0.0, momentum=0.0), cond, uncond)
    along = ((found - cond) * cond).sum((1, 2, 3))
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-9)


# -- interval --------------------------------------------------------------


def effective(weight: float, start: float | Tensor, stop: float | Tensor, steps: int = 10) -> Tensor:
    numbers = {"weight": weight, "start": start, "stop": stop}
    table = {n: torch.as_tensor(v, dtype=torch.float64).reshape(1, 1).expand(1, steps) for n, v in numbers.items()}
    return effective_weights(Interval(), table)[0]


@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (0.2, 0.8), (0.25, 0.61), (0.31, 0.38), (0.9, 1.0)])
def test_the_interval_gives_guidance_in_proportion_to_its_length(start, stop):
    total = (effective(6.0, start, stop) - 1).sum() / 5.0
    torch.testing.assert_close(total, torch.tensor(10 * (stop - start), dtype=torch.float64))


def test_inside_the_interval_is_plain_and_outside_is_conditional():
    assert effective(6.0, 0.2, 0.8).tolist() == pytest.approx([1, 1, 6, 6, 6, 6, 6, 6, 1, 1], abs=1e-12)
    assert effective(6.0, 0.25, 0.5).tolist() == pytest.approx([1, 1, 3.5, 6, 6, 1, 1, 1, 1, 1], abs=1e-12)
    assert effective(6.0, 0.7, 0.3).tolist() == [1] * 10


def test_outside_the_interval_no_step_pays_for_the_unconditional_half():
    """Ends between two steps cost no step more than the interval covers, whatever the rounding."""
    for steps in range(2, 60):
        for start, stop in ((0.2, 0.8), (0.25, 0.5), (1 / 3, 2 / 3)):
            paid = _guided_rows(effective(6.0, start, stop, steps)[None])[0]
            covered = [(i + 1) / steps > start + 1e-9 and i / steps < stop - 1e-9 for i in range(steps)]
            assert paid.tolist() == covered


def mixture(rule, steps: int = 10, batch: int = 64) -> Process:
    return process_of(Mixture().open(), Ddim(steps=steps), rule, batch=batch)


PROMPTS, SEEDS = ("east", "north", "south"), (5, 6, 7)


def test_the_whole_interval_is_plain_guidance():
    whole, bare = (sample(mixture(rule), Batch(PROMPTS, SEEDS)) for rule in (Interval(6.0, 0.0, 1.0), Plain(6.0)))
    torch.testing.assert_close(whole, bare, rtol=0, atol=1e-12)


@pytest.mark.parametrize("option", ["start", "stop", "weight"])
def test_the_ends_of_the_interval_have_derivatives(option):
    process = mixture(Interval(6.0, start=0.13, stop=0.47))

    def far(value: Tensor) -> Tensor:
        moved = process.with_option(option, value.reshape(1, 1).expand(1, 10))
        return sample(moved, Batch(PROMPTS, SEEDS)).square().sum()

    at, h = process.options[option][0, 0].clone().requires_grad_(), 1e-5
    (grad,) = torch.autograd.grad(far(at), at)
    with torch.no_grad():
        difference = (far(at + h) - far(at - h)) / (2 * h)
    assert grad.abs() > 1e-3
    torch.testing.assert_close(grad, difference, rtol=1e-6, atol=1e-8)


# -- the half that is left out --------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", [Plain(), Rescaled(), Apg(momentum=0.0), Apg(), Interval(start=0.0, stop=1.0)], ids=repr
)
def test_rows_of_weight_1_cost_one_row_and_change_nothing(rule):
    """Three members whose schedules touch 1 at different steps, together and each by itself."""
    schedules = torch.tensor([[5.0, 1, 5, 5], [1, 1, 1, 1], [5, 5, 1, 1]], dtype=torch.float64)
    process, batch = mixture(rule, steps=4), Batch(PROMPTS, SEEDS)
    process.meter.image_forwards = process.meter.denoiser_calls = 0
    together = sample(process.with_option("weight", schedules), batch).unflatten(0, (3, 3))
    guided_rows = int((schedules != 1).sum()) * 3
    assert process.meter.image_forwards == 3 * 3 * 4 + guided_rows
    assert process.meter.denoiser_calls == 4
    for member, schedule in enumerate(schedules):
        alone = sample(process.with_option("weight", schedule[None]), batch)
        torch.testing.assert_close(together[member], alone, rtol=0, atol=1e-12)


def test_weight_1_throughout_never_asks_for_the_unconditional_half(monkeypatch):
    process = mixture(Plain(weight=1.0))
    monkeypatch.setattr(process.model, "unconditional", lambda: pytest.fail("it was asked for"))
    samples = sample(process, Batch(PROMPTS, SEEDS))
    assert process.meter.image_forwards == 10 * 3 and samples.isfinite().all()


def test_a_derivative_at_weight_1_is_not_left_out():
    """The value does not need the other half there; its derivative does."""
    process = mixture(Plain())

    def far(weight: Tensor) -> Tensor:
        return sample(process.with_option("weight", weight.expand(1, 10)), Batch(PROMPTS, SEEDS)).square().sum()

    one = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(far(one), one)
    with torch.no_grad():
        difference = (far(one + 1e-5) - far(one - 1e-5)) / 2e-5
    torch.testing.assert_close(grad, difference.reshape(1, 1), rtol=1e-6, atol=1e-8)


def test_paired_rows_take_their_own_weight():
    process = mixture(Plain(), steps=4)
    weights = torch.tensor([[1.0], [3.0], [6.0]], dtype=torch.float64).expand(3, 4)
    paired = sample(process.with_option("weight", weights), Batch(PROMPTS, SEEDS), paired=True)
    every = sample(process.with_option("weight", weights), Batch(PROMPTS, SEEDS)).unflatten(0, (3, 3))
    torch.testing.assert_close(paired, every[range(3), range(3)], rtol=0, atol=1e-12)
