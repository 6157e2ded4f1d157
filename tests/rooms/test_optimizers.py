"""What every optimizer promises: it climbs, it rests where there is no slope, and it hides nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

TOP = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def climb(optimizer, u: Tensor, steps: int) -> list[Tensor]:
    """On -|u - TOP|^2 / 2, by its exact gradient."""
    path, state = [u], {}
    for k in range(steps):
        u, state = optimizer.step(u, TOP - u, state, k / steps)
        path.append(u)
    return path


def test_it_climbs_to_the_top(optimizer_class):
    path = climb(optimizer_class(), torch.zeros(3, dtype=torch.float64), 50)
    torch.testing.assert_close(path[-1], TOP, atol=1e-2, rtol=0)
    first = (path[1] - path[0]) * TOP
    assert (first > 0).all(), "the first step goes down"


def test_it_rests_where_there_is_no_slope(optimizer_class):
    """So hyperparameters are never drawn towards u = 0, which means nothing."""
    u, state = TOP.clone(), {}
    for k in range(5):
        u, state = optimizer_class().step(u, torch.zeros_like(u), state, k / 5)
    assert torch.equal(u, TOP)


def test_state_is_given_back_and_nothing_is_changed_in_place(optimizer_class):
    u, grad, state = TOP.clone(), torch.ones_like(TOP), {}
    for k in range(3):
        kept = {name: value.clone() for name, value in state.items()}
        after, new = optimizer_class().step(u, grad, state, k / 3)
        assert torch.equal(u, TOP) and torch.equal(grad, torch.ones_like(TOP))
        assert all(torch.equal(state[name], value) for name, value in kept.items()) and set(state) == set(kept)
        again, _ = optimizer_class().step(u, grad, kept, k / 3)
        assert torch.equal(after, again), "it remembers something outside its state"
        assert all(isinstance(v, Tensor) and v.dtype == torch.float64 for v in new.values())
        state = new


def test_the_order_of_the_parameters_means_nothing(optimizer_class):
    together = climb(optimizer_class(), torch.zeros(3, dtype=torch.float64), 7)[-1]
    u, state, order = torch.zeros(3, dtype=torch.float64), {}, [2, 0, 1]
    for k in range(7):
        u, state = optimizer_class().step(u, TOP[order] - u, state, k / 7)
    torch.testing.assert_close(u, together[order], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_steps_shrink_over_the_budget_and_never_turn(optimizer_class, progress):
    u, grad = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    moved, _ = optimizer_class().step(u, grad, {}, progress)
    start, _ = optimizer_class().step(u, grad, {}, 0.0)
    assert (moved > 0).all() and (moved <= start).all()
