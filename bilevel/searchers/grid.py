"""Grid search: every point of a grid as fine as the trials allow, in an order drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from genbo.bilevel.trials import Candidate

if TYPE_CHECKING:
    from genbo.bilevel.trials import Search, Space
    from genbo.diffusion.seed import Seed


@dataclass(frozen=True)
class Grid:
    """With `ends` the outermost points are the ends of each range; else every point is the middle of a cell."""

    ends: bool = False

    def why_not(self, space: Space, trials: int) -> str | None:
        beside = space.first is not None and bool(space.numbers)  # of choices alone, the first is a point of the grid
        least = _combinations(space) * 2 ** len(space.numbers) + beside
        if trials < least:
            sides = "1 dimension" if space.size == 1 else f"{space.size} dimensions"
            return f"a grid of {sides} needs {least} trials at least; raise the budget, or take gp or tpe"
        return None

    def open(self, space: Space, trials: int, seed: Seed) -> Search:
        first = [] if space.first is None else [space.first]
        points = points_of(space, trials - len(first), ends=self.ends)
        return GridSearch(first, [point for point in points if point not in first], seed)


def points_of(space: Space, trials: int, *, ends: bool = False) -> list[Candidate]:
    """As many levels a number as fit into `trials`, the first numbers having one more where that still fits."""
    levels = [1] * len(space.numbers)
    while levels:
        finer = levels.copy()
        finer[levels.index(min(levels))] += 1
        if _count(finer, space) > trials:
            break
        levels = finer
    numbers = product(*(_levels(n, ends) for n in levels))
    words = [dict(zip(space.choices, chosen, strict=True)) for chosen in product(*space.choices.values())]
    return [Candidate(shares, chosen) for shares in numbers for chosen in words]


def _levels(count: int, ends: bool) -> list[float]:
    if ends and count > 1:
        return [k / (count - 1) for k in range(count)]
    return [(k + 0.5) / count for k in range(count)]


def _combinations(space: Space) -> int:
    found = 1
    for words in space.choices.values():
        found *= len(words)
    return found


def _count(levels: list[int], space: Space) -> int:
    found = _combinations(space)
    for count in levels:
        found *= count
    return found


class GridSearch:
    """`first`, then all points once, and again in the same order: values are noisy, and a second look is not wasted."""

    def __init__(self, first: list[Candidate], points: list[Candidate], seed: Seed) -> None:
        import torch

        order = torch.randperm(len(points), generator=seed.child("order").generator())
        self._points: list[Candidate] = [*first, *(points[k] for k in order.tolist())]
        self._at = 0

    def ask(self) -> Candidate:
        return self._points[self._at % len(self._points)]

    def tell(self, value: float, share: float = 1.0) -> None:
        self._at += 1
