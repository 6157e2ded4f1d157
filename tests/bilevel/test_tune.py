"""The loop, the answer and the verdict, on worlds whose optimum is known."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from scipy.optimize import minimize_scalar

from genbo.bilevel.estimators.reverse_mode import ReverseMode
from genbo.bilevel.estimators.zeroth_order import ZerothOrder
from genbo.bilevel.interval import student_t
from genbo.bilevel.loop import PATIENCE, Budget, batch_of_step, tune
from genbo.bilevel.optimizers.adam import Adam
from genbo.bilevel.optimizers.sgd import Sgd
from genbo.bilevel.problem import Constraint, Problem
from genbo.bilevel.protocols import Estimate
from genbo.bilevel.root_estimate import answer
from genbo.bilevel.tunables.guidance import Guidance
from genbo.bilevel.verdict import compare, draw
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.process import process_of
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Seed, batch_of
from genbo.rewards.quadratic import Quadratic
from tests.oracles import gaussian_world_moments

WORLD = Gaussian(means={"right": [1.0]}, std=0.5, spread=1.2)
STEPS, TARGET, CPU = 8, 1.3, torch.device("cpu")


def problem(start=1.0, shape="scalar", constraints=(), reward=None) -> Problem:
    process = process_of(WORLD.open(), Ddim(steps=STEPS), Plain(weight=start), batch=4096)
    reward = reward or Quadratic(target=TARGET).open(CPU)
    return Problem(process, (Guidance(start=start, bounds=(0.0, 10.0), shape=shape),), ((1.0, reward),), constraints)


def objective(weight: float, target: float = TARGET) -> float:
    mean, variance = gaussian_world_moments(torch.full((STEPS,), weight, dtype=torch.float64), 1.0, 0.5, 1.2, 8.0)
    return -(variance + (mean - target) ** 2).item()


@cache
def best_weight() -> float:
    return float(minimize_scalar(lambda w: -objective(w), bounds=(0.5, 6), method="bounded").x)


def run(p: Problem, steps: int = 25, samples: int = 128, seed: int = 0, state=None, **kwargs):
    return list(tune(p, ZerothOrder(h=0.05), Adam(), ["right"], Budget(steps, samples, **kwargs), Seed(seed), state))


def answer_of(p: Problem, steps) -> tuple[float, float]:
    found = answer([s.u for s in steps], [s.grad for s in steps], [s.grad_se for s in steps])
    slope = 10 * (found.u.sigmoid() * (1 - found.u.sigmoid()))
    return p.value(found.u).item(), (found.u_se * slope).item()


@pytest.mark.parametrize("start", [0.2, 1.0, 9.0])
def test_finds_the_optimum_of_the_gaussian_world_from_both_sides(start):
    p = problem(start)
    phi, se = answer_of(p, run(p, steps=40))
    assert 0 < se < 0.3
    assert abs(phi - best_weight()) < 4 * se + 0.03


def test_the_error_bar_covers():
    """Over 30 seeds the optimum lies within two standard errors nearly always, and the bars are not absurdly wide."""
    best, inside, bars, errors = best_weight(), 0, [], []
    for seed in range(30):
        p = problem(3.0)
        phi, se = answer_of(p, run(p, steps=15, samples=64, seed=seed))
        inside += abs(phi - best) < 2 * se
        bars.append(se)
        errors.append(phi - best)
    assert inside >= 25
    assert sum(bars) / 30 < 3 * torch.tensor(errors).square().mean().sqrt()


def test_a_run_given_back_its_state_goes_on_bit_for_bit():
    whole = run(problem())
    for k in (1, 7, 24):
        first = run(problem(), 25)[:k]
        rest = run(problem(), 25, state=first[-1].state)
        assert [s.u.item() for s in first + rest] == [s.u.item() for s in whole]
        assert rest[-1].state.cost == whole[-1].state.cost


def test_per_step_reaches_at_least_the_scalar():
    scalar, steps = problem(2.0), problem(2.0, "per_step")
    best_scalar = objective(answer_of(scalar, run(scalar))[0])
    path = list(tune(steps, ReverseMode(), Adam(), ["right"], Budget(40, 256), Seed(0)))
    weight = steps.value(path[-1].state.u)
    mean, variance = gaussian_world_moments(weight, 1.0, 0.5, 1.2, 8.0)
    assert -(variance + (mean - TARGET) ** 2).item() > best_scalar - 1e-3


def test_a_constraint_is_held_at_its_level():
    """Maximise closeness to 1.3 while closeness to 1.0 must not fall below a level that the optimum violates."""
    level = -0.075
    keep = Constraint("near one", Quadratic(target=1.0).open(CPU), level)
    p = problem(1.0, constraints=(keep,))
    free = answer_of(problem(1.0), run(problem(1.0)))[0]
    assert objective(free, 1.0) < level - 0.005
    path = run(p, steps=80, samples=256)
    held = torch.stack([s.phi for s in path[-20:]]).mean().item()
    assert objective(held, 1.0) == pytest.approx(level, abs=0.006)
    assert torch.stack([s.multipliers for s in path[-20:]]).mean() > 0


def test_a_relative_constraint_measures_its_level_on_the_same_noise():
    keep = Constraint("itself", Quadratic(target=TARGET).open(CPU), -0.01, relative_to_start=True)
    p = problem(2.0, constraints=(keep,))
    first = run(p, steps=1)[0]
    assert first.gaps.item() == pytest.approx(0.01, abs=1e-3)  # members stand h around the start
    p = problem(2.0, constraints=(keep,))
    run(p, steps=3, samples=10)
    assert p.process.meter.reward_images == 3 * 10 * 3  # two members of a central difference, and the start


class Stub:
    """A reward that returns what it is told."""

    differentiable = True

    def __init__(self, value):
        self.value = value

    def __call__(self, images, prompts):
        return torch.full((len(images),), self.value, dtype=torch.float64)


@pytest.mark.parametrize(("value", "status"), [(math.nan, "non_finite"), (math.inf, "non_finite"), (0.5, "flat")])
def test_numbers_that_go_wrong_are_a_status_and_move_nothing(value, status):
    path = run(problem(reward=Stub(value)))
    assert [s.status for s in path] == [status] * PATIENCE
    assert len({s.u.item() for s in path} | {path[-1].state.u.item()}) == 1


def test_one_bad_step_is_skipped():
    class Once(Stub):
        calls = 0

        def __call__(self, images, prompts):
            self.calls += 1
            good = Quadratic(target=TARGET).open(CPU)(images, prompts)
            return good * math.nan if self.calls == 4 else good

    path = run(problem(reward=Once(0)), steps=6)
    assert [s.status for s in path] == ["ok"] * 3 + ["non_finite"] + ["ok"] * 2
    assert path[3].state.u.item() == path[3].u.item()


def test_a_budget_of_calls_ends_the_run():
    p = problem()
    path = run(p, steps=25, samples=32, denoiser_calls=3 * STEPS)
    assert len(path) == 3 and p.process.meter.denoiser_calls == 3 * STEPS


def test_adam_is_torchs_adam():
    ours, theirs = (
        Adam(lr=0.1, beta1=0.9, beta2=0.999, final=1.0),
        torch.nn.Parameter(torch.zeros(3, dtype=torch.float64)),
    )
    optimizer, u, state = (
        torch.optim.Adam([theirs], lr=0.1, eps=1e-12),
        torch.zeros(3, dtype=torch.float64),
        {},
    )
    for k in range(20):
        grad = torch.randn(3, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        theirs.grad = -grad
        optimizer.step()
        u, state = ours.step(u, grad, state, 0.0)
        torch.testing.assert_close(u, theirs.detach(), rtol=1e-9, atol=1e-12)


def test_nothing_pulls_hyperparameters_to_zero():
    zero, u = torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, -3.0], dtype=torch.float64)
    for optimizer in (Adam(), Sgd()):
        assert torch.equal(optimizer.step(u, zero, {}, 0.5)[0], u)


# -- what one step hands to the next -----------------------------------------------------------------------------------


class Script:
    """An estimator that gives the scores it was given, a table (K, N) a step, and remembers what it was called with."""

    def __init__(self, *tables, grad=1.0):
        self.tables, self.grad = [torch.tensor(t, dtype=torch.float64) for t in tables], grad
        self.batches, self.weights, self.seeds = [], [], []

    def __call__(self, problem, at):
        u, batch, weights, seed = at.u, at.batch, at.weights, at.seed
        scores = self.tables[len(self.batches) % len(self.tables)]
        self.batches.append(batch)
        self.weights.append(weights.tolist())
        self.seeds.append(seed.value)
        return Estimate(torch.full_like(u, self.grad), torch.ones_like(u), scores, state={"seen": torch.ones(1)})


class Remembering:
    """An optimizer that counts its own steps in its state."""

    def __init__(self):
        self.states, self.progress = [], []

    def step(self, u, grad, state, progress, *, noise, width):
        count = state.get("count", torch.zeros(1))
        self.states.append(count.item())
        self.progress.append(progress)
        return u + 0.1, {"count": count + 1}


FLAT = [[0.5, 0.5, 0.5, 0.5]]


def test_every_step_has_prompts_and_noise_of_its_own():
    """No sample is drawn twice, and the draw of a step does not depend on how the run came there."""
    script = Script(FLAT)
    list(tune(problem(), script, Sgd(), ["right"], Budget(5, 4), Seed(0)))
    seeds = [seed for batch in script.batches for seed in batch.seeds]
    assert len(set(seeds)) == 5 * 4
    assert len(set(script.seeds)) == 5, "what an estimator draws for itself is new at every step, too"
    assert script.batches[3] == batch_of_step(["right"], Budget(5, 4), Seed(0), 3)
    assert not set(seeds) & {s for k in range(5) for s in batch_of_step(["right"], Budget(5, 4), Seed(1), k).seeds}


def test_a_pool_is_gone_through_in_turn():
    budget = Budget(4, 4, pool=6)
    drawn = [batch_of_step(["a", "b", "c"], budget, Seed(0), k) for k in range(3)]
    seeds = [seed for batch in drawn for seed in batch.seeds]
    assert len(set(seeds)) == 6 and seeds[6:] == seeds[:6]
    prompts = [prompt for batch in drawn for prompt in batch.prompts]
    assert sorted(prompts[:6]) == ["a", "a", "b", "b", "c", "c"] and prompts[6:] == prompts[:6]


def test_the_optimizer_goes_on_from_its_own_state():
    whole = Remembering()
    path = list(tune(problem(), Script(FLAT), whole, ["right"], Budget(4, 4), Seed(0)))
    assert whole.states == [0, 1, 2, 3] and whole.progress == [0, 0.25, 0.5, 0.75]
    rest = Remembering()
    list(tune(problem(), Script(FLAT), rest, ["right"], Budget(4, 4), Seed(0), path[1].state))
    assert rest.states == [2, 3] and rest.progress == [0.5, 0.75]
    assert path[-1].state.optimizer["count"].item() == 4
    assert path[-1].state.u.item() == pytest.approx(path[0].u.item() + 0.4)


def test_a_step_that_is_not_finite_leaves_every_state_as_it_was():
    bad = Script(FLAT, [[math.nan, 0.5, 0.5, 0.5]], FLAT)
    memory = Remembering()
    path = list(tune(problem(), bad, memory, ["right"], Budget(3, 4), Seed(0)))
    assert [s.status for s in path] == ["ok", "non_finite", "ok"]
    assert memory.states == [0, 1] and path[1].state.optimizer == path[0].state.optimizer
    assert [s.state.wasted for s in path] == [0, 1, 0]


def test_the_price_of_a_constraint_by_hand():
    """Proportional and integral control with gains 1 and 0.15, over three steps.

    Rewards 0, 6 weighted by 2 spread by 6 sqrt(2). The constraint spreads by sqrt(2), 2 sqrt(2) and sqrt(2), and is 3
    below its level of 5, 1 below it and 0.2 above: short of it by 3 / sqrt(2), 1 / (2 sqrt(2)) and -0.2 / sqrt(2)
    standard deviations.
    """
    keep = Constraint("near one", Quadratic(target=1.0).open(CPU), 5.0)
    p = replace(problem(constraints=(keep,)), rewards=((2.0, Quadratic(target=TARGET).open(CPU)),))
    tables = [[[0, 6], [1, 3]], [[0, 6], [2, 6]], [[0, 6], [4.2, 6.2]], [[0, 6], [4, 6]]]
    script = Script(*tables)
    path = list(tune(p, script, Sgd(), ["right"], Budget(4, 2), Seed(0)))
    assert [s.gaps.item() for s in path] == pytest.approx([-3, -1, 0.2, 0])
    root = math.sqrt(2)
    short = [3 / root, 1 / (2 * root), -0.2 / root]
    integral = [0.15 * short[0], 0.15 * (short[0] + short[1]), 0.15 * sum(short)]
    price = [6 * root / root, 6 * root / (2 * root), 6 * root / root]
    wanted = [0.0, *(p * (i + s) for p, i, s in zip(price, integral, short, strict=True))]
    assert wanted == pytest.approx([0, 14.6371, 2.17435, 1.25158], rel=1e-5)
    assert [s.multipliers.item() for s in path] == pytest.approx(wanted)
    assert script.weights == [[2.0, pytest.approx(price)] for price in wanted], "as they stand in the gradient"
    assert [s.value for s in path] == [6.0] * 4, "the value is that of the rewards alone"
    assert path[0].value_se == pytest.approx(6 * root / root)


def test_a_constraint_that_is_met_costs_nothing_and_leaves_no_credit():
    """Two steps far above the level, then one below: the price is that of a first step below."""
    keep = Constraint("near one", Quadratic(target=1.0).open(CPU), 5.0)
    above, below = [[0, 2], [9, 11]], [[0, 2], [1, 3]]
    ends = []
    for tables in ([above, above, below], [below]):
        path = list(
            tune(problem(constraints=(keep,)), Script(*tables), Sgd(), ["right"], Budget(len(tables), 2), Seed(0))
        )
        ends.append(path[-1].state.multipliers.item())
        assert all(s.state.multipliers.item() == 0 for s in path[:-1])
    assert ends[0] == ends[1] == pytest.approx(1.15 * 3 / math.sqrt(2))


# -- the verdict -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (5, 2.57058), (10, 2.22814), (127, 1.97882)],
)
def test_students_quantile_is_the_tables(degrees, quantile):
    assert student_t(0.975, degrees) == pytest.approx(quantile, rel=0.01 if degrees < 5 else 1e-3)


def test_the_interval_covers_and_noise_is_not_called_a_gain():
    """No difference at all: `better` in about 2.5 of 100. A real one of three standard errors: nearly always."""
    prompts = tuple(str(i % 16) for i in range(64))
    generator = torch.Generator().manual_seed(0)
    verdicts, found = [], []
    for _ in range(400):
        prompt_effect = torch.randn(16, generator=generator)[torch.arange(64) % 16]
        noise = torch.randn(64, generator=generator) + prompt_effect
        verdicts.append(compare(torch.zeros(64), noise, prompts).verdict)
        found.append(compare(torch.zeros(64), noise + 1.4, prompts).verdict)
    assert 0.005 < verdicts.count("better") / 400 < 0.06
    assert 0.005 < verdicts.count("worse") / 400 < 0.06
    assert found.count("better") / 400 > 0.9


def test_samples_of_a_prompt_are_not_counted_as_independent():
    """16 prompts with 4 equal samples each know no more than 16 numbers."""
    difference = torch.randn(16, generator=torch.Generator().manual_seed(1))
    once = compare(torch.zeros(16), difference, tuple(map(str, range(16))))
    often = compare(torch.zeros(64), difference.repeat(4), tuple(map(str, range(16))) * 4)
    assert often.interval == pytest.approx(once.interval)


def test_both_sides_of_the_verdict_share_their_noise():
    p = problem(2.0)
    batch = batch_of(["right"], 50, Seed(0).child("evaluate"))
    sides = [
        torch.cat([seen[0] for seen, _ in draw(p, torch.tensor([w], dtype=torch.float64), batch)]) for w in (2.0, 2.01)
    ]
    assert (sides[1] - sides[0]).std() < 0.1 * sides[0].std()


def test_weight_one_costs_one_row():
    p = problem(1.0)
    batch = batch_of(["right"], 10, Seed(0))
    list(draw(p, p.first(), batch))
    assert p.process.meter.image_forwards == 10 * STEPS
    p = replace(p, process=process_of(WORLD.open(), Ddim(steps=STEPS), Plain(weight=2.0), batch=4096))
    list(draw(p, torch.tensor([2.0], dtype=torch.float64), batch))
    assert p.process.meter.image_forwards == 2 * 10 * STEPS


@pytest.mark.parametrize("start", [0.0, 10.0])
def test_a_start_on_a_bound_begins_where_it_can_move(start):
    """From 1e-4 of the range inside, where the link is flat, it would still be near the bound after twelve steps."""
    steps = run(problem(start), steps=12)
    assert abs(steps[0].phi.item() - start) == pytest.approx(0.1)
    assert abs(steps[-1].phi.item() - start) > 1.2
    inside = run(problem(0.5), steps=1)[0].phi.item()
    assert inside == pytest.approx(0.5)
