"""What every search has: a space, trials in it, the asking and telling, and the rungs at which a trial is cut short.

A search knows nothing of diffusion: it is asked for a candidate, told how good that was, and asked again. The value of
a trial is noisy, and higher is better. Each search is deterministic in its seed and in what it was told, so a search
that was stopped goes on after it has been told the same trials once more (`resumed`).

A pruner looks at a candidate whose number of samples grows, rung by rung, and stops it where others were better at the
same rung. It knows nothing of the search, and a search is told of a stopped candidate only how many samples it had.
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
    """A point and the value that was measured there, NaN where it failed.

    Attributes:
        point: the candidate.
        value: its mean score, on all samples that it had.
        rungs: its values where a pruner looked at it; the last of them is `value` if it was stopped.
        share: of the samples of a whole trial, those behind `value`; below 1 where a pruner stopped it.
    """

    point: Candidate
    value: float
    rungs: tuple[float, ...] = ()
    share: float = 1.0


class Search(Protocol):
    """A search under way."""

    def ask(self) -> Candidate:
        """The next point to try; asked again before it is told, the same one."""

    def tell(self, value: float, share: float = 1.0) -> None:
        """The value of the point that was asked for last.

        Args:
            value: NaN says that the trial failed.
            share: of the samples of a whole trial, in (0, 1], those behind the value; below 1 the trial was stopped
                early, because others were better on as many samples.
        """


class Searcher(Protocol):
    """A file in `bilevel/searchers/` each, whose fields are its options."""

    def why_not(self, space: Space, trials: int) -> str | None:
        """None, or a sentence: why it cannot search this space with so many trials, and what to do instead."""

    def open(self, space: Space, trials: int, seed: Seed) -> Search:
        """A search that will be asked at most `trials` times."""


class Pruning(Protocol):
    """The rungs of a search under way: candidates climb them one after the other."""

    def stops(self, value: float, samples: int) -> bool:
        """Whether the candidate under way stops at this rung, where `value` is its finite mean over these samples."""

    def ended(self) -> None:
        """The candidate under way has ended, stopped or not; the next `stops` is of another."""


class Pruner(Protocol):
    """A file in `bilevel/pruners/` each, whose fields are its options. It is deterministic in what it is shown."""

    def why_not(self, samples: int) -> str | None:
        """None, or a sentence: why it cannot cut trials of so many samples short, and what to do instead."""

    def rungs(self, samples: int) -> tuple[int, ...]:
        """Numbers of samples at which a candidate is looked at, 2 or more, rising; the last of them is `samples`."""

    def open(self, samples: int, seed: Seed) -> Pruning:
        """Rungs on which no candidate has been yet, of trials of `samples` samples."""


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
        search.tell(trial.value, trial.share)
    return search


def replayed(pruning: Pruning, rungs: Sequence[int], told: Iterable[Trial]) -> Pruning:
    """The pruning as it was after these trials, which reached the same of these rungs.

    Raises NotTheSame where it stops a trial elsewhere.
    """
    for number, trial in enumerate(told):
        stopped = [pruning.stops(value, samples) for value, samples in zip(trial.rungs, rungs, strict=False)]
        pruning.ended()
        early = trial.share < 1 and math.isfinite(trial.value)
        if stopped != [False] * (len(stopped) - early) + [True] * early:
            raise NotTheSame(f"trial {number} is not stopped where it was before; start the search anew")
    return pruning


def usual_trials(numbers: int) -> int:
    """How many candidates cover a space of so many numbers."""
    return FIRST + EACH * numbers


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the highest value among those with the most samples, the first of equals; None without any."""
    fine = [trial for trial in trials if math.isfinite(trial.value)]
    return max(fine, key=lambda trial: (trial.share, trial.value)) if fine else None
