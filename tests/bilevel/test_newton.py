"""Newton's steps on noisy gradients, and the answer of a climb that overshot."""

from __future__ import annotations

import pytest
import torch

from genbo.bilevel.optimizers.adam import Adam
from genbo.bilevel.optimizers.newton import Newton
from genbo.bilevel.protocols import Facts
from genbo.bilevel.root_estimate import answer

TOP = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def noisy(optimizer, steps: int, seed: int) -> float:
    """What is left of -sum(sqrt(1 + (A(u - TOP))^2) - 1) after noisy gradients of it, whose error is known."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.eye(3, dtype=torch.float64) + torch.randn(3, 3, generator=generator, dtype=torch.float64) / 3**0.5
    u, state, noise = torch.zeros(3, dtype=torch.float64), {}, torch.full((3,), 0.1, dtype=torch.float64)
    for k in range(steps):
        away = (u - TOP) @ mixed
        grad = -(away / (1 + away.square()).sqrt()) @ mixed.T + 0.1 * torch.randn(
            3, generator=generator, dtype=torch.float64
        )
        u, state = optimizer.step(u, grad, state, k / steps, noise=noise)
    return ((1 + ((u - TOP) @ mixed).square()).sqrt() - 1).sum().item()


def test_newton_arrives_in_fewer_steps_than_adam_where_gradients_are_noisy():
    """Mean over 8 objectives that are not quadratic, after 12 steps."""
    left = {kind: sum(noisy(kind(), 12, seed) for seed in range(8)) / 8 for kind in (Adam, Newton)}
    assert left[Newton] < left[Adam] / 2 and left[Newton] < 0.1


def test_newton_is_for_few_numbers_of_one_objective():
    assert Newton().why_not(Facts(24)) is None
    assert "at most 24" in str(Newton().why_not(Facts(25))) and "adam" in str(Newton().why_not(Facts(25)))
    assert "adam" in str(Newton().why_not(Facts(2, coupled=True)))
    assert "adam" in str(Newton().why_not(Facts(2, constrained=True)))


def test_a_step_is_never_longer_than_its_stride():
    u, state = torch.zeros(3, dtype=torch.float64), {}
    for k in range(12):
        grad = 100 * (TOP - u)
        moved, state = Newton(stride=0.2).step(u, grad, state, k / 12, noise=torch.ones(3, dtype=torch.float64))
        assert (moved - u).abs().max() <= state["stride"].item() + 1e-12 and state["stride"].item() <= 1.0
        u = moved
    assert (u - TOP).abs().max() < 0.02


def test_a_root_inside_the_path_is_the_answer_although_the_climb_overshot():
    """F' = 2 - u: a path that ran from 0 to 3 and stayed there, pushed back at every step, has not settled."""
    u = [torch.tensor([x], dtype=torch.float64) for x in (0.0, 0.6, 1.2, 1.8, 2.4, 2.9, 3.0, 3.0, 2.98, 2.97)]
    grad, se = [2 - x for x in u], [torch.full((1,), 0.05, dtype=torch.float64)] * len(u)
    found = answer(u, grad, se)
    assert found.kinds == ("unsettled",) and found.interval is not None and found.interval.isnan().all()
    assert found.u.item() == pytest.approx(2.0, abs=0.1)
    short = answer(u[:3], grad[:3], se[:3])  # too few steps for a field: the end of the path
    assert short.u.item() == pytest.approx(1.2)
