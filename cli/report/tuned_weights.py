"""What fine-tuning at the best lambda did on the prompts tuned for and on held-out ones: the report on weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genbo.cli.report import number_format

if TYPE_CHECKING:
    from genbo.bilevel.measured import Measured
    from genbo.bilevel.verdict import Comparison
    from genbo.cli.report.held_out_side import Side
    from genbo.cli.report.records import Remark
    from genbo.cli.report.records_weights import PromisedRecord, ReachedRecord, WeightsRow
    from genbo.diffusion.process import Process

Document = dict[str, Any]
Z = 1.959964  # the normal law's 97.5 % quantile


@dataclass(frozen=True)
class Promised:
    """What the law at a lambda gains on the tuning prompts over the pretrained model, by weighted samples."""

    r1: Measured
    r2: Measured
    kl: float
    verdict: str  # of its samples: reliable, doubtful or refuse

    @property
    def is_clear(self) -> bool:
        """Whether there is a gain in r2 to have a share of."""
        return self.verdict != "refuse" and self.r2.mean > Z * error_of(self.r2)

    def document(self) -> PromisedRecord:
        from genbo.cli.report.records_weights import PromisedRecord

        gains = {"r1": self.r1.mean, "r1_se": error_of(self.r1), "r2": self.r2.mean, "r2_se": error_of(self.r2)}
        return PromisedRecord(**gains, kl=self.kl, verdict=self.verdict)  # type: ignore[arg-type]


def error_of(gain: Measured) -> float:
    """The standard error for these very prompts, which are those that the weights are tuned for."""
    return gain.influence.square().sum().sqrt().item() / len(gain.value)


@dataclass(frozen=True)
class Finetuned:
    """Samples of one set of weights: (rewards of both levels, N) on the held-out noise, and the KL of its paths.

    `on_tuned` are samples of the tuning prompts on fresh seeds, where the held-out prompts are others.
    """

    factor: float | None  # of the lambda that was found; None is the pretrained model
    lam: float | None
    side: Side
    kl: tuple[float, float] | None  # and its standard error
    on_tuned: Side | None = None
    promised: Promised | None = None


@dataclass(frozen=True)
class Weights:
    """What came of fine-tuning: the pretrained model first, then one for each factor, 1 among them."""

    tuned: Process
    laws: tuple[Finetuned, ...]
    prompts: tuple[str, ...]
    upper: tuple[float, ...]  # the weights of the upper rewards; the rows that follow are the lower ones
    lower: tuple[float, ...]
    fresh_prompts: bool
    judges: tuple[str, ...] = ()  # names; their rows stand behind those of both levels
    tuned_prompts: tuple[str, ...] = ()  # of each sample `on_tuned`

    def at(self, factor: float | None) -> Finetuned:
        return next(law for law in self.laws if law.factor == factor)

    def scores(self, law: Finetuned, level: str, *, tuned: bool = False) -> Any:
        """(N,), the weighted rewards of a level, or what a judge says, by its name; with `tuned` of those prompts."""
        import torch

        side = law.on_tuned if tuned else law.side
        assert side is not None
        rows = side.scores.double()
        split, end = len(self.upper), len(self.upper) + len(self.lower)
        if level in self.judges:
            return rows[end + self.judges.index(level)]
        weights, rows = (self.upper, rows[:split]) if level == "r1" else (self.lower, rows[split:end])
        return torch.tensor(weights, dtype=torch.float64) @ rows

    def compared(self, factor: float | None, other: float | None, level: str, *, tuned: bool = False) -> Comparison:
        """`factor` after `other`."""
        from genbo.bilevel.verdict import compare

        before, after = (self.scores(self.at(f), level, tuned=tuned) for f in (other, factor))
        if tuned:
            return compare(before, after, self.tuned_prompts, fresh_prompts=False)
        return compare(before, after, self.prompts, fresh_prompts=self.fresh_prompts)

    # -- report.json -----------------------------------------------------------------------------------------

    def document(self) -> list[WeightsRow]:
        """The key `weights` of `report.json`: a row a law, against the pretrained model."""
        from genbo.cli.report.comparison import row_of
        from genbo.cli.report.records_weights import WeightsRow

        rows = []
        for law in self.laws:
            row: Document = {"factor": law.factor, "lam": law.lam, "kl": None, "kl_se": None}
            if law.kl is not None:
                row |= {"kl": law.kl[0], "kl_se": law.kl[1]}
            for level in ("r1", "r2"):
                row[level] = self.scores(law, level).mean().item()
                row[f"{level}_gain"] = None if law.factor is None else row_of(self.compared(law.factor, None, level))
            if self.judges and law.factor is not None:
                row["judges"] = {name: row_of(self.compared(law.factor, None, name)) for name in self.judges}
            if law.factor is not None:
                row["promised"] = law.promised.document() if law.promised else None
                row["on_held_out"] = self.reached(law, tuned=False) if self.fresh_prompts else None
                row["on_tuned"] = self.reached(law, tuned=self.fresh_prompts) if self._has_tuned(law) else None
            rows.append(WeightsRow(**row))
        return rows

    def _has_tuned(self, law: Finetuned) -> bool:
        return law.on_tuned is not None or not self.fresh_prompts

    def reached(self, law: Finetuned, *, tuned: bool) -> ReachedRecord:
        """Both gains on one kind of prompts, the share of the law's, and what a unit of r2 costs or brings in r1.

        With `tuned`, on the samples that were drawn of the tuning prompts beside held-out ones.
        """
        from genbo.cli.report.comparison import row_of
        from genbo.cli.report.records_weights import ReachedRecord

        r1, r2 = (self.compared(law.factor, None, level, tuned=tuned) for level in ("r1", "r2"))
        names = self.judges[: self._judged(law)] if tuned else self.judges
        judges = {name: row_of(self.compared(law.factor, None, name, tuned=tuned)) for name in names}
        share, rate = share_of(r2, law.promised), self._rate(law, r2, tuned=tuned)
        return ReachedRecord(
            r1=row_of(r1),
            r2=row_of(r2),
            share=share and share[0],
            share_interval=share and share[1],
            r1_per_r2=rate and rate[0],
            r1_per_r2_interval=rate and rate[1],
            judges=judges,
        )

    def _judged(self, law: Finetuned) -> int:
        """How many judges have scored the tuning prompts: all but those of whole sets, which come last."""
        assert law.on_tuned is not None
        return len(law.on_tuned.scores) - len(self.upper) - len(self.lower)

    def _rate(self, law: Finetuned, r2: Comparison, *, tuned: bool) -> tuple[float, tuple[float, float]] | None:
        """r1 gained for each unit of r2 and its 95 % interval, by the delta method; None where r2 did not clearly move.

        With rho the ratio of the means, its error is that of the mean of r1 - rho r2, over the gain in r2.
        """
        from genbo.bilevel.verdict import compare

        if r2.verdict == "no measurable difference":
            return None
        start = self.at(None)
        gains = [self.scores(law, n, tuned=tuned) - self.scores(start, n, tuned=tuned) for n in ("r1", "r2")]
        rho = self.compared(law.factor, None, "r1", tuned=tuned).difference / r2.difference
        rest = gains[0] - rho * gains[1]
        prompts, fresh = (self.tuned_prompts, False) if tuned else (self.prompts, self.fresh_prompts)
        low, high = compare(0 * rest, rest, prompts, fresh_prompts=fresh).interval
        half = (high - low) / 2 / abs(r2.difference)
        return rho, (rho - half, rho + half)

    # -- in words --------------------------------------------------------------------------------------------

    def remarks(self, upper: str, lower: str) -> Iterator[Remark]:
        """Sentences: what the tuned weights did, and whether less KL is over-optimised as the curve says."""
        from genbo.cli.report.trust import remark

        names = {"r1": upper, "r2": lower}
        opinions = {name: name for name in self.judges}
        if 1.0 in [law.factor for law in self.laws]:
            gains = [f"{name} {_change(self.compared(1.0, None, level))}" for level, name in (names | opinions).items()]
            yield remark("note", f"The weights tuned at lambda against the pretrained model: {' and '.join(gains)}.")
        for law in self.laws:
            if law.factor is None or law.factor == 1:
                continue
            both = {level: self.compared(law.factor, 1.0, level) for level in names}
            gains = [f"{names[level]} {_change(found)}" for level, found in both.items()]
            text = f"Weights tuned at {law.factor:g} lambda against lambda: {' and '.join(gains)}"
            yield remark("note", f"{text}{_meaning(law.factor, both)}.")


def share_of(r2: Comparison, promised: Promised | None) -> tuple[float, tuple[float, float]] | None:
    """The gain over the law's and its 95 % interval, by the delta method; None where the law has no clear gain."""
    if promised is None or not promised.is_clear:
        return None
    law = promised.r2.mean
    share, half = r2.difference / law, (r2.interval[1] - r2.interval[0]) / 2 / law
    half = math.hypot(half, Z * share * error_of(promised.r2) / law)
    return share, (share - half, share + half)


def _change(found: Comparison) -> str:
    return number_format.change(found.difference, found.interval)


def _meaning(factor: float, both: Mapping[str, Comparison]) -> str:
    """In words, where the samples show it."""
    r1, r2 = both["r1"].verdict, both["r2"].verdict
    none = "no measurable difference"
    if factor < 1 and r2 == "better" and r1 == "worse":
        return ": over-optimised"
    if factor > 1 and r2 == "worse" and r1 == "worse":
        return ": held back too much"
    return ": no measurable difference in either" if r1 == r2 == none else ""
