"""What a search for lambda gives to its report: the curve, both lambdas on held-out samples, and the words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from genbo.cli.report import number_format, weights_words
from genbo.cli.report.ascent_summary import about_kept
from genbo.cli.report.comparison import row_of, unjudged
from genbo.cli.report.lambda_pair import Pair, Which
from genbo.cli.report.lambda_rows import point_of
from genbo.cli.report.lambda_untrained import better, remark_on, sum_of
from genbo.cli.report.method import Compared
from genbo.cli.report.records import ComparedRow, HeldOutRow, Level, PromptGain, Remark, RewardRow
from genbo.cli.report.records_search import OptimumRecord, PretrainedMeans, SearchRecord, TiltRecord
from genbo.cli.report.trust import about_held_out, about_judges, remark
from genbo.cli.report.words import capitalised, change, instead, opinions

if TYPE_CHECKING:
    from genbo.bilevel.regularization.curve import Optimum
    from genbo.bilevel.regularization.search import Round
    from genbo.bilevel.regularization.tilted import Fit, Law
    from genbo.cli.report.lambda_keep import KeptLaws
    from genbo.cli.report.lambda_untrained import Untrained
    from genbo.cli.report.records_report import RunReport
    from genbo.cli.report.steering import SteeredLaw
    from genbo.cli.report.tuned_weights import Weights

EXACT = 1e-11  # the relative width of an interval that is numerical alone


@dataclass(frozen=True)
class Pretrained:
    """Both rewards without any tuning, or the reason why they are not known."""

    r1: float | None = None
    r2: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Searched:
    """The search as a `Method`: its last round, and how its answer compares with the start on held-out samples.

    `judges` have a pair with the judge in the upper reward's place, or None where its score is not a finite number.
    """

    last: Round
    pretrained: Pretrained
    upper: str
    lower: str
    solver: str
    law: str  # what the numbers at a lambda are those of, in words
    pair: Pair | None
    weights: Weights | None = None
    tilt: Law | None = None  # of the same E[r2], where the numbers are those of another law
    judges: Mapping[str, Pair | None] = field(default_factory=dict)
    untrained: Untrained | None = None
    keeps: tuple[KeptLaws, ...] = ()
    steering: SteeredLaw | None = None

    # -- report.json -----------------------------------------------------------------------------------------

    def document(self) -> SearchRecord:
        from genbo.bilevel.regularization.curve import within_reach

        reach = within_reach(self.last.curve)
        best, before = self.last.optimum, self.pretrained
        return SearchRecord(
            upper=self.upper,
            lower=self.lower,
            solver=self.solver,
            law=self.law,
            curve=[point_of(point) for point in self.last.curve],
            reach=[reach[0].lam, reach[-1].lam] if reach else None,
            pretrained=None if before.reason else PretrainedMeans(r1=before.r1, r2=before.r2),
            pretrained_reason=before.reason,
            optimum=None if best is None else OptimumRecord(**{**vars(best), "others": list(best.others)}),
            tilt=None if self.tilt is None else TiltRecord(lam=self.tilt.lam, verdict=self.tilt.fit.verdict),
            after=self.last.after,
            samples=[bank.samples for bank in self.last.banks],
            weights=self.weights.document() if self.weights else None,
            steering=self.steering.document() if self.steering else None,
            best_of_n=self.untrained.document() if self.untrained else None,
            weighted_sums=[sum_of(one) for one in self.untrained.sums] if self.untrained else [],
        )

    def compared(self) -> Compared:
        """The verdict is that of the upper reward; what r2 and the KL did is a price, neither better nor worse."""
        pair = self.pair
        if pair is None:
            return Compared(None, {}, {})
        lower = f"{self.lower} (lower level)" if self.lower == self.upper else self.lower
        named: tuple[tuple[str, Which], ...] = ((self.upper, "r1"), (lower, "r2"), ("KL, nats", "kl"))
        rewards = {name: RewardRow(weight=None, **row_of(pair.compared(which)).given()) for name, which in named}
        for name in list(rewards)[1:]:
            rewards[name].verdict = ""
        gains = (pair.tuned.r1.value - pair.start.r1.value).tolist()
        each = pair.samples // len(pair.prompts)
        rows = [PromptGain(prompt=p, difference=g, samples=each) for p, g in zip(pair.prompts, gains, strict=True)]
        held_out = HeldOutRow(
            **row_of(pair.compared("r1")).given(),
            fresh_prompts=pair.fresh_prompts,
            by_prompt=sorted(rows, key=lambda row: row.difference),
        )
        if not pair.has_enough_samples:
            held_out.verdict = None
        return Compared(held_out, rewards, {kept.constraint.name: kept.row() for kept in self.keeps})

    def opinions(self) -> dict[str, ComparedRow]:
        return {name: _opinion(pair) for name, pair in self.judges.items()}

    # -- in words --------------------------------------------------------------------------------------------

    def headline(self, report: RunReport) -> str:
        moved, held_out = instead("regularization", report.phi["regularization"]), report.held_out
        if report.status != "done" or held_out is None:
            return f"{moved}, and no verdict: {report.reason or 'the run has not ended'}."
        gain = change(held_out)
        broken = [name for name, kept in report.keep.items() if kept.broken]
        fell = f", but {' and '.join(broken)} fell below its level" if broken else ""
        if (tuned := weights_words.headline(report)) is not None:
            return f"{moved}{fell}. {tuned} {self._untuned()}".rstrip()
        if not held_out.samples:
            return f"{moved}: {self.upper} {gain} in closed form: {held_out.verdict}{fell}."
        on = f"{number_format.count(held_out.samples)} held-out samples"
        if held_out.verdict is None:
            return f"{moved}, and no verdict: {on} are too few for both."
        verdict = (
            f"{moved}: {self.upper} {gain} on {on}: {opinions(held_out.verdict, self.upper, report.judges)}{fell}."
        )
        return f"{verdict} {self._untuned()}".rstrip()

    def _untuned(self) -> str:
        """The sentence of the verdict on what needs no tuning, where that is better."""
        found = self.untrained.document().against if self.untrained else None
        return better(found, self.upper, self.lower) if found and found.r1.verdict == "better" else ""

    def trust(self, report: RunReport) -> list[Remark]:
        found = [*self._about_optimum(), *about_kept(report.keep), *self._about_samples()]
        found.append(remark("note", f"Numbers at a lambda are those of {self.law}."))
        if self.tilt is not None:
            found.append(self._about_tilt(self.tilt))
        if self.steering is not None:
            found += self.steering.remarks(self.lower)
        if self.weights is not None:
            found += self.weights.remarks(self.upper, self.lower)
            found += [remark("note", text)] if (text := weights_words.about_lambda(report)) else []
        if self.pair is None or not self.pair.samples:
            return found
        if not self.pair.has_enough_samples:
            text = "The held-out samples are too few for both lambdas; raise evaluate.samples, or start nearer."
            return [*found, remark("warning", text)]
        untuned = remark_on(self.untrained.document() if self.untrained else None, self.upper, self.lower)
        return [*untuned, *found, *about_held_out(report), *about_judges(report)]

    def _about_tilt(self, tilt: Law) -> Remark:
        samples = "too few" if tilt.fit.verdict == "refuse" else tilt.fit.verdict
        text = f"The tilt has the same {self.lower} at lambda = {number_format.number(tilt.lam)}"
        return remark("note", f"{text} (samples there are {samples}).")

    def _about_optimum(self) -> list[Remark]:
        best = self.last.optimum
        if best is None:
            return [remark("warning", f"{self.last.reason}.")]
        found = [
            remark("good" if best.kind in ("interior", "constrained") else "warning", f"{self._named(best.reason)}.")
        ]
        if best.interval is not None:
            found.append(remark("good", _interval(best.interval)))
        found += self._about_prompts(best)
        if best.others:
            lams = ", ".join(number_format.number(lam) for lam in best.others)
            found.append(remark("note", f"There are lower maxima at lambda = {lams}."))
        if self.last.after == "spent":
            text = "The search used up its budget before the answer was as precise as asked: raise budget.steps."
            found.append(remark("warning", text))
        return found

    def _about_prompts(self, best: Optimum) -> list[Remark]:
        """That few prompts are known for themselves alone."""
        from genbo.bilevel.measured import MANY_PROMPTS

        few = len(self.last.curve[0].law.r1.value) if self.last.banks else MANY_PROMPTS
        if few >= MANY_PROMPTS:
            return []
        these = "this prompt" if few == 1 else "these prompts"
        what = "interval" if best.interval else "result"
        more = f"with {MANY_PROMPTS} or more prompts it is computed over prompts"
        return [remark("note", f"This {what} holds for {these} only; {more}.")]

    def _about_samples(self) -> list[Remark]:
        from genbo.bilevel.interval import error
        from genbo.bilevel.regularization.curve import within_reach

        best, curve = self.last.optimum, self.last.curve
        if best is None:
            return []
        if self.solver == "closed_form":
            return [remark("good", "Both laws have a closed form: no samples, no noise.")]
        at = min(curve, key=lambda point: abs(point.lam - best.lam)).law
        found = _about_fit(at.fit, best)
        kl = number_format.with_error(at.kl.mean, error(at.kl))
        found.append(remark("note", f"The tuned law is {kl} nats of KL from the pretrained model."))
        reach = within_reach(curve)
        if reach and len(reach) < len(curve):
            lowest = number_format.number(reach[0].lam)
            text = f"Below lambda = {lowest} too few effective samples remain; the curve stops there."
            found.append(remark("note", text))
        return found

    def _named(self, reason: str) -> str:
        """With the rewards' own names in place of r1 and r2."""
        return capitalised(reason.replace("r1", self.upper).replace("r2", self.lower))


def _opinion(pair: Pair | None) -> ComparedRow:
    """The row of a judge."""
    if pair is None:
        return unjudged()
    if not pair.has_enough_samples:
        return unjudged("its samples are too few for both lambdas")
    return row_of(pair.compared("r1"))


_VERDICTS = {"reliable": "reliable", "doubtful": "doubtful (intervals are doubled)", "refuse": "too few"}
_LEVELS: dict[str, Level] = {"reliable": "good", "doubtful": "note", "refuse": "warning"}


def _about_fit(fit: Fit, best: Optimum) -> list[Remark]:
    """Whether the samples can be relied on at the lambda that was found."""
    from genbo.bilevel.regularization.curve import LEAST

    figure = (
        f"effective size {number_format.count(fit.ess)}, largest weight {number_format.number(fit.max_weight)}, "
        f"Pareto k {number_format.number(fit.khat)}"
    )
    found = [remark(_LEVELS[best.verdict], f"At this lambda the samples are {_VERDICTS[fit.verdict]}: {figure}.")]
    if best.verdict == "doubtful" and fit.samples * fit.prompts < LEAST:
        few = number_format.count(LEAST)
        text = f"Fewer than {few} samples in all: the interval may be too short; raise lower.samples."
        found.append(remark("note", text))
    return found


def _interval(ends: tuple[float, float]) -> str:
    """In words, with as many digits as tell the ends apart."""
    low, high = ends
    if high / low - 1 < EXACT:
        return f"The best lambda has a closed form here: {math.sqrt(low * high):.12g}, exact to the last digit shown."
    places = number_format.decimals((high - low) / 2)
    ends_in_words = " to ".join(number_format.number(end, places) for end in ends)
    return f"A 95 % interval of the best lambda is {ends_in_words}."
