"""What every pruner promises: rungs that rise to all samples, and decisions that are the same once it is resumed."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest

from genbo.bilevel.trials import Candidate, NotTheSame, Pruner, Trial, replayed
from genbo.diffusion.seed import Seed

SAMPLES = 64


def climbed(pruner: Any, values: list[float], seed: int = 0) -> list[Trial]:
    """Candidates whose value is the same at each rung, one after the other."""
    pruning, rungs, done = pruner.open(SAMPLES, Seed(seed)), pruner.rungs(SAMPLES), []
    for value in values:
        reached: list[float] = []
        stopped = False
        for samples in rungs[:-1]:
            reached.append(value)
            stopped = pruning.stops(value, samples)
            if stopped:
                break
        pruning.ended()
        samples = rungs[len(reached) - 1] if stopped else rungs[-1]
        before = reached[:-1] if stopped else reached
        done.append(Trial(Candidate((0.5,)), value, (*before, value) if stopped else tuple(before), samples / SAMPLES))
    return done


VALUES = [math.sin(7.0 * k) for k in range(30)]


@pytest.fixture
def pruner(pruner_class, example):
    return example(pruner_class)


def test_it_is_whole(pruner):
    for name in ("why_not", "rungs", "open"):
        wanted = list(inspect.signature(getattr(Pruner, name)).parameters)[1:]
        assert list(inspect.signature(getattr(pruner, name)).parameters) == wanted


@pytest.mark.parametrize("samples", [8, 16, 60, 64, 1000])
def test_rungs_rise_to_all_samples(pruner, samples):
    assert pruner.why_not(samples) is None
    rungs = pruner.rungs(samples)
    assert len(rungs) >= 2 and list(rungs) == sorted(set(rungs)) and rungs[0] >= 2 and rungs[-1] == samples


def test_too_few_samples_are_refused_with_the_remedy(pruner):
    reason = pruner.why_not(2)
    assert reason is not None and "; " in reason


def test_it_stops_the_worse_and_never_the_first_or_the_best_so_far(pruner):
    done = climbed(pruner, VALUES)
    assert done[0].share == 1 and any(trial.share < 1 for trial in done)
    best = -math.inf
    for trial in done:
        assert trial.share == 1 or trial.value < best
        best = max(best, trial.value)


def test_it_depends_on_the_seed_and_what_it_saw_alone(pruner):
    assert climbed(pruner, VALUES) == climbed(pruner, VALUES)


def test_resumed_at_every_trial_it_stops_the_same(pruner):
    whole, rungs = climbed(pruner, VALUES), pruner.rungs(SAMPLES)
    for stop in range(len(VALUES)):
        pruning = replayed(pruner.open(SAMPLES, Seed(0)), rungs, whole[:stop])
        trial, decisions = whole[stop], []
        for samples in rungs[: len(trial.rungs)]:
            decisions.append(pruning.stops(trial.value, samples))
        early = trial.share < 1
        assert decisions == [False] * (len(decisions) - early) + [True] * early


def test_trials_that_it_would_not_have_stopped_are_refused(pruner):
    rungs = pruner.rungs(SAMPLES)
    strange = Trial(Candidate((0.5,)), 1.0, (1.0,), rungs[0] / SAMPLES)
    with pytest.raises(NotTheSame):
        replayed(pruner.open(SAMPLES, Seed(0)), rungs, [strange])
