"""Every searcher on values whose best candidate is known; stopped and resumed; and what each of them is on paper."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from genbo.bilevel.searchers.cmaes import Cmaes
from genbo.bilevel.searchers.consensus import Consensus
from genbo.bilevel.searchers.gp import Gp
from genbo.bilevel.searchers.grid import Grid, points_of
from genbo.bilevel.searchers.random import Random
from genbo.bilevel.searchers.tpe import Tpe
from genbo.bilevel.trials import Candidate, NotTheSame, Space, Trial, best_of, resumed
from genbo.diffusion.seed import Seed

SEARCHERS = {"grid": Grid(), "random": Random(), "tpe": Tpe(), "gp": Gp(), "cmaes": Cmaes(), "consensus": Consensus()}
TWO = Space(("a", "b"))
BEST = (0.3, 0.65)


def hill(candidate: Candidate) -> float:
    return -sum((x - best) ** 2 for x, best in zip(candidate.shares, BEST, strict=False))


def run(searcher, space: Space, trials: int, value=hill, seed: int = 0) -> list[Trial]:
    search, done = searcher.open(space, trials, Seed(seed)), []
    for _ in range(trials):
        candidate = search.ask()
        done.append(Trial(candidate, value(candidate)))
        search.tell(done[-1].value)
    return done


@pytest.mark.parametrize("name", SEARCHERS)
def test_it_finds_a_known_optimum(name):
    """36 trials in two numbers: a 6 x 6 grid lies within 0.12 of any place, and nothing may be much worse."""
    trials, seeds = (16, 1) if name == "gp" else (36, 3)
    found = [best_of(run(SEARCHERS[name], TWO, trials, seed=seed)) for seed in range(seeds)]
    regrets = [-trial.value for trial in found if trial is not None]
    assert SEARCHERS[name].why_not(TWO, 36) is None and len(regrets) == seeds
    assert sorted(regrets)[seeds // 2] < {"random": 0.03, "grid": 0.014, "consensus": 0.01}.get(name, 0.003)


@pytest.mark.parametrize("name", SEARCHERS)
def test_it_stays_within_the_space_and_differs_by_seed(name):
    trials = 9 if name == "gp" else 24
    first, second = (run(SEARCHERS[name], TWO, trials, seed=seed) for seed in (0, 1))
    assert all(0 <= x <= 1 for trial in first for x in trial.point.shares)
    assert [t.point for t in first] != [t.point for t in second]
    assert first == run(SEARCHERS[name], TWO, trials, seed=0)


@pytest.mark.parametrize(
    ("name", "stop"),
    [
        pytest.param(name, stop, marks=pytest.mark.slow if (name, stop) == ("gp", 0) else ())
        for name, stop in product(SEARCHERS, (0, 9))
    ],
)
def test_stopped_and_resumed_it_makes_the_same_trials(name, stop):
    whole = run(SEARCHERS[name], TWO, 11)
    search = resumed(SEARCHERS[name].open(TWO, 11, Seed(0)), whole[:stop])
    rest = []
    for _ in range(11 - stop):
        candidate = search.ask()
        assert search.ask() == candidate
        rest.append(Trial(candidate, hill(candidate)))
        search.tell(rest[-1].value)
    assert whole[:stop] + rest == whole


@pytest.mark.parametrize("name", SEARCHERS)
def test_trials_of_another_search_are_refused(name):
    other = run(SEARCHERS[name], TWO, 6, seed=1)
    with pytest.raises(NotTheSame, match="trial 0"):
        resumed(SEARCHERS[name].open(TWO, 6, Seed(0)), other)


@pytest.mark.parametrize("name", SEARCHERS)
def test_failed_trials_do_not_end_it(name):
    done = run(SEARCHERS[name], TWO, 12 if name == "gp" else 30, lambda c: math.nan if c.shares[0] > 0.6 else hill(c))
    best = best_of(done)
    assert best is not None and best.point.shares[0] <= 0.6 and best.value > -0.1
    assert best_of([Trial(Candidate((0.5,)), math.nan)]) is None


@pytest.mark.parametrize("name", ["grid", "random", "tpe", "gp"])
def test_words_are_chosen_too(name):
    space = Space(("a",), {"sampler": ("ddim", "dpmpp", "euler")})

    def value(candidate: Candidate) -> float:
        return -((candidate.shares[0] - 0.3) ** 2) + (0.5 if candidate.words["sampler"] == "dpmpp" else 0.0)

    best = best_of(run(SEARCHERS[name], space, 14 if name == "gp" else 30, value))
    assert best is not None and best.point.words == {"sampler": "dpmpp"} and best.value > 0.47


@pytest.mark.parametrize(
    ("name", "space", "trials", "words"),
    [
        ("cmaes", Space(("a", "b"), {"sampler": ("ddim", "euler")}), 100, "sampler"),
        ("cmaes", Space(("a",)), 100, "two numbers"),
        ("cmaes", TWO, 17, "18 trials"),
        ("consensus", TWO, 23, "24 trials"),
        ("consensus", Space((), {"sampler": ("ddim", "euler")}), 100, "sampler"),
        ("grid", Space(tuple("abcdef")), 63, "64 trials"),
    ],
)
def test_what_it_cannot_search_is_said_with_what_to_do(name, space, trials, words):
    reason = SEARCHERS[name].why_not(space, trials)
    assert (reason is not None and words in reason and ";" in reason) or "take" in str(reason)
    assert SEARCHERS[name].why_not(TWO, 100) is None


def test_a_grid_is_the_whole_grid_once():
    found = points_of(TWO, 12)
    assert len(found) == 12
    assert {p.shares for p in found} == set(product((0.125, 0.375, 0.625, 0.875), (1 / 6, 0.5, 5 / 6)))
    done = run(Grid(), TWO, 12)
    assert {t.point.shares for t in done} == {p.shares for p in found}
    assert [p.shares for p in points_of(Space(("a",)), 3, ends=True)] == [(0.0,), (0.5,), (1.0,)]


def test_consensus_by_hand():
    """One generation of two particles: both drift to their weighted mean, and the noise is as large as the distance."""
    options = Consensus(particles=2, pull=0.5, spread=0.0, beta=1.0)
    search = options.open(Space(("a",)), 6, Seed(0))
    first = search.ask().shares[0]
    search.tell(1.0)
    second = search.ask().shares[0]
    search.tell(0.0)
    share = math.exp(2) / (1 + math.exp(2))  # values are counted in their standard deviation, which is 1/2
    middle = share * first + (1 - share) * second
    assert search.ask().shares[0] == pytest.approx((first + middle) / 2)


def test_random_search_is_even():
    x = torch.tensor([t.point.shares for t in run(Random(), TWO, 200)], dtype=torch.float64)
    assert (x.mean(0) - 0.5).abs().max() < 4 * (1 / 12 / 200) ** 0.5
    assert ((x < 0.25).double().mean(0) - 0.25).abs().max() < 4 * (0.1875 / 200) ** 0.5
