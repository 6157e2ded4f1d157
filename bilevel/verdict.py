"""The verdict: start against tuned, on prompts and seeds that tuning never saw, paired by seed.

The interval is Student's; it counts prompts or samples, see `compare`. A mean can hide what happened to single prompts:
see `shape`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch
from torch import Tensor

from genbo.bilevel.interval import of_difference, over_prompts, student_t
from genbo.bilevel.measured import MANY_PROMPTS, Measured
from genbo.bilevel.objective import MEAN, Objective
from genbo.bilevel.problem import Problem
from genbo.bilevel.worst_verdict import tails
from genbo.diffusion.seed import Batch

Verdict = Literal["better", "no measurable difference", "worse"]


def draw(problem: Problem, phi: Tensor, batch: Batch) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Samples at phi (P,) without gradients, a chunk of the batch at a time, on the CPU.

    Yields:
        What each scorer sees, scores (n,) or the features (n, D) of a set reward; and images (n, C, H, W) in [0, 1].
    """

    def one(chunk: Batch) -> tuple[list[Tensor], Tensor]:
        with torch.no_grad():
            drawn = problem.drawn(phi, chunk)
            return [x.cpu() for x in problem.seen(drawn)], drawn.images.float().cpu()

    return problem.process.over(batch, one)


@dataclass(frozen=True)
class Ruined:
    """A prompt that is clearly worse, by an interval of its own that lies below zero.

    Attributes:
        prompt: itself.
        difference: the mean of tuned minus start over its samples, in units of the reward; below 0.
        interval: low and high of that difference, at Bonferroni's level.
        samples: of this prompt, 2 or more.
    """

    prompt: str
    difference: float
    interval: tuple[float, float]
    samples: int


@dataclass(frozen=True)
class Shape:
    """How a difference lies over prompts.

    Attributes:
        gained: how many prompts have a mean difference above 0.
        lost: how many have one below 0.
        unchanged: how many have exactly 0.
        median: of the prompts' mean differences, in units of the reward.
        worst: the prompt with the lowest, and that difference.
        ruined: the prompts that are clearly worse, the worst first.
    """

    gained: int
    lost: int
    unchanged: int
    median: float
    worst: tuple[str, float]
    ruined: tuple[Ruined, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Two values of an objective over prompts, such as the mean, their difference and its interval.

    Attributes:
        start: the objective at the start.
        tuned: the same at the tuned values.
        difference: tuned minus start; above 0 is better.
        interval: low and high of the difference.
        samples: on each side.
        groups: what the interval counts, prompts or samples.
        shape: how the difference lies over prompts.
    """

    start: float
    tuned: float
    difference: float
    interval: tuple[float, float]
    samples: int
    groups: int
    shape: Shape

    @property
    def prompts(self) -> int:
        """How many different ones."""
        return self.shape.gained + self.shape.lost + self.shape.unchanged

    @property
    def verdict(self) -> Verdict:
        """`better` or `worse` where the whole interval lies on one side of 0, else `no measurable difference`."""
        low, high = self.interval
        return "better" if low > 0 else "worse" if high < 0 else "no measurable difference"


def compare(
    start: Tensor,
    tuned: Tensor,
    prompts: Sequence[str],
    *,
    fresh_prompts: bool = True,
    level: float = 0.95,
    objective: Objective = MEAN,
) -> Comparison:
    """Start against tuned on the same samples, by Student's interval of the paired difference.

    Every prompt counts the same. With fresh prompts the interval holds for prompts like these: it counts prompts, since
    samples of one prompt are not independent. Without, it holds for new seeds of these very prompts: it counts samples
    within their prompts. Of an objective over the worst prompts see `bilevel.worst_verdict`.

    Args:
        start: scores (N,) at the start.
        tuned: scores (N,) of the same prompts and seeds at the tuned values.
        prompts: of each sample, N of them, in any order.
        fresh_prompts: whether tuning never saw these prompts.
        level: of the interval, in (0, 1).
        objective: over the prompts.

    Returns:
        Both values, their difference and its interval, in units of the reward.

    Raises:
        ValueError: where there are fewer than two of what the interval counts.
    """
    groups = list(dict.fromkeys(prompts))
    of = torch.tensor([groups.index(p) for p in prompts])
    if not objective.is_mean:
        return _compare_worst(start, tuned, prompts, of, objective, fresh_prompts=fresh_prompts, level=level)
    size = torch.bincount(of)

    def by_prompt(x: Tensor) -> Tensor:
        return torch.zeros(len(groups), dtype=torch.float64).index_add(0, of, x.double()) / size

    gains = tuned.double() - start.double()
    difference = by_prompt(gains)
    if fresh_prompts and len(groups) > 1:
        counted, degrees = len(groups), len(groups) - 1
        error = difference.std().item() / len(groups) ** 0.5
    else:
        counted, degrees = len(prompts), len(prompts) - len(groups)
        residual = gains - difference[of]
        error = (residual.square().sum().item() / max(degrees, 1) * (1 / size).sum().item()) ** 0.5 / len(groups)
    if degrees < 1:
        raise ValueError("an interval needs two prompts, or two samples of a prompt; raise evaluate.samples")
    mean, half = difference.mean().item(), student_t((1 + level) / 2, degrees) * error
    return Comparison(
        start=by_prompt(start).mean().item(),
        tuned=by_prompt(tuned).mean().item(),
        difference=mean,
        interval=(mean - half, mean + half),
        samples=len(prompts),
        groups=counted,
        shape=shape(gains, prompts, level=level),
    )


def _compare_worst(
    start: Tensor,
    tuned: Tensor,
    prompts: Sequence[str],
    of: Tensor,
    objective: Objective,
    *,
    fresh_prompts: bool,
    level: float,
) -> Comparison:
    """The same of the worst prompts; `of` is the number of each sample's prompt."""
    found = tails(start, tuned, of, objective, fresh_prompts=fresh_prompts, level=level)
    return Comparison(
        start=found.start,
        tuned=found.tuned,
        difference=found.tuned - found.start,
        interval=found.interval,
        samples=len(prompts),
        groups=found.counted,
        shape=shape(tuned.double() - start.double(), prompts, level=level),
    )


def shape(gains: Tensor, prompts: Sequence[str], *, level: float = 0.95) -> Shape:
    """How the gains (N,) of samples, tuned minus start, lie over their prompts.

    A prompt of two samples or more has Student's interval of its own mean, by its own spread or by that within all
    prompts, whichever is larger: a few samples that happen to agree are no proof. Among many prompts some intervals lie
    below zero by chance, so the level is Bonferroni's: where nothing changed, all hold zero in `level` of all runs.

    Args:
        gains: of each sample, (N,), in units of the reward.
        prompts: of each sample, N of them, in any order.
        level: that all intervals hold at once, in (0, 1).

    Raises:
        ValueError: where there are not as many prompts as gains.
    """
    of: dict[str, list[float]] = {}
    for prompt, gain in zip(prompts, gains.double().tolist(), strict=True):
        of.setdefault(prompt, []).append(gain)
    means = {prompt: sum(values) / len(values) for prompt, values in of.items()}
    squares = {prompt: sum((x - means[prompt]) ** 2 for x in values) for prompt, values in of.items()}
    within = sum(squares.values()) / max(1, len(prompts) - len(of))
    looked_at = {prompt: len(values) for prompt, values in of.items() if len(values) > 1}
    errors = {p: (math.sqrt(max(squares[p] / (n - 1), within) / n), n) for p, n in looked_at.items()}
    return shape_of(means, ruined_of(means, errors, level=level))


def ruined_of(
    means: Mapping[str, float], errors: Mapping[str, tuple[float, int]], *, level: float = 0.95
) -> tuple[Ruined, ...]:
    """The prompts whose mean lies below zero by Student's interval at Bonferroni's level, the worst first.

    Args:
        means: of each prompt's gains, in units of the reward.
        errors: the standard error of that mean and its number of samples, 2 or more, for prompts that are looked at.
        level: that all intervals hold at once, in (0, 1).
    """
    found = []
    for prompt, (error, n) in errors.items():
        mean, half = means[prompt], student_t(1 - (1 - level) / 2 / len(errors), n - 1) * error
        if mean + half < 0:
            found.append(Ruined(prompt, mean, (mean - half, mean + half), n))
    return tuple(sorted(found, key=lambda prompt: prompt.difference))


def shape_of(means: Mapping[str, float], ruined: tuple[Ruined, ...] = ()) -> Shape:
    """The same of the mean gain of each prompt."""
    values = list(means.values())
    gained, lost = sum(x > 0 for x in values), sum(x < 0 for x in values)
    worst = min(means.items(), key=lambda pair: pair[1])
    return Shape(gained, lost, len(values) - gained - lost, median(values), worst, ruined)


def compare_laws(
    start: Measured,
    tuned: Measured,
    prompts: Sequence[str],
    *,
    samples: int,
    shared: bool,
    fresh_prompts: bool,
    reliable: bool,
) -> Comparison:
    """A number of two laws of which `samples` in all are known, each measured for every prompt, values (C,).

    `shared`: both by the same samples. With fresh prompts the interval counts prompts, else samples; without samples,
    of laws that are known exactly, it has no width. A single prompt gets an interval of its own only where the weights
    are `reliable` at both laws and it has two samples or more.
    """
    gap = tuned.value - start.value
    counts_prompts = fresh_prompts and len(gap) > 1  # it is to hold for prompts never seen
    interval = over_prompts(gap) if counts_prompts else of_difference(start, tuned, shared=shared)
    means = dict(zip(prompts, gap.tolist(), strict=True))
    each = samples // len(prompts)
    errors = _errors_of(start, tuned, prompts, shared) if reliable and each > 1 else {}
    by_prompts = len(gap) >= (2 if fresh_prompts else MANY_PROMPTS)
    counted = len(gap) if by_prompts else samples
    gains = shape_of(means, ruined_of(means, {prompt: (error, each) for prompt, error in errors.items()}))
    return Comparison(start.mean, tuned.mean, gap.mean().item(), interval, samples, counted, gains)


def _errors_of(start: Measured, tuned: Measured, prompts: Sequence[str], shared: bool) -> dict[str, float]:
    """The standard error of each prompt's gain."""
    if shared:
        squares = (tuned - start).influence.square().sum(1)
    else:
        squares = start.influence.square().sum(1) + tuned.influence.square().sum(1)
    return dict(zip(prompts, squares.sqrt().tolist(), strict=True))
