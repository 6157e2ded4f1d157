"""What a lower solver that ends in a law may work with, and laws by the best of several banks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from genbo.bilevel.protocols import LowerSolver
from genbo.bilevel.regularization.bank_sampler import Sampled
from genbo.bilevel.regularization.tilted import VERDICTS, Law, SolveLaw

if TYPE_CHECKING:
    from genbo.bilevel.regularization.bank import Bank
    from genbo.bilevel.regularization.proposal import Shifts
    from genbo.diffusion.seed import Seed


class Source(Protocol):
    """Where samples come from; the same arguments give the same samples, and each round has its own."""

    @property
    def prompts(self) -> Sequence[str]:
        """A row of the bank each."""

    @property
    def shiftable(self) -> bool:
        """Whether noise can be shifted."""

    def draw(self, round: int, samples: int, shifts: Shifts | None) -> Bank:
        """`samples` samples a prompt, of the pretrained model or under shifted noise."""

    def shifts(self, round: int, samples: int, lam: float) -> Shifts:
        """Shifts towards p_lambda, chosen on samples that are thrown away."""


@dataclass(frozen=True)
class ExactWorld:
    """The options of a model whose laws are known on paper, and of its weighted rewards."""

    model: object
    prompts: Sequence[str]
    upper: Sequence[tuple[float, object]]
    lower: Sequence[tuple[float, object]]


@dataclass(frozen=True)
class LawContext:
    """What is there to find laws from; each solver takes what it needs, as its traits and its drawing say.

    Attributes:
        source: draws samples of the pretrained model for the prompts that the lower level is solved for.
        banks: what has been drawn of it so far.
        seed: of a training; by default the source's own.
        on: whose prompts and noise the laws are measured on, where that is not the source.
        exact: the world, where its laws are known on paper.
    """

    source: Source | None = None
    banks: Sequence[Bank] = ()
    seed: Seed | None = None
    on: Source | None = None
    exact: ExactWorld | None = None


LawSolver: TypeAlias = LowerSolver[LawContext, SolveLaw]


def sampler_of(source: Source | None) -> Sampled:
    """The source, where it samples a process.

    Raises:
        ValueError: where there is no process to sample.
    """
    if not isinstance(source, Sampled):
        raise ValueError("this lower solver draws samples of its own: its context needs a process to sample")
    return source


def by_best_bank(solve: Callable[[Bank, float, float | None], Law], banks: Sequence[Bank]) -> SolveLaw:
    """At every lambda the law of the bank that knows it best: the better verdict, then the larger effective size."""

    def best(lam: float, gamma: float | None = None) -> Law:
        laws = [solve(bank, lam, gamma) for bank in banks]
        return min(laws, key=lambda law: (VERDICTS.index(law.fit.verdict), -law.fit.ess))

    return best
