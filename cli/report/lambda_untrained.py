"""What else there is, in the report of a search for lambda: best-of-n, and weighted sums of both rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from genbo.cli.report import number_format
from genbo.cli.report.comparison import row_of
from genbo.cli.report.records import Remark
from genbo.cli.report.records_search import BestOfNAgainst, BestOfNPoint, BestOfNRecord, WeightedSumPoint
from genbo.cli.report.trust import remark
from genbo.cli.report.words import change

if TYPE_CHECKING:
    from genbo.bilevel.regularization.best_of_n import BestOfN
    from genbo.bilevel.regularization.tilted import Law
    from genbo.bilevel.regularization.weighted_sum import WeightedSum
    from genbo.bilevel.verdict import Comparison


@dataclass(frozen=True)
class Against:
    """Best-of-n against the law at the tuned lambda, on held-out samples: the same ones where they are `shared`.

    n was chosen on the search's samples, so that none of its luck is in these.
    """

    best: BestOfN
    tuned: Law
    shared: bool
    prompts: tuple[str, ...]
    samples: int  # in all
    fresh_prompts: bool

    @property
    def has_enough_samples(self) -> bool:
        return self.tuned.fit.verdict != "refuse"

    def compared(self) -> Comparison:
        """The upper reward; `start` is the tuned lambda's, `tuned` that of best-of-n."""
        from genbo.bilevel.verdict import compare_laws

        return compare_laws(
            self.tuned.r1,
            self.best.r1,
            self.prompts,
            samples=self.samples,
            shared=self.shared,
            fresh_prompts=self.fresh_prompts,
            reliable=self.tuned.fit.verdict == "reliable",
        )

    def record(self) -> BestOfNAgainst:
        r1, tuned, best = self.compared(), self.tuned, self.best
        numbers = {"lam_r2": tuned.r2.mean, "lam_kl": tuned.kl.mean, "r2": best.r2.mean, "kl": best.kl.mean}
        return BestOfNAgainst(n=best.n, lam=tuned.lam, r1=row_of(r1), **numbers)


@dataclass(frozen=True)
class Untrained:
    """Best-of-n at several n by so many samples of each tuning prompt, and one of them against the tuned lambda.

    `sums` are the laws of weighted sums of both rewards at the tuned lambda's KL.
    """

    samples: int
    points: tuple[BestOfN, ...]
    against: Against | None
    sums: tuple[WeightedSum, ...] = ()

    def document(self) -> BestOfNRecord:
        return BestOfNRecord(
            samples=self.samples,
            points=[point_of(one) for one in self.points],
            against=self.against.record() if self.against and self.against.has_enough_samples else None,
        )


def point_of(one: BestOfN) -> BestOfNPoint:
    from genbo.bilevel.interval import error

    return BestOfNPoint(
        n=one.n,
        r1=one.r1.mean,
        r1_se=error(one.r1),
        r2=one.r2.mean,
        r2_se=error(one.r2),
        kl=one.kl.mean,
        kl_se=error(one.kl),
    )


def sum_of(one: WeightedSum) -> WeightedSumPoint:
    from genbo.bilevel.interval import error

    law = one.law
    return WeightedSumPoint(
        weight=one.weight,
        strength=one.strength,
        r1=law.r1.mean,
        r1_se=error(law.r1),
        r2=law.r2.mean,
        r2_se=error(law.r2),
        kl=law.kl.mean,
        verdict=law.fit.verdict,
    )


def remark_on(found: BestOfNRecord | None, upper: str, lower: str) -> list[Remark]:
    """Whether best-of-n is better than the tuned lambda at no more KL, in a sentence or two."""
    if found is None or found.against is None:
        return []
    at, number = found.against, number_format.number
    kls = f"(KL {number(at.kl)} and {number(at.lam_kl)} nats)"
    if at.r1.verdict != "better":
        worse, same = f"has a lower {upper} than", f"shows no measurable difference in {upper} from"
        relation = worse if at.r1.verdict == "worse" else same
        text = f"Best-of-{at.n} by {lower}, which needs no tuning, {relation} λ = {number(at.lam)} {kls}"
        return [remark("note", f"{text}: {change(at.r1)}.")]
    return [remark("warning", f"{better(at, upper, lower)} {_price(at, lower)}")]


def better(at: BestOfNAgainst, upper: str, lower: str) -> str:
    """`Best-of-7 by linear, which needs no tuning, has more quadratic at no more KL: ...`."""
    number = number_format.number
    return (
        f"Best-of-{at.n} by {lower}, which needs no tuning, has a higher {upper} than λ = {number(at.lam)} at "
        f"{'less' if (at.kl or 0) < (at.lam_kl or 0) else 'equal'} KL ({number(at.kl)} and {number(at.lam_kl)} nats): "
        f"{number(at.r1.tuned)} and {number(at.r1.start)}, {change(at.r1)}."
    )


def _price(at: BestOfNAgainst, lower: str) -> str:
    number = number_format.number
    return (
        f"Its {lower} is {number(at.r2)} and {number(at.lam_r2)}. It draws {at.n} samples for each that it keeps: "
        "tune λ where that costs too much."
    )
