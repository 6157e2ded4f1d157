"""The race of a climb's last steps: whether it is needed, who wins it, what it costs, and a climb that goes astray."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from genbo.bilevel.estimators.reverse_mode import ReverseMode
from genbo.bilevel.estimators.zeroth_order import ZerothOrder
from genbo.bilevel.loop import Budget, begin
from genbo.bilevel.loop import tune as climb
from genbo.bilevel.optimizers.adam import Adam
from genbo.bilevel.problem import Problem
from genbo.bilevel.race import Past, candidates, gains, laps, names, outcome, tune, why_not
from genbo.bilevel.tunables.guidance import Guidance, Knots
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.mixture import Mixture
from genbo.diffusion.process import process_of
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Seed, batch_of
from genbo.rewards.quadratic import Quadratic

CPU = torch.device("cpu")
PROMPTS = ["east", "north"]


def problem(start: float = 1.0, knots: int = 2) -> Problem:
    """Two clouds with two humps each: not Gaussian, and too much guidance throws the samples far out."""
    model = Mixture(
        means=[[2.0, 0.0], [2.5, 1.5], [0.0, 2.0], [-1.0, 2.5]],
        labels=["east", "east", "north", "north"],
        weights=[0.3, 0.2, 0.3, 0.2],
    )
    process = process_of(model.open(), Ddim(steps=4), Plain(weight=start), batch=4096)
    shape = Knots(knots) if knots > 1 else "scalar"
    tunable = Guidance(start=start, bounds=(0.0, 20.0), shape=shape)
    return Problem(process, (tunable,), ((1.0, Quadratic(target=[1.2, 1.2]).open(CPU)),))


def path(u, grad, se, width=0.25):
    n, one = len(u), torch.ones(len(u), 1, dtype=torch.float64)
    rows = {"u": u, "grad": grad, "grad_se": se, "value": 0 * one, "value_se": one, "width": width * one}
    return {name: torch.as_tensor(x, dtype=torch.float64).reshape(n, -1) for name, x in rows.items()}


def test_the_gain_is_added_up_from_the_gradients_of_the_arrivals():
    """F = -(u - 2)^2 / 2 over 0, 1, 2: the gradients at the arrivals, 1 and 0, times the moves; F itself rose by 2."""
    (found, se), _ = gains(path([0.0, 1.0, 2.0], [2.0, 1.0, 0.0], [0.3, 0.3, 0.4]))
    assert found == pytest.approx(1.0) and se == pytest.approx(0.5)


def test_noise_that_is_followed_is_no_gain():
    """A flat objective: every gradient is noise, and every move follows it. The mean gain over 400 walks is 0."""
    noise = torch.randn(400, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found_in_errors = []
    for row in noise:
        u = torch.cat([torch.zeros(1, dtype=torch.float64), 0.3 * row[:-1].sign()]).cumsum(0)
        (found, se), _ = gains(path(u, row, torch.ones(20)))
        found_in_errors.append(found / se)
    scores = torch.tensor(found_in_errors)
    assert abs(scores.mean()) < 3 / 20 and scores.std() == pytest.approx(1.0, abs=0.15)
    along = sum(float((row[:-1] * 0.3 * row[:-1].sign()).sum()) for row in noise) / 400
    assert along > 3  # what the gradients of the departures would claim


def test_derivatives_are_not_added_up_because_they_miss_jumps():
    steps = path([0.0] * 8, [9.0] * 8, [0.1] * 8, width=0.0)
    steps["value"][:, 0] = torch.arange(8.0)
    steps["value_se"][:, 0] = 0.5
    ((found, se),) = gains(steps)
    assert found == pytest.approx(6.5) and se == pytest.approx((0.125 + 0.25) ** 0.5)


def test_a_candidate_wins_by_a_clear_lead_alone():
    assert outcome([[0.0, 0.2, 0.1], [0.0, 0.4, 0.1]], [[0.0, 0.1, 0.01]] * 2).winner == 1  # .3 is 4 of its errors
    assert outcome([[0.0, 0.2, 0.1]], [[0.0, 0.1, 0.01]]).winner == 2  # .2 is 2 of its errors, .1 is 10
    assert outcome([[0.0, 0.2, -0.1]], [[0.0, 0.1, 0.01]]).winner == 0
    lost = outcome([[0.0, float("nan"), 0.1]], [[0.0, 0.1, 0.01]])
    assert lost.winner == 2 and lost.ahead == pytest.approx(0.1)


def test_the_candidates_are_the_answer_the_start_and_places_of_the_path():
    p = problem()
    u = begin(p).u + torch.linspace(0, 1, 9, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.5])
    steps = path(u, 1 - u, 0.1 * torch.ones(9, 2))
    steps["value"][:, 0] = torch.tensor([0.0, 1, 2, 9, 3, 8, 4, 5, 6])
    found = candidates(p, steps, 4)
    assert found.shape == (4, 2) and names(4)[:2] == ["answer", "start"]
    assert (found[1] - begin(p).u).abs().max() < 1e-4 and any((row - u[3]).abs().max() < 1e-4 for row in found)


def test_only_differences_on_common_samples_are_raced():
    p = problem()
    assert why_not(p, ZerothOrder(), Budget(20, 8)) is None and laps(Budget(20, 8)) == 2 and laps(Budget(5, 8)) == 1
    assert "no room" in str(why_not(p, ZerothOrder(), Budget(4, 8)))
    for estimator in (ReverseMode(), ZerothOrder(common=False, directions="random"), ZerothOrder(points="forward")):
        assert (why_not(p, estimator, Budget(20, 8)) is None) == (estimator == ZerothOrder(points="forward"))


class Downhill:
    """A climb that goes astray: every step goes where the reward falls."""

    def step(self, u, grad, state, progress, *, noise=None, width=0.0):
        return u - 0.3 * grad.sign(), {}


def run(p, optimizer, steps=10, samples=64, state=None, past=None):
    return list(tune(p, ZerothOrder(), optimizer, PROMPTS, Budget(steps, samples), Seed(0), state, past))


def test_a_climb_that_clearly_gained_goes_on_along_the_gradient():
    p = problem(start=8.0)
    raced = run(p, Adam(lr=0.3))
    plain = list(climb(p, ZerothOrder(), Adam(lr=0.3), PROMPTS, Budget(10, 64), Seed(0)))
    assert [step.status for step in raced] == ["ok"] * 10 and torch.equal(raced[-1].state.u, plain[-1].state.u)
    assert "rose by" in str(raced[9].not_raced) and all(step.not_raced is None for step in raced[:9])


def test_a_climb_that_goes_astray_ends_at_its_start_and_costs_the_same():
    p = problem(start=0.4)
    steps = run(p, Downhill(), steps=20)
    assert [step.status for step in steps[-2:]] == ["raced"] * 2
    found = outcome(*[[getattr(s.lap, n).tolist() for s in steps[-2:]] for n in ("ahead", "ahead_se")])
    assert found.winner == 1 and found.ahead > 5 * found.se
    batch, u = batch_of(PROMPTS, 512, Seed(7)), steps[-1].lap.members
    score = [p.scores(p.value(x)[None], batch).mean().item() for x in (u[0], u[1])]
    assert score[1] > score[0]
    q = problem(start=0.4)
    plain = list(climb(q, ZerothOrder(), Downhill(), PROMPTS, Budget(20, 64), Seed(0)))
    assert steps[-1].state.cost == plain[-1].state.cost


@pytest.mark.parametrize("at", [5, 18, 19])
def test_left_and_gone_on_with_it_is_the_same_race(at):
    whole = run(problem(start=0.4), Downhill(), steps=20)
    past = Past()
    for step in whole[:at]:
        past = past.with_step(step)
    past = replace(past, members=whole[18].lap.members if at > 18 else None)
    rest = run(problem(start=0.4), Downhill(), steps=20, state=whole[at - 1].state, past=past)
    assert [s.index for s in rest] == list(range(at, 20)) and rest[-1].state.cost == whole[-1].state.cost
    for one, other in zip(rest, whole[at:], strict=True):
        assert one.status == other.status and one.value == other.value
        if one.lap is not None:
            assert torch.equal(one.lap.ahead, other.lap.ahead) and torch.equal(one.lap.members, other.lap.members)


def test_one_number_with_an_interval_inside_the_path_is_not_raced():
    p = problem(start=2.0, knots=1)
    steps = run(p, Adam(lr=0.2), steps=20, samples=256)
    assert all(step.status == "ok" for step in steps)
    assert steps[18].not_raced is not None
