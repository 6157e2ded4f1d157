"""A path's answer in words: which numbers are optima, which are at a bound, and what is not determined."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from genbo.cli.report import number_format
from genbo.cli.report.records import AnswerRecord, Combination, PhiValue, Remark
from genbo.cli.report.trust import remark
from genbo.cli.report.words import BOUNDS, capitalised

if TYPE_CHECKING:
    from genbo.bilevel.found import Found
    from genbo.bilevel.problem import Problem
    from genbo.cli.report.records_report import RunReport

PART = 0.1  # of the largest part of a direction: less is not named
FEW = 6  # names that are listed
REMEDIES = {
    "overshoot": "its steps went past the optimum and then became too short to come back. "
    "Lower optimizer.lr and raise budget.steps",
    "decayed": "its steps became short before it arrived. Raise budget.steps or optimizer.lr",
    "few_steps": "it was still moving at the last step. Raise budget.steps",
}
CLAIM = (
    "± is a standard error: the 95 % interval reaches about 1.96 of it to either side. It includes the noise of the "
    "samples and what the path leaves open about the reward's shape. It holds for the mean over the tuning prompts "
    "with new noise. Other prompts have another optimum"
)


def labels_of(problem: Problem) -> list[str]:
    """A name for each number of phi: `guidance`, `guidance 3` of several, or a parameter of a schedule's family."""
    found: list[str] = []
    for tunable, size in zip(problem.tunables, problem.sizes, strict=True):
        first = tunable.spoken(tunable.first(problem.process.steps))
        fixed = len(first) - size if isinstance(first, list) else 0  # numbers that stay where they are come first
        found += tunable.labels or (
            [tunable.name] if size == 1 else [f"{tunable.name} {k + 1 + fixed}" for k in range(size)]
        )
    return found


def record_of(found: Found, labels: Sequence[str]) -> AnswerRecord:
    """The key `answer` of report.json; numbers that do not exist are None."""
    return AnswerRecord(
        method=found.method,
        undetermined=[dict(zip(labels, column, strict=True)) for column in found.free.T.tolist()],
        combination=None if found.combination is None else _combination(found, labels),
        coupled=[label for label, coupled in zip(labels, found.coupled, strict=True) if coupled],
        unsettled={label: cause for label, cause in zip(labels, found.causes, strict=True) if cause},
        valley=None if found.valley is None else found.valley.tolist(),
        ellipse=None if found.ellipse is None else found.ellipse.tolist(),
        labels=list(labels),
    )


def _combination(found: Found, labels: Sequence[str]) -> Combination:
    assert found.combination is not None
    weights, value, se = found.combination
    settled = "unsettled" not in found.kinds  # else the answer is the end of the path, which is not on the valley
    return Combination(
        of=dict(zip(labels, weights.tolist(), strict=True)),
        value=value if settled else None,
        se=se if settled and math.isfinite(se) and se > 0 else None,
    )


# -- in words --------------------------------------------------------------------------------------------------


def remarks(report: RunReport) -> list[Remark]:
    """Sentences for the trust list."""
    answer = report.answer
    if answer is None or report.status != "done":
        return []
    kinds = [kind for value in report.phi.values() for kind in value.kinds]
    found = [remark("warning", text) for text in _about_bounds(report.phi)]
    found += [remark("warning", _unsettled(label, cause)) for label, cause in answer.unsettled.items()]
    if answer.method == "root" and set(kinds) <= {"interior", "fixed"}:
        text = "The optimum is inside the path: the gradient crosses zero there, which gives the error bar."
        found.append(remark("good", text))
    found += [remark("warning", _coupled(label)) for label in answer.coupled]
    found += _about_free(answer, kinds)
    if "interior" in kinds and answer.method == "root":
        found.append(remark("note", f"{CLAIM}."))
    return found


def _about_bounds(phi: Mapping[str, PhiValue]) -> Iterator[str]:
    for name, value in phi.items():
        for kind, side in BOUNDS.items():
            at = value.kinds.count(kind)
            if not at:
                continue
            edge = f" {value.bounds[kind == 'upper_bound']:g}" if value.bounds else ""
            yield (
                f"{capitalised(_those_at(name, value, kind))} went to its {side} bound{edge}, and the reward still "
                "rises there. There is no optimum inside, so there is no error bar. Wider bounds alone only move the "
                "end, because this reward has no optimum here. Add another reward under keep:, or use another reward."
            )


def _those_at(name: str, value: PhiValue, kind: str) -> str:
    """The numbers of a tunable that are at a bound, by name."""
    if len(value.kinds) == 1:
        return name
    labels = value.labels or [f"{name} {k + 1}" for k in range(len(value.kinds))]
    named = [label for label, each in zip(labels, value.kinds, strict=False) if each == kind]
    more = f" and {len(named) - FEW} more" if len(named) > FEW else ""
    return f"{', '.join(named[:FEW])}{more}"


def _unsettled(label: str, cause: str) -> str:
    return f"{capitalised(label)} has not settled, so it has no error bar: {REMEDIES[cause]}."


def _coupled(label: str) -> str:
    return f"{capitalised(label)} has no error bar: its best value depends on a number that is at its bound."


def _about_free(answer: AnswerRecord, kinds: Sequence[str | None]) -> list[Remark]:
    """What is not determined, by name."""
    free = answer.undetermined
    if not free or not set(kinds) & {"undetermined", "unsettled"}:
        return []
    if len(kinds) == 1:
        text = "The tuned value has no error bar: the path shows no curvature to compute it from."
        return [] if answer.unsettled else [remark("note", f"{text} Raise budget.steps or budget.samples to get one.")]
    along = f"along {direction(free[0])} the path shows no curvature beyond the noise"
    if (found := answer.combination) is not None:
        known = "" if found.value is None else f", {number_format.with_error(found.value, found.se)}"
        text = f"Only the combination {summed(found.of)} is determined{known}: {along}. This valley is drawn above"
        return [remark("warning", f"{text}; neither number has an error bar of its own.")]
    many = len(answer.labels)
    if len(free) >= many:
        text = f"None of the {many} numbers is determined by itself"
        return [remark("warning", f"{text}. Raise budget.steps or budget.samples to determine more.")]
    if len(free) == 1:
        text = f"One direction is not determined: {along}"
    else:
        text = f"{len(free)} directions are not determined; the first of them is drawn above: {along}"
    return [remark("warning", f"{text}. Numbers that are part of it have no error bar.")]


def direction(of: Mapping[str, float]) -> str:
    """`tau +1 with end −0.077`: its larger parts, the largest first."""
    ranked = sorted(((name, part) for name, part in of.items()), key=lambda row: -abs(row[1]))
    named = ranked if len(ranked) == 2 else [row for row in ranked if abs(row[1]) >= PART]
    more = f" and {len(named) - FEW} more" if len(named) > FEW else ""
    return " with ".join(f"{name} {_signed(part)}" for name, part in named[:FEW]) + more


def summed(of: Mapping[str, float]) -> str:
    """`end + 0.077 tau`."""
    text = ""
    for name, part in of.items():
        size = "" if abs(abs(part) - 1) < 1e-9 else f"{number_format.number(abs(part))} "
        minus = number_format.MINUS
        sign = (" + " if part >= 0 else f" {minus} ") if text else ("" if part >= 0 else minus)
        text += f"{sign}{size}{name}"
    return text


def _signed(part: float) -> str:
    return number_format.number(part, 0 if abs(part) == 1 else None, sign=True)
