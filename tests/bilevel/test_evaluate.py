"""The comparison of start and tuned, against numbers worked out by hand; quantiles are those of a printed table."""

from __future__ import annotations

import math

import pytest
import torch

from genbo.bilevel.verdict import Comparison, compare

T_2 = {0.95: 4.302653, 0.90: 2.919986}  # Student's quantile for two degrees of freedom, by the level of the interval


def scores(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def half(found: Comparison) -> float:
    low, high = found.interval
    assert (low + high) / 2 == pytest.approx(found.difference)
    return (high - low) / 2


@pytest.mark.parametrize("level", [0.95, 0.90])
def test_with_fresh_prompts_the_differences_of_prompts_are_what_varies(level):
    """Differences 1, 2, 3 of scores that lie far apart: mean 2, standard deviation 1, two degrees of freedom."""
    start = scores(0, 100, -50)
    found = compare(start, start + scores(1, 2, 3), ("a", "b", "c"), level=level)
    assert found.difference == pytest.approx(2.0)
    assert half(found) == pytest.approx(T_2[level] / math.sqrt(3), rel=1e-6)
    assert found.start == pytest.approx(50 / 3) and found.tuned == pytest.approx(50 / 3 + 2)


def test_an_interval_is_of_95_percent_unless_another_is_asked_for():
    found = compare(scores(0, 0, 0), scores(1, 2, 3), ("a", "b", "c"))
    assert half(found) == pytest.approx(T_2[0.95] / math.sqrt(3), rel=1e-6)


def test_the_same_samples_stand_on_both_sides_of_a_difference():
    """What prompts or seeds have in common with themselves is not noise: a gain of 1 everywhere is certain."""
    start = scores(3, -7, 20, 1000)
    for fresh, prompts in ((True, "abcd"), (False, "aabb")):
        found = compare(start, start + 1, tuple(prompts), fresh_prompts=fresh)
        assert half(found) == pytest.approx(0, abs=1e-9) and found.verdict == "better"


def test_without_fresh_prompts_the_samples_vary_within_their_prompts():
    """a: 1, 3 and b: 10, 14 leave squares of 2 + 8 for 4 - 2 degrees: s^2 = 5. Prompts a and b differ, but no sample.

    The error is sqrt(s^2 (1/2 + 1/2)) / 2.
    """
    prompts = ("a", "b", "b", "a")
    found = compare(scores(0, 5, 5, 0), scores(1, 15, 19, 3), prompts, fresh_prompts=False)
    assert found.difference == pytest.approx((2 + 12) / 2)
    assert half(found) == pytest.approx(T_2[0.95] * math.sqrt(5) / 2, rel=1e-6)


def test_every_prompt_counts_the_same_however_many_samples_it_has():
    """a: 1, 2, 3 and b: 10, 10 and c alone; s^2 = 2 / 3 for 6 - 3 degrees."""
    prompts, start = ("a", "a", "a", "b", "b", "c"), scores(7, 7, 7, 1, 1, 4)
    tuned = start + scores(1, 2, 3, 10, 10, -3)
    for fresh in (True, False):
        found = compare(start, tuned, prompts, fresh_prompts=fresh)
        assert found.start == pytest.approx((7 + 1 + 4) / 3)
        assert found.difference == pytest.approx((2 + 10 - 3) / 3)
        assert found.tuned == pytest.approx(found.start + found.difference)
        assert found.samples == 6
    error = math.sqrt(2 / 3 * (1 / 3 + 1 / 2 + 1)) / 3
    assert half(found) == pytest.approx(3.182446 * error, rel=0.01)  # three degrees, where Hill's expansion is 1 % off
    by_prompt = compare(start, tuned, prompts)
    spread = torch.tensor([2.0, 10.0, -3.0]).std().item()
    assert half(by_prompt) == pytest.approx(T_2[0.95] * spread / math.sqrt(3), rel=1e-6)


def test_a_single_prompt_is_told_by_its_samples():
    """1, 2, 3: s = 1 and two degrees, as there is no other prompt to tell how prompts differ."""
    for fresh in (True, False):
        found = compare(scores(5, 6, 7), scores(6, 8, 10), ("a",) * 3, fresh_prompts=fresh)
        assert found.difference == pytest.approx(2) and half(found) == pytest.approx(T_2[0.95] / math.sqrt(3), rel=1e-6)


@pytest.mark.parametrize(("prompts", "fresh"), [(("a",), True), (("a",), False), (("a", "b"), False)])
def test_what_leaves_no_degree_of_freedom_is_an_error(prompts, fresh):
    with pytest.raises(ValueError, match="two prompts, or two samples of a prompt"):
        compare(torch.zeros(len(prompts)), torch.ones(len(prompts)), prompts, fresh_prompts=fresh)


def test_two_prompts_have_one_degree_of_freedom():
    found = compare(scores(0, 0), scores(1, 3), ("a", "b"))
    assert found.difference == 2 and half(found) == pytest.approx(12.7062, rel=1e-5)  # sd sqrt(2) over sqrt(2)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ((2, 3, 4), "better"),
        ((-2, -3, -4), "worse"),
        ((1, 2, 3), "no measurable difference"),
        ((-1, -2, -3), "no measurable difference"),
        ((0, 0, 0), "no measurable difference"),
    ],
)
def test_the_verdict_is_where_the_interval_lies(differences, verdict):
    """All with a standard deviation of 1, or none, so the interval reaches 2.48 to either side."""
    assert compare(scores(5, 5, 5), scores(5, 5, 5) + scores(*differences), ("a", "b", "c")).verdict == verdict
