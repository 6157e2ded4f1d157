"""What every estimator promises: the gradient of what it was given, at the price that it names."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial

import pytest
import torch
from torch import Tensor

from genbo.bilevel.lower.closed_form import ClosedForm, cumulant_of
from genbo.bilevel.problem import Problem, SamplesAt, calls
from genbo.bilevel.protocols import Estimate, Facts
from genbo.bilevel.tunables.guidance import Guidance, Knots
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.exponential import Exponential
from genbo.diffusion.models.mixture import Mixture
from genbo.diffusion.process import process_of
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Seed, batch_of
from genbo.rewards.linear import Linear
from genbo.rewards.quadratic import Quadratic
from tests.rooms.conftest import files, options_class

STEPS, SAMPLES, BATCH = 5, 16, 12
DRAWS = 200  # of an estimator that draws directions of its own
ONE, TWO = torch.tensor([1.0], dtype=torch.float64), torch.tensor([1.0, 0.5], dtype=torch.float64)
TARGETS = ([1.5, 0.0], [0.0, 1.0])


@pytest.fixture
def estimator(estimator_class, example):
    if hasattr(estimator_class, "choose"):
        pytest.skip("chooses among the others")
    if estimator_class().why_not(Facts(1)):
        pytest.skip("follows a law, not a sampler: see below")
    return example(estimator_class)


def problem(shape: object = "scalar", rewards: int = 1) -> Problem:
    process = process_of(Mixture().open(), Ddim(steps=STEPS), Plain(weight=2.5), batch=BATCH)
    tunable = Guidance(start=2.5, bounds=(0.0, 10.0), shape=shape)  # type: ignore[arg-type]
    return Problem(process, (tunable,), tuple((1.0, Quadratic(target=t).open()) for t in TARGETS[:rewards]))


def estimate(p: Problem, estimator, weights: Tensor = ONE, seed: int = 3) -> Estimate:
    """On the same samples, whatever the seed of what the estimator draws beside them."""
    batch = batch_of(("east", "north"), SAMPLES, Seed(3))
    found = estimator(p, SamplesAt(p.coordinates(p.first()), batch, weights, Seed(seed)))
    assert all(isinstance(value, Tensor) for value in found.state.values())
    return found


@pytest.mark.parametrize("shape", ["scalar", Knots(3)], ids=str)
def test_an_estimate_has_a_number_a_parameter_and_a_score_a_sample(estimator, shape):
    p = problem(shape, rewards=2)
    found = estimate(p, estimator, TWO)
    assert found.grad.shape == found.grad_se.shape == (p.parameters,)
    assert found.scores.shape == (2, SAMPLES)
    for tensor in (found.grad, found.grad_se, found.scores):
        assert tensor.dtype == torch.float64 and tensor.isfinite().all() and not tensor.requires_grad
    assert (found.grad_se > 0).all()


def slopes_of_the_samples(p: Problem) -> Tensor:
    """The derivative of every sample's score in every coordinate, by fine differences: (P, N)."""
    batch, u, h = batch_of(("east", "north"), SAMPLES, Seed(3)), p.coordinates(p.first()), 1e-4
    members = torch.cat([u + h * torch.eye(len(u)), u - h * torch.eye(len(u))])
    up, down = p.scores(p.value(members), batch)[0].chunk(2)
    return (up - down) / (2 * h)


@pytest.mark.parametrize("shape", ["scalar", Knots(3)], ids=str)
def test_it_is_the_slope_of_the_same_samples(estimator, shape):
    """Against fine differences of the very samples it drew: the sampling itself is no excuse.

    Directions of its own are one, so their mean is compared, within its own error.
    """
    p = problem(shape)
    slope = slopes_of_the_samples(p).mean(1)
    found, other = (estimate(p, estimator, seed=seed).grad for seed in (3, 4))
    if torch.equal(found, other):
        torch.testing.assert_close(found, slope, rtol=2e-2, atol=2e-3)
        return
    drawn = torch.stack([estimate(p, estimator, seed=seed).grad for seed in range(DRAWS)])
    error = 4 * drawn.std(0) / DRAWS**0.5
    assert ((drawn.mean(0) - slope).abs() <= error + 2e-2 * slope.abs() + 2e-3).all()


@pytest.mark.parametrize("shape", ["scalar", Knots(3)], ids=str)
def test_the_standard_error_is_that_of_a_mean_over_samples(estimator, shape):
    """That of their fine slopes; where directions are drawn as well, it depends on these."""
    p = problem(shape)
    found, other = (estimate(p, estimator, seed=seed) for seed in (3, 4))
    if torch.equal(found.grad, other.grad):
        error = slopes_of_the_samples(p).std(1) / SAMPLES**0.5
        torch.testing.assert_close(found.grad_se, error, rtol=0.2, atol=2e-3)


def test_slopes_of_the_samples_have_the_gradient_as_their_mean(estimator):
    p = problem(Knots(3))
    found = estimate(p, estimator)
    if found.slopes is not None:
        assert found.slopes.shape == (p.parameters, SAMPLES)
        torch.testing.assert_close(found.slopes.mean(1), found.grad)


def test_prompts_that_count_more_do(estimator):
    """`SamplesAt.factor`, which an objective over prompts sets."""
    p = problem()
    batch = batch_of(("east", "north"), SAMPLES, Seed(3))

    def under(factor: dict[str, float] | None) -> Tensor:
        return estimator(p, SamplesAt(p.coordinates(p.first()), batch, ONE, Seed(3), factor=factor)).grad

    east, north = under({"east": 2.0, "north": 0.0}), under({"east": 0.0, "north": 2.0})
    assert not torch.allclose(east, north, rtol=0.1)
    torch.testing.assert_close((east + north) / 2, under(None), rtol=1e-6, atol=1e-8)


def test_scores_are_those_of_the_samples_at_the_point(estimator):
    p = problem()
    batch = batch_of(("east", "north"), SAMPLES, Seed(3))
    there = p.scores(p.first()[None], batch)[0, 0]
    torch.testing.assert_close(estimate(p, estimator).scores[0], there, rtol=2e-2, atol=2e-3)


def test_weights_are_linear(estimator):
    p = problem(rewards=2)
    both = estimate(p, estimator, TWO).grad
    parts = [estimate(p, estimator, w * e).grad for w, e in zip(TWO, torch.eye(2, dtype=torch.float64), strict=True)]
    torch.testing.assert_close(both, sum(parts), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("shape", ["scalar", Knots(3)], ids=str)
def test_it_costs_what_it_says(estimator, shape):
    p = problem(shape)
    estimate(p, estimator)
    cost = estimator.cost(p.parameters)
    sampled, passes = cost.trajectories, cost.network_passes
    meter = p.process.meter
    assert meter.reward_images == sampled * SAMPLES
    assert (meter.image_backwards > 0) == cost.goes_back
    assert meter.image_forwards == sampled * SAMPLES * STEPS * passes * 2  # conditional and unconditional
    draws = cost.draws
    assert sum(map(len, draws)) == sampled
    assert meter.denoiser_calls == sum(calls(SAMPLES, len(draw), BATCH, STEPS) for draw in draws) * passes


def test_the_same_twice_and_the_worlds_randomness_untouched(estimator):
    p = problem(Knots(3))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = estimate(p, estimator), estimate(p, estimator)
    assert torch.equal(first.grad, second.grad) and torch.equal(first.scores, second.scores)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", ["scalar", Knots(3)], ids=str)
def test_it_draws_where_it_says(estimator, shape, monkeypatch):
    """The plan counts on `draws`: which coordinates each member of each batch has moved."""
    p, seen = problem(shape), []
    at = Problem.at
    monkeypatch.setattr(Problem, "at", lambda self, phi: seen.append(phi) or at(self, phi))
    estimate(replace(p, process=replace(p.process, batch=10**6)), estimator)
    u, draws = p.coordinates(p.first()), estimator.cost(p.parameters).draws
    assert len(seen) == len(draws)
    for members, draw in zip(seen, draws, strict=True):
        if None in draw:  # differentiated where it stands
            torch.testing.assert_close(members, p.value(u).expand_as(members), rtol=0, atol=1e-12)
            continue
        moved = (p.coordinates(members) - u).abs() > 1e-9
        assert [frozenset(row.nonzero().flatten().tolist()) for row in moved] == draw


class Opaque(torch.autograd.Function):
    """A score whose derivative nobody may ask for."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return -x.flatten(1).square().sum(1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        raise AssertionError("the derivative of a reward without one was asked for")

    @staticmethod
    def jvp(ctx, tangent: Tensor) -> Tensor:
        raise AssertionError("the derivative of a reward without one was asked for")


class Closed:
    differentiable = False

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return Opaque.apply(images)


def test_it_says_no_before_it_fails_and_yes_only_where_it_works(estimator):
    """With a reward that explodes when differentiated: either a refusal or a gradient."""
    p = problem()
    closed = Problem(p.process, p.tunables, ((1.0, Closed()),))
    if estimator.why_not(Facts(1, differentiable_reward=False)) is None:
        assert estimate(closed, estimator).grad.isfinite().all()
    else:
        with pytest.raises(AssertionError, match="was asked for"):
            estimate(closed, estimator)


def test_a_refusal_is_a_sentence_with_a_way_out(estimator):
    for reward, model, half in itertools.product([True, False], repeat=3):
        facts = Facts(4, differentiable_reward=reward, differentiable_model=model, half_precision=half)
        refusal = estimator.why_not(facts)
        assert refusal is None or "; " in refusal
    assert estimator.why_not(Facts(1)) is None


def test_a_choice_is_an_estimator_of_the_room_that_can_work(estimator_class):
    if not hasattr(estimator_class, "choose"):
        pytest.skip("is an estimator itself")
    for size, reward, model, half in itertools.product([1, 8, 9, 20, 21, 100], *[[True, False]] * 3):
        facts = Facts(size, differentiable_reward=reward, differentiable_model=model, half_precision=half)
        kind, options, reason = estimator_class().choose(facts)
        assert kind in files("estimator")
        chosen = options_class("estimator", kind)
        assert set(options) <= {f.name for f in fields(chosen)}
        assert chosen(**options).why_not(facts) is None
        assert str(size) in reason


# -- of a tilted law ---------------------------------------------------------------------------------------------------


@pytest.fixture
def slope(estimator_class):
    if hasattr(estimator_class, "choose") or estimator_class().why_not(Facts(1, slope="covariance")):
        pytest.skip("samples at phi")
    return estimator_class(**({"step": 0.01} if hasattr(estimator_class, "step") else {}))


def test_every_estimator_says_which_problems_are_not_its_own(estimator_class):
    """Samples at phi, the law of a lower level, or a network that is trained for phi: none can do all three."""
    if not hasattr(estimator_class, "choose"):
        kinds = [Facts(1), Facts(1, slope="covariance"), Facts(1, coupled=True)]
        refused = [estimator_class().why_not(facts) for facts in kinds]
        assert None in refused
        assert (refused[0] is None) != (refused[1] is None) or refused[2] is None
        assert "use estimator:" in next(filter(None, refused))


@pytest.mark.parametrize("lam", [0.4, 1.0, 5.0])
def test_a_slope_is_the_derivative_of_the_exact_curve(slope, lam):
    """On a skewed world: r2 = x, r1 = -(x - 1)^2 / 2, by the closed form's own mean of r1."""
    world, prompts = Exponential(means={"a": [0.3]}), ["a"]
    r1, r2 = [(1.0, Quadratic(target=1.0, scale=0.5))], [(1.0, Linear())]
    solve = partial(ClosedForm().solve, cumulant_of(world, prompts, r1, r2))
    h = 1e-4
    fine = (solve(lam * math.exp(h)).r1.mean - solve(lam * math.exp(-h)).r1.mean) / (2 * h)
    assert slope(solve, lam).mean == pytest.approx(fine, rel=5e-3, abs=1e-3)
