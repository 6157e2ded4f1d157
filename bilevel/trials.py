"""What every search has: a space, trials in it, and the asking and telling between them.

A search knows nothing of diffusion: it is asked for a candidate, told how good that was, and asked again. The value of
a trial is noisy, and higher is better. Each search is deterministic in its seed and in what it was told, so a search
that was stopped goes on after it has been told the same trials once more (`resumed`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from genbo.diffusion.seed import Seed


FIRST, EACH = 8, 4  # trials of a search: at least, and more for each number


@dataclass(frozen=True)
class Candidate:
    """One place in a space: shares (P,) in [0, 1], and a word for each choice."""

    shares: tuple[float, ...] = ()
    words: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Space:
    """`numbers` names P numbers, each a share of its range in [0, 1]; `choices` has words to choose from, by name.

    `first` is tried before any other candidate, so that no search ends worse than where it began.
    """

    numbers: tuple[str, ...] = ()
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    first: Candidate | None = None

    @property
    def size(self) -> int:
        """How many things are searched over."""
        return len(self.numbers) + len(self.choices)


@dataclass(frozen=True)
class Trial:
    """A point and the value that was measured there, NaN where it failed."""

    point: Candidate
    value: float


class Search(Protocol):
    """A search under way."""

    def ask(self) -> Candidate:
        """The next point to try; asked again before it is told, the same one."""

    def tell(self, value: float) -> None:
        """The value of the point that was asked for last. NaN says that it failed."""


class Searcher(Protocol):
    """A file in `bilevel/searchers/` each, whose fields are its options."""

    def why_not(self, space: Space, trials: int) -> str | None:
        """None, or a sentence: why it cannot search this space with so many trials, and what to do instead."""

    def open(self, space: Space, trials: int, seed: Seed) -> Search:
        """A search that will be asked at most `trials` times."""


class NotTheSame(ValueError):
    """Trials that are told again are not those that the search would have asked for."""


def resumed(search: Search, told: Iterable[Trial], tolerance: float = 1e-9) -> Search:
    """The search as it was after these trials, which it asked for itself, in this order.

    Raises NotTheSame where it asks for another point: the space, the seed or the version of a library is another.
    """
    for number, trial in enumerate(told):
        point = search.ask()
        near = all(math.isclose(a, b, abs_tol=tolerance) for a, b in zip(point.shares, trial.point.shares, strict=True))
        if not near or dict(point.words) != dict(trial.point.words):
            raise NotTheSame(f"trial {number} is not the one that this search asks for; start the search anew")
        search.tell(trial.value)
    return search


def usual_trials(numbers: int) -> int:
    """How many candidates cover a space of so many numbers."""
    return FIRST + EACH * numbers


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the highest value, the first of equals; None where none has succeeded."""
    fine = [trial for trial in trials if math.isfinite(trial.value)]
    return max(fine, key=lambda trial: trial.value) if fine else None
