"""What every searcher promises: candidates of the space, by its seed alone, that are the same once it is resumed."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest

from genbo.bilevel.trials import Candidate, NotTheSame, Searcher, Space, Trial, resumed
from genbo.diffusion.seed import Seed

SPACE, TRIALS, FIRST = Space(("a", "b")), 30, Candidate((0.2, 0.9))
WORDS = Space(("a",), {"kind": ("x", "y")}, Candidate((0.2,), {"kind": "x"}))
ONLY_WORDS = Space((), {"kind": ("x", "y", "z"), "size": ("1", "2")}, Candidate((), {"kind": "z", "size": "1"}))
HALVED = (1.0, 0.25, 0.25, 0.5)  # shares of the samples, trial by trial


def value(candidate: Candidate) -> float:
    if any(share > 0.7 for share in candidate.shares[:1]):
        return math.nan
    return -sum((share - 0.4) ** 2 for share in candidate.shares) + (candidate.words.get("kind") == "y")


def tried(searcher: Any, space: Space, number: int, seed: int = 0, shares: tuple[float, ...] = (1.0,)) -> list[Trial]:
    """Trials that are stopped early where their share of the samples, which is taken in turn, is below 1."""
    search, done = searcher.open(space, TRIALS, Seed(seed)), []
    for k in range(number):
        candidate = search.ask()
        assert search.ask() == candidate, "asked again before it is told, it gives the same candidate"
        done.append(Trial(candidate, value(candidate), share=shares[k % len(shares)]))
        search.tell(done[-1].value, done[-1].share)
    return done


def same(a: Trial, b: Trial) -> bool:
    return a.point == b.point and (a.value == b.value or (math.isnan(a.value) and math.isnan(b.value)))


@pytest.fixture
def searcher(searcher_class, example):
    return example(searcher_class)


def test_it_is_whole(searcher):
    for name in ("why_not", "open"):
        wanted = list(inspect.signature(getattr(Searcher, name)).parameters)[1:]
        assert list(inspect.signature(getattr(searcher, name)).parameters) == wanted


def test_candidates_are_of_the_space_and_depend_on_the_seed_alone(searcher):
    assert searcher.why_not(SPACE, TRIALS) is None
    found = tried(searcher, SPACE, 10)
    assert all(len(trial.point.shares) == 2 and not trial.point.words for trial in found)
    assert all(0 <= share <= 1 for trial in found for share in trial.point.shares)
    assert len({trial.point.shares for trial in found}) > 5
    assert all(map(same, found, tried(searcher, SPACE, 10)))


def test_candidates_stay_inside_the_space_to_the_end(searcher):
    """Begun in a corner, where each step can lead outside."""
    corner = Candidate((0.0, 1.0))
    for trial in tried(searcher, Space(SPACE.numbers, first=corner), TRIALS):
        assert all(0 <= share <= 1 for share in trial.point.shares)


def test_the_first_candidate_is_where_the_space_says(searcher):
    space = Space(SPACE.numbers, first=FIRST)
    assert searcher.why_not(space, TRIALS) is None
    assert tried(searcher, space, 1)[0].point.shares == pytest.approx(FIRST.shares)


@pytest.mark.parametrize("shares", [(1.0,), HALVED])
@pytest.mark.parametrize("space", [SPACE, WORDS, ONLY_WORDS], ids=["numbers", "both", "words"])
def test_resumed_it_goes_on_as_if_it_had_never_stopped(searcher, space, shares):
    """Stopped after any trial, whole trials or stopped ones, it makes the same trials."""
    if searcher.why_not(space, TRIALS) is not None:
        return
    number = 8
    whole = tried(searcher, space, number, shares=shares)
    for stop in range(number):
        search = resumed(searcher.open(space, TRIALS, Seed(0)), whole[:stop])
        for trial in whole[stop:]:
            assert search.ask().shares == pytest.approx(trial.point.shares) and search.ask().words == trial.point.words
            search.tell(trial.value, trial.share)


def test_trials_that_are_not_its_own_are_refused(searcher):
    strange = Trial(Candidate((0.123456, 0.654321)), 0.0)
    with pytest.raises(NotTheSame):
        resumed(searcher.open(SPACE, TRIALS, Seed(0)), [strange])


def test_words_are_chosen_from_the_space_or_refused_in_a_sentence(searcher):
    if reason := searcher.why_not(WORDS, TRIALS):
        assert "; " in reason, "say what to do instead"
        return
    found = tried(searcher, WORDS, 8)
    assert {trial.point.words["kind"] for trial in found} == {"x", "y"}
    assert found[0].point.words == {"kind": "x"} and found[0].point.shares == pytest.approx((0.2,))
    alone = tried(searcher, ONLY_WORDS, 8)
    assert alone[0].point == ONLY_WORDS.first
    for name, words in ONLY_WORDS.choices.items():
        assert {trial.point.words[name] for trial in alone} <= set(words)
