"""Steering by a target and by tangents: where they are known, what they cost, and the derivative in their strength."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.models.mixture import Mixture
from genbo.diffusion.path_kl import sample_with_kl
from genbo.diffusion.process import Process, image_cost, process_of
from genbo.diffusion.room import NoRoom
from genbo.diffusion.sample import Rows, sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.samplers.euler import Euler
from genbo.diffusion.seed import Batch
from genbo.diffusion.steer import Climbed, SteeringRule
from genbo.diffusion.steering.target import Target
from genbo.diffusion.steering.tilt import Tilt
from genbo.rewards.linear import Linear
from genbo.rewards.quadratic import Quadratic

SAMPLERS = [Ddim(15), Ddim(15, 1.0), Euler(15), Dpmpp(15)]
RULES = [Tilt(None), Tilt(0.2), Target(0.7, most=None), Target(0.7, variance=False), Target(0.7, passes=2, most=None)]
BATCH = Batch(("a", "b", "a", "b"), (1, 2, 3, 4))
M, STD = 0.5, 0.8


def gaussian(mean: float = M, std: float = STD, sampler=SAMPLERS[0]) -> Process:
    return process_of(Gaussian({"a": [mean], "b": [mean]}, std).open(), sampler, Plain(1.0))


def mixed(sampler=SAMPLERS[0]) -> Process:
    world = Mixture([[-1.0, 0.5], [1.0, 0.0], [0.3, 1.5]], ["a", "b", "b"], [0.4, 0.3, 0.3], std=0.4)
    return process_of(world.open(), sampler, Plain(2.0))


def curved(images: Tensor, prompts) -> Tensor:
    return torch.sin(images.flatten(1)).sum(1) + images.flatten(1).prod(1)


def by(process: Process, score, strength, rule: SteeringRule) -> Process:
    return process.steered([Climbed(1.0, score)], strength, rule)


def drawn(process: Process, batch: Batch = BATCH) -> Tensor:
    with torch.no_grad():
        return sample(process, batch)


def conditional(slope: float, offset: float, target: float, strength: float) -> tuple[float, float]:
    """Mean and standard deviation of N(M, STD^2) exp(-strength (target - offset - slope x)^2 / 2)."""
    precision = 1 / STD**2 + strength * slope**2
    return (M / STD**2 + strength * slope * (target - offset)) / precision, precision**-0.5


# -- where it is known -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("passes", [0, 1, 3])
def test_a_target_for_a_linear_reward_on_a_gaussian_is_the_conditional_law(sampler, passes):
    """Sample by sample what that law's own world draws; a linear reward is its own tangent."""
    mean, std = conditional(1.7, 0.0, 2.0, 3.0)
    steered = by(gaussian(sampler=sampler), Linear(1.7).open(), 3.0, Target(2.0, passes, most=None))
    torch.testing.assert_close(drawn(steered), drawn(gaussian(mean, std, sampler)), atol=1e-9, rtol=1e-9)


def test_across_a_linear_reward_nothing_is_moved():
    """In two dimensions, and along the reward as in one."""
    process = process_of(Gaussian({"a": [M, M]}, STD).open(), Ddim(15), Plain(1.0))
    batch = Batch(("a",) * 4, (1, 2, 3, 4))
    rule = Target(2.0, most=None)
    plain, steered = drawn(process, batch), drawn(by(process, Linear([1.7, 0.0]).open(), 3.0, rule), batch)
    torch.testing.assert_close(steered[:, 1], plain[:, 1], atol=1e-12, rtol=1e-12)
    mean, std = conditional(1.7, 0.0, 2.0, 3.0)
    world = process_of(Gaussian({"a": [mean, M]}, std).open(), Ddim(15), Plain(1.0))
    torch.testing.assert_close(steered[:, 0], drawn(world, batch)[:, 0], atol=1e-9, rtol=1e-9)


def test_a_pass_steers_by_the_tangent_at_the_last_ones_sample():
    """-q (x - c)^2, twice linearised: each sample is drawn by the law that its own tangent has."""
    q, c, target, strength = 0.6, 1.4, -0.1, 2.0
    found = drawn(by(gaussian(), Quadratic(c, q).open(), strength, Target(target, 2, most=None)))
    x = drawn(gaussian()).flatten().tolist()
    for _ in range(2):
        slopes = [-2 * q * (one - c) for one in x]
        laws = [
            conditional(slope, -q * (one - c) ** 2 - slope * one, target, strength)
            for one, slope in zip(x, slopes, strict=True)
        ]
        x = [drawn(gaussian(*law)).flatten()[k].item() for k, law in enumerate(laws)]
    assert found.flatten().tolist() == pytest.approx(x, abs=1e-9)


def test_a_constant_weight_pulls_harder_than_the_law_has_it():
    """The reward of x_0 is not known at x_t, which the law reckons with."""
    loose = by(gaussian(), Linear(1.7).open(), 3.0, Target(2.0, variance=False, most=None))
    exact = gaussian(*conditional(1.7, 0.0, 2.0, 3.0))
    far, off = ((1.7 * drawn(p).flatten() - 2.0).square().mean() for p in (loose, exact))
    assert far < 0.9 * off


@dataclass(frozen=True)
class Looking(Target):
    """A target that keeps what it is given."""

    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def pull(self, reward: Tensor, variance: Tensor, strength: Tensor) -> Tensor:
        self.seen.append((reward, variance))
        return super().pull(reward, variance, strength)


def test_the_variance_is_that_of_the_reward_given_x_t_in_a_mixture_too():
    """Tweedie's second formula, against the mixture's own posterior: weights, means and one spread."""
    points, weights, std, b = [[-1.0], [1.0], [2.5]], [0.5, 0.3, 0.2], 0.4, 1.3
    process = process_of(Mixture(points, ["a"] * 3, weights, std=std).open(), Ddim(6), Plain(1.0))
    rule, batch = Looking(1.0, most=None), Batch(("a",) * 3, (1, 2, 3))
    rows = Rows(by(process, Linear(b).open(), 0.5, rule), batch)
    x_t = rows.first()
    with torch.no_grad():
        rows.denoise(0, x_t, None)
        rows.denoise(3, 0.3 * x_t, None)
    for i, x, (reward, variance) in zip((0, 3), (x_t, 0.3 * x_t), rule.seen, strict=True):
        a, s = (process.grid.alpha_t[0, i].item(), process.grid.sigma_t[0, i].item())
        mu, w = torch.tensor(points, dtype=torch.float64).T, torch.tensor(weights, dtype=torch.float64)
        spread = a**2 * std**2 + s**2
        share = (w.log() - (x.flatten()[:, None] - a * mu) ** 2 / (2 * spread)).softmax(1)  # (B, 3)
        each = mu + a * std**2 / spread * (x.flatten()[:, None] - a * mu)
        mean = (share * each).sum(1)
        var = (share * each**2).sum(1) - mean**2 + std**2 * s**2 / spread
        torch.testing.assert_close(reward, b * mean)
        torch.testing.assert_close(variance, b**2 * var)


def test_in_a_mixture_the_reward_is_drawn_to_the_target_from_either_side():
    """As the conditional law has it, p0 exp(-strength (y - r)^2 / 2), by its weights over samples of p0."""
    batch = Batch(("b",) * 1500, tuple(range(1500)))
    world = Mixture([[-1.0], [1.0]], ["b", "b"], [0.5, 0.5], std=0.5)
    process = process_of(world.open(), Ddim(40, 1.0), Plain(1.0))
    plain = drawn(process, batch).flatten()
    for target in (-0.6, 0.4):
        w = (-4.0 * (target - plain) ** 2 / 2).softmax(0)
        exact = (w * plain).sum().item()
        found = drawn(by(process, Linear(1.0).open(), 4.0, Target(target, most=None)), batch).flatten()
        assert abs(plain.mean().item() - exact) > 0.2
        assert found.mean().item() == pytest.approx(exact, abs=0.12)
        assert (found - target).square().mean() < 0.5 * (plain - target).square().mean()


# -- what it never does ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("sampler", SAMPLERS[:2], ids=repr)
def test_a_sample_does_not_know_its_neighbours(sampler, rule):
    process = by(mixed(sampler), curved, 0.8, rule)
    together = drawn(process)
    for i in range(len(BATCH)):
        alone = drawn(process, BATCH.part(slice(i, i + 1)))
        torch.testing.assert_close(alone[0], together[i], atol=1e-9, rtol=1e-9)
    halves = torch.cat([drawn(process, BATCH.part(slice(0, 3))), drawn(process, BATCH.part(slice(3, 4)))])
    torch.testing.assert_close(halves, together, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_members_have_strengths_of_their_own_a_value_a_step(rule):
    process = by(mixed(), curved, 1.0, rule)
    strengths = torch.linspace(0.0, 1.5, 45, dtype=torch.float64).reshape(3, 15)
    many = process.with_strength(strengths)
    assert many.members == 3
    together = drawn(many).unflatten(0, (3, 4))
    for m in range(3):
        torch.testing.assert_close(drawn(process.with_strength(strengths[m : m + 1])), together[m])
    assert (together[0] - together[2]).abs().max() > 0.01


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_strength_0_steers_nothing(rule):
    torch.testing.assert_close(drawn(by(mixed(), curved, 0.0, rule)), drawn(mixed()), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_strength_has_a_derivative_at_every_step(rule, checkpoint):
    """Against central differences of the same samples, through every later step and pass."""
    process = by(mixed(Ddim(5, 0.5)), curved, 1.0, rule)
    along = torch.tensor([[0.3, -0.5, 1.0, 0.2, -0.7]], dtype=torch.float64)
    live = torch.full((1, 5), 0.6, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(
        sample(process.with_strength(live), BATCH, checkpoint=checkpoint).square().sum(), live
    )
    up, down = (drawn(process.with_strength(live.detach() + h * along)).square().sum() for h in (1e-5, -1e-5))
    assert (grad * along).sum().item() == pytest.approx(((up - down) / 2e-5).item(), rel=1e-5)


def test_whoever_draws_along_the_path_has_the_same_samples_bit_for_bit():
    base = mixed(Ddim(15, 1.0))
    steered = by(base, curved, 0.8, Target(0.7))
    with torch.no_grad():
        x, _ = sample_with_kl(steered, base, BATCH)
    assert torch.equal(x, drawn(steered))


# -- what it costs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [0, 1, 3])
def test_a_pass_is_a_sampling_more_and_one_scored_image(passes):
    """15 steps of 4 samples, guided: two rows each."""
    process = by(mixed(), curved, 1.0, Target(0.7, passes))
    drawn(process)
    rows, looks = 15 * 4 * 2, 15 if passes == 0 else passes
    assert process.meter.as_dict() == {
        "denoiser_calls": 15 * (1 + passes),
        "image_forwards": rows * (1 + passes),
        "reward_images": 4 * looks,
        "image_backwards": rows * max(1, passes),
    }
    alone = by(mixed(), curved, 1.0, Target(0.7, passes))
    drawn(alone, BATCH.part(slice(0, 1)))
    assert image_cost(alone) == alone.meter.as_dict(), "which is what the report says of an image"


# -- what it refuses ---------------------------------------------------------------------------------------------------


def test_a_tangent_has_no_kl_of_paths():
    base = mixed(Ddim(5, 1.0))
    with pytest.raises(ValueError, match="a tangent knows its end; set passes: 0"):
        sample_with_kl(by(base, curved, 1.0, Target(0.7, 1)), base, BATCH)


def test_a_process_without_a_steer_has_no_strength():
    with pytest.raises(ValueError, match="nothing is steered here"):
        mixed().with_strength(torch.ones(1, 15, dtype=torch.float64))


@pytest.mark.parametrize("passes", [0, 1])
def test_where_one_image_does_not_fit_the_sentence_says_what_to_do(passes):
    def large(images: Tensor, prompts) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB.")

    process = by(replace(mixed(), batch=2), large, 1.0, Target(0.7, passes))
    with pytest.raises(
        NoRoom, match=r"not even one image fits; set model.vae_tiling, .* passes: 1}, which decodes once"
    ):
        list(process.over(BATCH, lambda part: drawn(process, part)))
    assert process.room.images == 1, "two were tried before"


def test_a_target_is_a_number():
    (said,) = Target(math.inf).mistakes()
    assert said.startswith("value: must be a finite number;") and not Target(1.0).mistakes() + Tilt().mistakes()
