"""Rewards under `keep:` in the report of a search for lambda: the held-out law against each level."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from genbo.cli.report.comparison import row_of, unjudged
from genbo.cli.report.records import KeptRow

if TYPE_CHECKING:
    from genbo.bilevel.problem import Constraint
    from genbo.cli.report.lambda_pair import Pair


@dataclass(frozen=True)
class KeptLaws:
    """A constraint, and both lambdas with its reward in the upper one's place; None where it gives no number."""

    constraint: Constraint
    pair: Pair | None

    def row(self) -> KeptRow:
        """Against its level: broken only where the interval excludes that it was kept.

        A level relative to the start is tested by the difference of both laws, an absolute one by the tuned law alone.
        """
        level, pair = self.constraint.at_least, self.pair
        if pair is None or not pair.has_enough_samples:
            why = (
                "its held-out samples are too few" if pair else "its score of a held-out sample is not a finite number"
            )
            return KeptRow(**unjudged(why).given(), at_least=level, gap=None, held=False, broken=False)
        row = row_of(pair.compared("r1"))
        assert row.start is not None
        if self.constraint.relative_to_start:
            against, level = row, level + row.start
        else:
            against = row_of(_against(pair, level).compared("r1"))
        offset = self.constraint.at_least if self.constraint.relative_to_start else 0.0
        assert against.difference is not None and against.interval[1] is not None
        gap, most = against.difference - offset, against.interval[1] - offset
        return KeptRow(**row.given(), at_least=level, gap=gap, held=gap >= 0, broken=most < 0)


def _against(pair: Pair, level: float) -> Pair:
    """The tuned law against a law that is known to have this level."""
    from genbo.bilevel.measured import Measured

    known = pair.tuned.r1
    flat = Measured(known.value * 0 + level, known.influence * 0)
    return replace(pair, start=replace(pair.tuned, r1=flat), shared=True)
