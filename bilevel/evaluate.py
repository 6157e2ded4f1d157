"""The verdict: start against tuned, on prompts and seeds that tuning never saw, paired by seed.

The interval is Student's; what it counts depends on what it may speak of: see `compare`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genbo.bilevel.interval import student_t
from genbo.bilevel.problem import Problem
from genbo.diffusion.seed import Batch


def draw(problem: Problem, phi: Tensor, batch: Batch) -> Iterator[tuple[list[Tensor], Tensor]]:
    """What each scorer sees, and images (n, C, H, W), at phi (P,), a chunk of the batch at a time."""

    def one(chunk: Batch) -> tuple[list[Tensor], Tensor]:
        with torch.no_grad():
            drawn = problem.drawn(phi, chunk)
            return [x.cpu() for x in problem.seen(drawn)], drawn.images.float().cpu()

    return problem.process.over(batch, one)


@dataclass(frozen=True)
class Comparison:
    """Two means of a score, their difference and its interval."""

    start: float
    tuned: float
    difference: float
    interval: tuple[float, float]
    samples: int
    groups: int  # what the interval counts: prompts, or samples

    @property
    def verdict(self) -> str:
        low, high = self.interval
        return "better" if low > 0 else "worse" if high < 0 else "no measurable difference"


def compare(
    start: Tensor, tuned: Tensor, prompts: Sequence[str], *, fresh_prompts: bool = True, level: float = 0.95
) -> Comparison:
    """Scores (N,) of the same samples at the start and tuned, and what can be said of their difference.

    Every prompt counts the same. With fresh prompts the interval speaks of prompts never seen: it counts prompts, since
    samples of one are not independent. Without, it speaks of new seeds of these very prompts: it counts samples within
    their prompts. ValueError where there are fewer than two of what it counts.
    """
    groups = list(dict.fromkeys(prompts))
    of = torch.tensor([groups.index(p) for p in prompts])
    size = torch.bincount(of)

    def by_prompt(x: Tensor) -> Tensor:
        return torch.zeros(len(groups), dtype=torch.float64).index_add(0, of, x.double()) / size

    difference = by_prompt(tuned - start)
    if fresh_prompts and len(groups) > 1:
        counted, degrees = len(groups), len(groups) - 1
        error = difference.std().item() / len(groups) ** 0.5
    else:
        counted, degrees = len(prompts), len(prompts) - len(groups)
        residual = (tuned - start).double() - difference[of]
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
    )
