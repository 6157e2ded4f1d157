"""Two tuners on the same held-out samples: which is ahead, over repeated runs with seeds of their own.

D (R, P) is the difference of what two tuners reach, a row a repeat and a column a prompt. Repeats differ by the luck of
tuning, prompts by what they ask for, so both are counted:

    half width^2 = (t_{R-1} s_repeats)^2 + (t_{P-1} s_prompts)^2

with s_repeats^2 the variance of the row means over R, and s_prompts^2 what the column means vary by beyond the
residual, over P (the two-way random-effects analysis of variance; Searle, Casella and McCulloch 1992, chapter 4). With
one repeat only these very runs are compared, and the interval is that of `verdict.compare`.

Where several tuners are compared with one, each interval is at Bonferroni's level, so that all hold together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genbo.bilevel.interval import student_t
from genbo.bilevel.verdict import compare

Standing = Literal["ahead", "behind", "no measurable difference"]


@dataclass(frozen=True)
class Contest:
    """The mean difference of two tuners, first minus second, with its interval; above 0 the first is ahead."""

    difference: float
    interval: tuple[float, float]

    @property
    def standing(self) -> Standing:
        """Where the first stands."""
        low, high = self.interval
        return "ahead" if low > 0 else "behind" if high < 0 else "no measurable difference"


def against(
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    prompts: Sequence[str],
    *,
    fresh_prompts: bool,
    comparisons: int = 1,
    level: float = 0.95,
) -> Contest:
    """The contest of two tuners, each by the scores (N,) that every repeat reached on the held-out samples.

    Args:
        first: of each repeat the scores (N,); R of them.
        second: the same of the other tuner, on the same prompts and seeds.
        prompts: of each sample, N of them, the same in all repeats.
        fresh_prompts: whether tuning never saw these prompts, so that the interval counts them too.
        comparisons: how many intervals are to hold together.
        level: of all of them together, in (0, 1).

    Raises:
        ValueError: where a single repeat has too few samples for an interval.
    """
    level = 1 - (1 - level) / comparisons
    if len(first) == 1:
        found = compare(second[0], first[0], prompts, fresh_prompts=fresh_prompts, level=level)
        return Contest(found.difference, found.interval)
    gaps = torch.stack([a.double() - b.double() for a, b in zip(first, second, strict=True)])  # (R, N)
    table = _by_prompt(gaps, prompts)
    mean = table.mean().item()
    half = _of_repeats(table, level)
    if fresh_prompts and table.shape[1] > 1:
        half = math.hypot(half, _of_prompts(table, level))
    return Contest(mean, (mean - half, mean + half))


def _by_prompt(rows: Tensor, prompts: Sequence[str]) -> Tensor:
    """(R, N) -> (R, P), the mean of each prompt's samples."""
    names = list(dict.fromkeys(prompts))
    of = torch.tensor([names.index(prompt) for prompt in prompts])
    total = torch.zeros(len(rows), len(names), dtype=torch.float64).index_add(1, of, rows)
    return total / torch.bincount(of)


def _of_repeats(table: Tensor, level: float) -> float:
    repeats = len(table)
    return student_t((1 + level) / 2, repeats - 1) * table.mean(1).std().item() / math.sqrt(repeats)


def _of_prompts(table: Tensor, level: float) -> float:
    """What prompts add: the variance of their means beyond what repeats and chance explain."""
    repeats, prompts = table.shape
    residual = table - table.mean(0) - table.mean(1, keepdim=True) + table.mean()
    chance = residual.square().sum().item() / ((repeats - 1) * (prompts - 1))
    between = repeats * table.mean(0).var().item()
    excess = max(0.0, between - chance) / (repeats * prompts)
    return student_t((1 + level) / 2, prompts - 1) * math.sqrt(excess)
