"""What a search for lambda found, as the parts of `report.json` about it, and its verdict in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from genbo.cli.report import number_format

if TYPE_CHECKING:
    from genbo.bilevel.measured import Measured
    from genbo.bilevel.regularization.curve import Point
    from genbo.bilevel.regularization.search import Round
    from genbo.bilevel.regularization.tilted import Law
    from genbo.bilevel.verdict import Comparison
    from genbo.cli.report.tuned_weights import Weights

Document = dict[str, Any]
EXACT = 1e-11  # the relative width of an interval that is numerical alone


@dataclass(frozen=True)
class Pair:
    """The laws at the start's lambda and at the tuned one, by held-out samples: the same ones, or others for each."""

    start: Law
    tuned: Law
    shared: bool
    prompts: tuple[str, ...]
    samples: int  # in all; 0 where the laws are known on paper
    fresh_prompts: bool

    @property
    def speaks(self) -> bool:
        return "refuse" not in (self.start.fit.verdict, self.tuned.fit.verdict)

    def compared(self, which: str) -> Comparison:
        """A number of both laws, its difference and the interval of that."""
        from genbo.bilevel.interval import of_difference, over_prompts
        from genbo.bilevel.measured import MANY_PROMPTS
        from genbo.bilevel.verdict import Comparison, ruined_of, shape_of

        start, tuned = (getattr(law, which) for law in (self.start, self.tuned))
        gap = tuned.value - start.value
        mean = gap.mean().item()
        of_prompts = self.fresh_prompts and len(gap) > 1  # it is to hold for prompts never seen: they are counted
        interval = over_prompts(gap) if of_prompts else of_difference(start, tuned, shared=self.shared)
        means = dict(zip(self.prompts, gap.tolist(), strict=True))
        shape = shape_of(means, ruined_of(means, self._errors(start, tuned)))
        by_prompts = len(gap) >= (2 if self.fresh_prompts else MANY_PROMPTS)
        counted = len(gap) if by_prompts else self.samples
        return Comparison(start.mean, tuned.mean, mean, interval, self.samples, counted, shape)

    def _errors(self, start: Measured, tuned: Measured) -> dict[str, tuple[float, int]]:
        """The standard error of each prompt's gain, and its samples; none where samples cannot vouch for one alone."""
        each = self.samples // len(self.prompts)
        if each < 2 or any(law.fit.verdict != "reliable" for law in (self.start, self.tuned)):
            return {}
        if self.shared:
            squares = (tuned - start).influence.square().sum(1)
        else:
            squares = start.influence.square().sum(1) + tuned.influence.square().sum(1)
        return {p: (e, each) for p, e in zip(self.prompts, squares.sqrt().tolist(), strict=True)}


@dataclass(frozen=True)
class Pretrained:
    """Both rewards without any tuning, or the reason why they are not known."""

    r1: float | None = None
    r2: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Searched:
    """The last round, and what held-out samples say of its answer."""

    last: Round
    pretrained: Pretrained
    upper: str
    lower: str
    solver: str
    law: str  # what the numbers at a lambda are those of, in words
    pair: Pair | None
    weights: Weights | None = None
    tilt: Law | None = None  # of the same E[r2], where the numbers are those of another law
    judges: Mapping[str, Pair | None] = field(
        default_factory=dict
    )  # judges in the upper reward's place; None: no number

    # -- report.json -----------------------------------------------------------------------------------------

    def document(self) -> Document:
        """The key `search`."""
        from genbo.bilevel.regularization.curve import within_reach

        reach = within_reach(self.last.curve)
        best, before = self.last.optimum, self.pretrained
        return {
            "upper": self.upper,
            "lower": self.lower,
            "solver": self.solver,
            "law": self.law,
            "curve": [row_of(point) for point in self.last.curve],
            "reach": [reach[0].lam, reach[-1].lam] if reach else None,
            "pretrained": None if before.reason else {"r1": before.r1, "r2": before.r2},
            "pretrained_reason": before.reason,
            "optimum": None if best is None else {**vars(best), "others": list(best.others)},
            "tilt": None if self.tilt is None else {"lam": self.tilt.lam, "verdict": self.tilt.fit.verdict},
            "after": self.last.after,
            "samples": [bank.samples for bank in self.last.banks],
            "weights": self.weights.document() if self.weights else None,
        }

    def compared(self) -> tuple[Document | None, Document, Document]:
        """`held_out`, `rewards` and `keep`."""
        from genbo.cli.report.summary import plain

        pair = self.pair
        if pair is None:
            return None, {}, {}
        names = (self.upper, f"{self.lower} (lower level)" if self.lower == self.upper else self.lower)
        shown = (*zip(names, ("r1", "r2"), strict=True), ("KL, nats", "kl"))
        rows = {name: plain(pair.compared(which)) for name, which in shown}
        rewards = {name: {"weight": None, **row} for name, row in rows.items()}
        for name in list(rewards)[1:]:
            rewards[name]["verdict"] = ""  # what r2 and KL did is a price, neither better nor worse
        gains = (pair.tuned.r1.value - pair.start.r1.value).tolist()
        each = pair.samples // len(pair.prompts)
        by_prompt = [{"prompt": p, "difference": g, "samples": each} for p, g in zip(pair.prompts, gains, strict=True)]
        top = rows[self.upper]
        held_out = {**top, "verdict": top["verdict"] if pair.speaks else None, "fresh_prompts": pair.fresh_prompts}
        return {**held_out, "by_prompt": sorted(by_prompt, key=lambda row: row["difference"])}, rewards, {}

    def opinions(self) -> Document:
        """`judges`."""
        from genbo.cli.report.summary import plain, unjudged

        found: Document = {}
        for name, pair in self.judges.items():
            if pair is None:
                found[name] = unjudged()
            elif not pair.speaks:
                found[name] = unjudged("its samples are too few for both lambdas")
            else:
                found[name] = plain(pair.compared("r1"))
        return found

    # -- in words --------------------------------------------------------------------------------------------

    def headline(self, document: Document) -> str:
        """The verdict in one plain sentence, with its figures."""
        from genbo.cli.report.summary import instead, opinions

        change, held_out = instead("regularization", document["phi"]["regularization"]), document["held_out"]
        if document["status"] != "done" or held_out is None:
            return f"{change}, and no verdict: {document['reason'] or 'the run has not ended'}."
        gain = number_format.change(held_out["difference"], held_out["interval"])
        if not held_out["samples"]:
            return f"{change}: {self.upper} {gain}, known on paper: {held_out['verdict']}."
        on = f"{number_format.count(held_out['samples'])} held-out samples"
        if held_out["verdict"] is None:
            return f"{change}, and no verdict: {on} are too few for both."
        return (
            f"{change}: {self.upper} {gain} on {on}: {opinions(held_out['verdict'], self.upper, document['judges'])}."
        )

    def trust(self, document: Document) -> list[Document]:
        """How far to believe it."""
        from genbo.cli.report.summary import about_held_out, about_judges, remark

        said = [*self._about_optimum(), *self._about_samples()]
        said.append(remark("note", f"Numbers at a lambda are those of {self.law}."))
        if self.tilt is not None:
            lam = number_format.number(self.tilt.lam)
            text = f"The tilt has the same {self.lower} at lambda = {lam} (samples there are {self.tilt.fit.verdict})."
            said.append(remark("note", text.replace("refuse", "too few")))
        if self.weights is not None:
            said += self.weights.remarks(self.upper, self.lower)
        if self.pair is None or not self.pair.samples:
            return said
        if not self.pair.speaks:
            text = "The held-out samples are too few for both lambdas; raise evaluate.samples, or start nearer."
            return [*said, remark("warning", text)]
        return [*said, *about_held_out(document), *about_judges(document)]

    def _about_optimum(self) -> list[Document]:
        from genbo.bilevel.measured import MANY_PROMPTS
        from genbo.cli.report.summary import remark

        best = self.last.optimum
        if best is None:
            return [remark("warning", f"{self.last.reason}.")]
        inside = best.kind == "interior"
        said = [remark("good" if inside else "warning", f"{self._named(best.reason)}.")]
        if best.interval is not None:
            said.append(remark("good", _interval(best.interval)))
        few = len(self.last.curve[0].law.r1.value) if self.last.banks else MANY_PROMPTS
        if few < MANY_PROMPTS:
            these = "this prompt" if few == 1 else "these prompts"
            what = "interval" if best.interval else "result"
            more = f"with {MANY_PROMPTS} or more prompts it is computed over prompts"
            said.append(remark("note", f"This {what} holds for {these} only; {more}."))
        if best.others:
            lams = ", ".join(number_format.number(lam) for lam in best.others)
            said.append(remark("note", f"There are lower maxima at lambda = {lams}."))
        if self.last.after == "spent":
            text = "The search used up its budget before the answer was as precise as asked: raise budget.steps."
            said.append(remark("warning", text))
        return said

    def _about_samples(self) -> list[Document]:
        from genbo.bilevel.interval import error
        from genbo.bilevel.regularization.curve import LEAST, within_reach
        from genbo.cli.report.summary import remark

        best, curve = self.last.optimum, self.last.curve
        if best is None:
            return []
        if self.solver == "closed_form":
            return [remark("good", "Both laws are known on paper: no samples, no noise.")]
        at = min(curve, key=lambda point: abs(point.lam - best.lam)).law
        fit = at.fit
        figure = (
            f"effective size {number_format.count(fit.ess)}, largest weight {number_format.number(fit.max_weight)}, "
            f"Pareto k {number_format.number(fit.khat)}"
        )
        level = {"reliable": "good", "doubtful": "note", "refuse": "warning"}[best.verdict]
        said = [remark(level, f"There the samples are {_VERDICTS[fit.verdict]}: {figure}.")]
        if best.verdict == "doubtful" and fit.samples * fit.prompts < LEAST:
            few = number_format.count(LEAST)
            text = f"Fewer than {few} samples in all: the interval may be too short; raise lower.samples."
            said.append(remark("note", text))
        kl = number_format.with_error(at.kl.mean, error(at.kl))
        said.append(remark("note", f"The tuned law is {kl} nats of KL from the pretrained model."))
        reach = within_reach(curve)
        if reach and len(reach) < len(curve):
            lowest = number_format.number(reach[0].lam)
            text = f"Below lambda = {lowest} too few effective samples remain; the curve stops there."
            said.append(remark("note", text))
        return said

    def _named(self, reason: str) -> str:
        """With the rewards' own names in place of r1 and r2."""
        text = reason.replace("r1", self.upper).replace("r2", self.lower)
        return text[:1].upper() + text[1:]


def _interval(ends: tuple[float, float]) -> str:
    """In words, with as many digits as tell the ends apart."""
    low, high = ends
    if high / low - 1 < EXACT:
        return f"The best lambda is solved on paper: {math.sqrt(low * high):.12g}, to the last digit shown."
    places = number_format.decimals((high - low) / 2)
    ends = (number_format.number(end, places) for end in (low, high))
    return f"A 95 % interval of the best lambda is {' to '.join(ends)}."


_VERDICTS = {"reliable": "reliable", "doubtful": "doubtful (intervals are doubled)", "refuse": "too few"}


def row_of(point: Point) -> Document:
    """A point of the curve."""
    from genbo.bilevel.interval import error

    law, fit = point.law, point.law.fit
    means: dict[str, Measured] = {"r1": law.r1, "r2": law.r2, "kl": law.kl, "grad": point.grad}
    row: Document = {"lam": point.lam}
    for name, measured in means.items():
        row |= {name: measured.mean, f"{name}_se": error(measured)}
    return {**row, "verdict": fit.verdict, "ess": fit.ess, "max_weight": fit.max_weight, "khat": fit.khat}


def label(names: Sequence[str]) -> str:
    """The rewards of a level in a word."""
    return " + ".join(names)


def record_of(
    number: int, now: Round, u: list[float], cost: Mapping[str, int], elapsed_s: float, name: str
) -> Document:
    """A line of `steps.jsonl`: a round."""
    best, bank = now.optimum, now.banks[-1] if now.banks else None
    at = min(now.curve, key=lambda point: abs(point.lam - best.lam)) if best else None
    return {
        "step": number,
        "phi": {"regularization": best.lam if best else None},
        "value": best.r1 if best else None,
        "value_se": at.law.r1.se if at else None,
        "scores": {name: best.r1 if best else None},
        "gaps": {},
        "multipliers": {},
        "u": u,
        "grad": [at.grad.mean if at else None],
        "grad_se": [at.grad.se if at else None],
        "status": "ok" if best else "unusable",
        "kind": best.kind if best else None,
        "verdict": best.verdict if best else None,
        "log_se": best.log_se if best else None,
        "after": now.after,
        "reason": now.reason,
        "target": now.target,
        "samples": bank.samples if bank else 0,
        "shifted": bool(bank.log_ratio.any()) if bank else False,
        "cost": dict(cost),
        "elapsed_s": round(elapsed_s, 3),
    }
