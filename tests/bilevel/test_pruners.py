"""Successive halving by hand, and candidates that climb rungs on a world whose optimum is known on paper."""

from __future__ import annotations

import math

import pytest
import torch

from genbo.bilevel import search_loop
from genbo.bilevel.candidate_value import CandidateValue
from genbo.bilevel.loop import Budget
from genbo.bilevel.problem import Problem
from genbo.bilevel.pruners.asha import Asha
from genbo.bilevel.pruners.hyperband import Hyperband
from genbo.bilevel.searchers.grid import Grid
from genbo.bilevel.searchers.random import Random
from genbo.bilevel.trials import NotTheSame
from genbo.bilevel.tunables.guidance import Guidance
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.process import process_of
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Seed
from genbo.rewards.quadratic import Quadratic
from tests.oracles import gaussian_world_moments

STEPS, SAMPLES, TARGET, BOUNDS = 4, 64, 2.0, (0.0, 6.0)
ROWS = 2 * STEPS  # network rows of a sample, which is guided at every step


def problem() -> Problem:
    model = Gaussian({"a": [1.0]}, std=0.5).open()
    tunable = Guidance(start=5.0, bounds=BOUNDS)
    reward = Quadratic([TARGET]).open()
    return Problem(process_of(model, Ddim(STEPS), Plain(5.0)), (tunable,), ((1.0, reward),))


def on_paper(weight: float) -> float:
    """E of -(x - TARGET)^2 at a guidance weight."""
    mu, variance = gaussian_world_moments(torch.full((STEPS,), weight, dtype=torch.float64), 1.0, 0.5, 1.2, 8.0)
    return -((mu - TARGET) ** 2 + variance).item()


BEST = max((on_paper(k / 100), k / 100) for k in range(601))


def tried(pruner, trials=40, searcher=None, state=None, seed=1, **budget):
    world, limits = problem(), Budget(trials, SAMPLES, **budget)
    made = search_loop.tune(
        world, CandidateValue(), searcher or Random(), ["a"], limits, Seed(seed), state, pruner=pruner
    )
    return world, list(made)


def test_rungs_by_hand():
    assert Asha().rungs(64) == (4, 16, 64)
    assert Asha(reduction=2, least=8).rungs(60) == (8, 16, 32, 60)
    assert Hyperband().rungs(90) == (10, 30, 90)
    assert Hyperband().rungs(64) == (8, 24, 64)
    assert Asha().rungs(16) == (2, 8, 16)


@pytest.mark.parametrize("reduction", [2, 3, 4])
def test_decisions_are_those_of_successive_halving(reduction):
    """At a rung, candidates in the best 1 / reduction of those that came there go on; of too few, the best so far."""
    pruner = Asha(reduction=reduction, least=2)
    rungs = pruner.rungs(64)[:-1]
    pruning, seen = pruner.open(64, Seed(0)), {samples: list[float]() for samples in rungs}
    stops = 0
    for k in range(60):
        for samples in rungs:
            value = math.sin(3.0 * k) + math.cos(5.0 * k * samples) / samples
            seen[samples].append(value)
            going_on = sorted(seen[samples], reverse=True)[: max(1, len(seen[samples]) // reduction)]
            stopped = pruning.stops(value, samples)
            assert stopped == (value < going_on[-1])
            if stopped:
                stops += 1
                break
        pruning.ended()
    assert 0 < stops < 60


@pytest.mark.parametrize("pruner", [Asha(), Hyperband()], ids=["asha", "hyperband"])
def test_it_ends_at_the_optimum_and_each_candidate_costs_its_own_samples(pruner):
    _, steps = tried(pruner)
    rungs, spent = pruner.rungs(SAMPLES), 0
    for step in steps:
        assert step.samples in rungs
        assert step.state.cost["image_forwards"] - spent == step.samples * ROWS
        spent = step.state.cost["image_forwards"]
        assert len(step.rungs) == (rungs.index(step.samples) + (step.samples < SAMPLES))
    whole = [step for step in steps if step.samples == SAMPLES]
    assert steps[0] in whole and 1 < len(whole) < len(steps) / 2
    assert spent < 0.6 * len(steps) * SAMPLES * ROWS
    best = max(whole, key=lambda step: step.objective or -math.inf)
    assert on_paper(best.phi.item()) > BEST[0] - 0.05 and abs(best.phi.item() - BEST[1]) < 0.3
    everything = tried(None)[1]
    assert max(everything, key=lambda step: step.objective or -math.inf).phi == best.phi  # none that was good is lost


def test_a_rung_is_the_mean_of_the_first_samples_and_nothing_is_drawn_twice():
    world, steps = tried(Asha(), trials=6)
    batch = search_loop.batch_of_trial(["a"], Budget(6, SAMPLES), Seed(1), 0, common=True)
    for step in steps:
        scores = world.scores(step.phi[None], batch)[0, 0]
        for samples, value in zip(Asha().rungs(SAMPLES), step.rungs, strict=False):
            assert value == pytest.approx(scores[:samples].mean().item(), rel=1e-9)
        assert step.objective == pytest.approx(scores[: step.samples].mean().item(), rel=1e-9)


def test_the_same_work_buys_more_candidates():
    work = 12 * SAMPLES * ROWS
    plain, pruned = (tried(pruner, trials=200, work=work)[1] for pruner in (None, Asha()))
    assert len(plain) == 12 and len(pruned) > 3 * len(plain)
    for steps in (plain, pruned):
        assert steps[-2].state.cost["image_forwards"] < work <= steps[-1].state.cost["image_forwards"]


def test_the_same_work_comes_nearer_to_the_optimum():
    """The table of docs/search.md, over fewer seeds: regret on paper of the best whole candidate."""
    regrets = {}
    for name, pruner in (("none", None), ("asha", Asha()), ("hyperband", Hyperband())):
        runs = [tried(pruner, trials=150, seed=seed, work=8 * SAMPLES * ROWS)[1] for seed in range(5)]
        whole = [[step for step in steps if step.samples == SAMPLES] for steps in runs]
        best = [max(steps, key=lambda step: step.objective or -math.inf) for steps in whole]
        regrets[name] = sum(BEST[0] - on_paper(step.phi.item()) for step in best) / len(best)
    assert 2 * regrets["asha"] < regrets["none"] and 2 * regrets["hyperband"] < regrets["none"]


@pytest.mark.parametrize("pruner", [Asha(), Hyperband()], ids=["asha", "hyperband"])
def test_resumed_at_any_candidate_it_makes_the_same_trials_on_the_same_rungs(pruner):
    _, whole = tried(pruner, trials=16)
    for stop in range(1, 16):
        _, rest = tried(pruner, trials=16, state=whole[stop - 1].state)
        assert [(s.phi, s.samples, s.rungs, s.state.cost) for s in whole[stop:]] == [
            (s.phi, s.samples, s.rungs, s.state.cost) for s in rest
        ]


def test_rungs_of_another_pruner_are_not_gone_on_with():
    _, whole = tried(Asha(), trials=12)
    stopped = next(k for k, step in enumerate(whole) if step.samples == 4)
    with pytest.raises(NotTheSame, match="not stopped where"):
        tried(Asha(reduction=3, least=4), trials=12, state=_as_if_on(whole[stopped].state))


def _as_if_on(state):
    """A state whose trials reached the rungs (4, 12, 36) of another pruner, where its stops would be elsewhere."""
    table = dict(state.optimizer)
    table["rungs"] = torch.cat([table["rungs"], torch.zeros(len(table["rungs"]), 1, dtype=torch.float64)], dim=1)
    table["samples"] = torch.full_like(table["samples"], 4.0)
    from dataclasses import replace

    return replace(state, optimizer=table)


def test_a_candidate_that_fails_on_its_first_samples_costs_no_more(monkeypatch):
    world = problem()
    columns = Problem.columns

    def broken(self, phi, batch):
        return [seen * (torch.nan if phi.max() > 3 else 1.0) for seen in columns(self, phi, batch)]

    monkeypatch.setattr(Problem, "columns", broken)
    steps = list(search_loop.tune(world, CandidateValue(), Grid(), ["a"], Budget(9, SAMPLES), Seed(0), pruner=Asha()))
    failed = [step for step in steps if step.status == "non_finite"]
    assert failed and all(step.samples == 4 and step.rungs == () for step in failed)
    assert all(step.phi.item() <= 3 for step in steps if step not in failed)
    again = search_loop.tune(
        problem(), CandidateValue(), Grid(), ["a"], Budget(9, SAMPLES), Seed(0), steps[4].state, pruner=Asha()
    )
    assert [step.samples for step in again] == [step.samples for step in steps[5:]]
