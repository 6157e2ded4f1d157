"""Two tuners over repeats and prompts: hand-made numbers, coverage, and a tuner against itself."""

from __future__ import annotations

import math

import pytest
import torch

from genbo.bilevel.contest import Contest, against
from genbo.bilevel.interval import student_t
from genbo.bilevel.verdict import compare

PROMPTS = ("a", "b", "c", "d")


def rows(*values) -> list[torch.Tensor]:
    return [torch.tensor(row, dtype=torch.float64) for row in values]


def test_two_repeats_by_hand():
    """Row means 1 and 3; all columns alike, so prompts add nothing: half = t_1 * sqrt(2) / sqrt(2)."""
    found = against(rows([1.0] * 4, [3.0] * 4), rows([0.0] * 4, [0.0] * 4), PROMPTS, fresh_prompts=True)
    half = student_t(0.975, 1) * 1.0
    assert found.difference == 2.0 and found.interval == pytest.approx((2 - half, 2 + half))


def test_prompts_are_counted_where_they_are_fresh():
    """Both repeats agree and prompts differ: repeats add nothing, prompts have variance 5/3 of their four means."""
    first = rows([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0])
    second = rows([0.0] * 4, [0.0] * 4)
    fresh = against(first, second, PROMPTS, fresh_prompts=True)
    half = student_t(0.975, 3) * math.sqrt(5 / 3 / 4)
    assert fresh.interval == pytest.approx((1.5 - half, 1.5 + half))
    assert against(first, second, PROMPTS, fresh_prompts=False).interval == pytest.approx((1.5, 1.5))


def test_one_repeat_is_the_paired_comparison_of_its_samples():
    a, b = torch.randn(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prompts = PROMPTS * 2
    found = against([a], [b], prompts, fresh_prompts=True)
    assert found.interval == compare(b, a, prompts).interval


def test_each_of_several_comparisons_is_wider():
    first, second = rows([1.0] * 4, [3.0] * 4, [2.0] * 4), rows([0.0] * 4, [0.0] * 4, [0.0] * 4)
    one, five = (against(first, second, PROMPTS, fresh_prompts=True, comparisons=n) for n in (1, 5))
    ratio = student_t(0.995, 2) / student_t(0.975, 2)
    assert (five.interval[1] - 2) / (one.interval[1] - 2) == pytest.approx(ratio)


def test_words():
    assert Contest(1.0, (0.5, 1.5)).standing == "ahead"
    assert Contest(-1.0, (-1.5, -0.5)).standing == "behind"
    assert Contest(0.1, (-0.5, 0.7)).standing == "no measurable difference"


@pytest.mark.parametrize(("repeats", "sizes"), [(3, (1.0, 0.3, 0.3)), (5, (0.2, 1.0, 0.5)), (4, (0.5, 0.5, 0.1))])
def test_a_tuner_against_itself_is_seldom_ahead_or_behind(repeats, sizes):
    """2,000 tables with no difference, of repeats, prompts and residuals that vary as given; some are not normal."""
    generator = torch.Generator().manual_seed(repeats)
    wrong, tables = 0, 2000
    by_repeat, by_prompt, residual = sizes
    for _ in range(tables):
        luck = torch.randn(repeats, 1, generator=generator, dtype=torch.float64)
        asked = torch.empty(1, 12, dtype=torch.float64).exponential_(generator=generator) - 1
        rest = torch.randn(repeats, 12, generator=generator, dtype=torch.float64)
        table = by_repeat * luck + by_prompt * asked + residual * rest
        none = torch.zeros(12, dtype=torch.float64)
        found = against(list(table), [none] * repeats, tuple("abcdefghijkl"), fresh_prompts=True)
        wrong += found.standing != "no measurable difference"
    assert wrong / tables < 0.06
