"""The gradient through a trained network: against retraining, and the penalty against the exact gradient."""

from __future__ import annotations

import math

import pytest
import torch

from genbo.bilevel.training.penalty import (
    TRUSTED,
    ByDifferences,
    Hypergradient,
    conjugate_gradients,
    gauged,
    implicit,
    penalty,
)
from tests.bilevel.linear_world import LinearWorld

COUPLED = [LinearWorld("index"), LinearWorld("log_snr")]
BROAD = LinearWorld("log_snr", "broad")


def q_of(world: LinearWorld) -> torch.Tensor:
    return world.tunable.first(0)


@pytest.mark.parametrize("world", [*COUPLED, BROAD], ids=lambda w: f"{w.conditioning}-{w.noise_levels}")
def test_direct_and_indirect_part_are_the_difference_of_retrained_networks(world):
    q = q_of(world)
    exact = implicit(world, q)
    retrained = []
    for i, h in enumerate((1e-5, 1e-5, 1e-5, 1e-6)):
        step = h * torch.eye(4, dtype=torch.float64)[i]
        up, down = (world.upper(at, world.solve(at, 0.0)) for at in (q + step, q - step))
        retrained.append((up - down) / (2 * h))
    torch.testing.assert_close(exact.total, torch.stack(retrained), rtol=1e-5, atol=1e-9)
    held = ByDifferences(1e-6)(lambda at: world.upper(at, world.solve(q, 0.0)), q)
    torch.testing.assert_close(exact.direct, held, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("world", COUPLED, ids=lambda w: w.conditioning)
def test_the_networks_answer_can_outweigh_the_samplers(world):
    """Where it does, the direct part alone goes the wrong way, and the flags say so."""
    exact = implicit(world, q_of(world))
    assert (exact.indirect.norm() > 0.3 * exact.direct.norm()) and exact.overturned.any()
    assert torch.equal(exact.opposed, exact.direct.sign() * exact.indirect.sign() == -1)
    assert torch.equal(exact.overturned, exact.direct.sign() != exact.total.sign())


def test_flags_read_the_signs():
    found = Hypergradient(torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([0.5, -0.5, -2.0, -1.0]))
    assert found.total.tolist() == [1.5, 0.5, -1.0, -1.0]
    assert found.opposed.tolist() == [False, True, True, False]
    assert found.overturned.tolist() == [False, False, True, False]


def slope(world: LinearWorld, gammas: list[float], *, symmetric: bool) -> float:
    """The fitted power of gamma with which the penalty gradient tends to the exact one."""
    q = q_of(world)
    exact = implicit(world, q)
    error = [math.log(penalty(world, q, gamma, symmetric=symmetric).distance(exact)) for gamma in gammas]
    x = torch.tensor(gammas, dtype=torch.float64).log()
    y = torch.tensor(error, dtype=torch.float64)
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


@pytest.mark.parametrize("world", COUPLED, ids=lambda w: w.conditioning)
def test_it_tends_to_the_exact_gradient_as_one_over_gamma(world):
    assert slope(world, [3e4, 1e5, 3e5], symmetric=False) == pytest.approx(-1, abs=0.03)


@pytest.mark.parametrize("world", COUPLED, ids=lambda w: w.conditioning)
def test_from_both_sides_as_one_over_gamma_squared(world):
    assert slope(world, [1e4, 3e4], symmetric=True) == pytest.approx(-2, abs=0.03)


def test_at_a_finite_gamma_it_is_the_derivative_of_the_gap_of_values():
    """gamma (min (L + f / gamma) - min L), by differences with both sides solved anew: not small in 1 / gamma."""
    world, gamma, h = LinearWorld("log_snr"), 300.0, 1e-5
    q = q_of(world)

    def gap(at: torch.Tensor) -> torch.Tensor:
        z, y = world.solve(at, 1 / gamma), world.solve(at, 0.0)
        return world.upper(at, z) + gamma * (world.lower(at, z) - world.lower(at, y))

    step = h * torch.tensor([0.3, -0.5, 0.7, 0.1], dtype=torch.float64)
    found = penalty(world, q, gamma)
    torch.testing.assert_close(found.total @ step, (gap(q + step) - gap(q - step)) / 2, rtol=1e-5, atol=0)
    assert found.distance(implicit(world, q)) > 0.05


def test_twice_the_gamma_is_the_gauge():
    world = LinearWorld("log_snr")
    q = q_of(world)
    exact = implicit(world, q)
    far, near = gauged(world, q, 300.0), gauged(world, q, 1e4)
    assert not far.trusted and near.trusted and near.apart <= TRUSTED
    for gamma, found in ((1e3, gauged(world, q, 1e3)), (1e4, near)):
        assert found.gradient.distance(exact) < 0.3 * penalty(world, q, 2 * gamma).distance(exact)
        assert 0.3 < found.apart / penalty(world, q, gamma).distance(exact) < 0.7


def test_broad_training_leaves_no_indirect_part():
    """Exactly none: the lower level has no q in it, and is not even solved with a tilt."""

    class Untilted(LinearWorld):
        def solve(self, q: torch.Tensor, tilt: float) -> torch.Tensor:
            assert tilt == 0
            return super().solve(q, tilt)

    q = q_of(BROAD)
    lower = BROAD.lower(q.clone().requires_grad_(), BROAD.solve(q, 0.0))
    assert not lower.requires_grad and not BROAD.coupled
    exact = implicit(BROAD, q)
    for symmetric in (False, True):
        found = penalty(Untilted("log_snr", "broad"), q, 100.0, symmetric=symmetric)
        assert found.indirect.tolist() == [0.0] * 4 == exact.indirect.tolist()
        torch.testing.assert_close(found.direct, exact.direct)
    for world in COUPLED:
        assert world.coupled and world.lower(q.clone().requires_grad_(), world.solve(q, 0.0)).requires_grad


def test_a_distance_without_derivatives_takes_differences():
    world = LinearWorld("log_snr")
    q = q_of(world)

    class Blind(LinearWorld):
        def upper(self, q: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
            assert not q.requires_grad
            return super().upper(q, theta)

    by_differences = penalty(Blind("log_snr"), q, 1e4, upper_slope=ByDifferences(1e-4))
    torch.testing.assert_close(by_differences.total, penalty(world, q, 1e4).total, rtol=1e-4, atol=1e-7)


def test_conjugate_gradients_end_after_as_many_steps_as_there_are_directions():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(7, 7, generator=generator, dtype=torch.float64)
    matrix, b = root @ root.T + torch.eye(7), torch.randn(7, generator=generator, dtype=torch.float64)
    found = conjugate_gradients(lambda v: matrix @ v, b, iterations=9, tolerance=1e-14)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, b))
    assert not conjugate_gradients(lambda v: matrix @ v, torch.zeros_like(b), 9, 1e-14).any()
