"""A search that ends as soon as lambda is known within a factor: what it draws at most, and that it goes on."""

from __future__ import annotations

import pytest

from genbo.bilevel.estimators.covariance import Covariance
from genbo.bilevel.lower.reweight import Reweight
from genbo.bilevel.regularization.curve import Optimum
from genbo.bilevel.regularization.rounds import banks_at_most, looks
from genbo.bilevel.regularization.search import SearchBudget, search
from tests.bilevel.tilted import Direct, gaussian

BOUNDS = (0.05, 20.0)
SAMPLES, ROUNDS = looks(8192, 2, 1)


def rounds_of(source: Direct, ratio: float, banks=()):
    return list(search(source, Reweight(), Covariance(), BOUNDS, SearchBudget(SAMPLES, ROUNDS, ratio=ratio), banks))


@pytest.mark.parametrize(
    ("samples", "rounds", "prompts", "expected"),
    [(16384, 3, 1, (1024, 7)), (256, 4, 64, (64, 6)), (1000, 2, 1, (1000, 2)), (5000, 1, 2, (625, 4))],
)
def test_the_first_bank_is_halved_as_long_as_it_is_large_enough_and_no_more_is_drawn(
    samples, rounds, prompts, expected
):
    first, more = looks(samples, rounds, prompts)
    assert (first, more) == expected
    assert first + sum(banks_at_most(first, more)) <= samples + sum(banks_at_most(samples, rounds))


def test_an_optimum_is_precise_where_both_ends_are_within_the_factor():
    best = Optimum("constrained", 1.0, 0.0, "reliable", "", 0.01, (0.8, 1.2))
    assert SearchBudget(ratio=1.25).is_met(best) and not SearchBudget(ratio=1.24).is_met(best)
    assert not SearchBudget(ratio=1.5).is_met(Optimum("interior", 1.0, 0.0, "reliable", ""))
    assert SearchBudget(precision=0.01).is_met(best) and not SearchBudget(precision=0.009).is_met(best)


def test_a_wide_factor_ends_the_search_early_and_a_narrow_one_later():
    drawn = {}
    for ratio in (1.5, 1.04):
        source = Direct(gaussian(1.0, 2), 2)
        end = rounds_of(source, ratio)[-1]
        low, high = end.optimum.interval
        assert end.after == "done" and max(high / end.optimum.lam, end.optimum.lam / low) <= ratio
        assert low < 1 < high
        drawn[ratio] = sum(samples for _, samples, _ in source.drawn)
    assert drawn[1.5] < 8192 and drawn[1.5] < drawn[1.04]


def test_where_the_factor_is_never_met_all_that_is_allowed_is_drawn_and_no_more():
    source, (samples, rounds) = Direct(gaussian(1.0, 2), 2, shift=False), looks(2048, 2, 1)
    assert rounds > 2
    budget = SearchBudget(samples, rounds, ratio=1 + 1e-6)
    assert list(search(source, Reweight(), Covariance(), BOUNDS, budget))[-1].after == "spent"
    assert sum(samples for _, samples, _ in source.drawn) == 2048 * 2


@pytest.mark.slow
def test_it_goes_on_from_its_banks_to_the_same_end():
    whole = Direct(gaussian(1.0, 2), 2)
    rounds = rounds_of(whole, 1.04)
    assert len(rounds) > 2
    for k in range(1, len(rounds)):
        rest = Direct(gaussian(1.0, 2), 2)
        assert rounds_of(rest, 1.04, rounds[k - 1].banks)[-1].optimum == rounds[-1].optimum
        assert rest.drawn == whole.drawn[k:]


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [1.5, 1.1])
def test_looking_again_and_again_leaves_the_interval_its_coverage(ratio):
    """The interval at the look that ends the search: 95 % intended."""
    ends = [rounds_of(Direct(gaussian(1.5, 2), 2, seed=seed), ratio)[-1].optimum.interval for seed in range(100)]
    assert sum(low <= 2 / 3 <= high for low, high in ends) >= 90
