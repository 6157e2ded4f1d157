"""The verdict: start against tuned, on prompts and seeds that tuning never saw, paired by seed.

The interval is Student's, over prompts: samples of one prompt are averaged first, since they are not independent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from genbo.bilevel.problem import Problem
from genbo.diffusion.seed import Batch


def draw(problem: Problem, phi: Tensor, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores (K, n) and images (n, C, H, W) at phi (P,), a chunk of the batch at a time."""
    for chunk in problem.chunks(batch, members=1):
        images = problem.images(phi, chunk)[0]
        with torch.no_grad():
            yield problem.score(images, chunk.prompts).cpu(), images.float().cpu()


@dataclass(frozen=True)
class Comparison:
    """Two means of a score, their difference and its interval."""

    start: float
    tuned: float
    difference: float
    interval: tuple[float, float]
    samples: int
    groups: int  # prompts: what the interval counts

    @property
    def verdict(self) -> str:
        low, high = self.interval
        return "better" if low > 0 else "worse" if high < 0 else "no measurable difference"


def compare(start: Tensor, tuned: Tensor, prompts: tuple[str, ...], level: float = 0.95) -> Comparison:
    """Scores (N,) of the same samples at the start and tuned; at least two different prompts, or two samples of one."""
    difference = (tuned - start).double()
    groups = list(dict.fromkeys(prompts))
    if len(groups) > 1:
        of = torch.tensor([groups.index(p) for p in prompts])
        total = torch.zeros(len(groups), dtype=torch.float64).index_add(0, of, difference)
        means = total / torch.bincount(of)
    else:
        means = difference
    half = student_t((1 + level) / 2, len(means) - 1) * means.std().item() / len(means) ** 0.5
    mean = means.mean().item()
    return Comparison(
        start=start.double().mean().item(),
        tuned=tuned.double().mean().item(),
        difference=mean,
        interval=(mean - half, mean + half),
        samples=len(prompts),
        groups=len(means),
    )


def student_t(p: float, degrees: int) -> float:
    """Student's quantile: exact for 1 and 2 degrees, else Hill's expansion in 1 / degrees (under 1 % off at 3)."""
    if degrees == 1:
        return float(torch.tan(torch.tensor(torch.pi * (p - 0.5), dtype=torch.float64)))
    if degrees == 2:
        return (2 * p - 1) * (2 / (4 * p * (1 - p))) ** 0.5
    z, n = NormalDist().inv_cdf(p), degrees
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + g1 / n + g2 / n**2 + g3 / n**3 + g4 / n**4
