"""What a path's answer is, in words: which numbers are optima, which stand at a bound, and what is not determined."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genbo.cli.report import number_format

if TYPE_CHECKING:
    from genbo.bilevel.found import Found
    from genbo.bilevel.problem import Problem

Document = dict[str, Any]
PART = 0.1  # of the largest part of a direction: less is not named
FEW = 6  # names that are listed
BOUNDS = {"lower_bound": "lower", "upper_bound": "upper"}
REMEDIES = {
    "overshoot": "its steps went past the optimum, and became too short to come back: "
    "lower optimizer.lr, and raise budget.steps",
    "decayed": "its steps became short before it had arrived: raise budget.steps, or optimizer.lr",
    "few_steps": "it was still moving when its steps ended: raise budget.steps",
}
CLAIM = (
    "± is a standard error: the 95 % interval reaches about 1.96 of it to either side. It counts the noise of the "
    "samples and what the path does not tell of the reward's shape, for the mean over what was tuned on, with new "
    "noise. Other prompts have an optimum of their own"
)


def labels_of(problem: Problem) -> list[str]:
    """A name for each number of phi: `guidance`, `guidance 3` of several, or a parameter of a schedule's family."""
    found: list[str] = []
    for tunable, size in zip(problem.tunables, problem.sizes, strict=True):
        moved = len(tunable.spoken(tunable.first(problem.process.steps))) - size if size > 1 else 0  # type: ignore[arg-type]
        found += tunable.labels or (
            [tunable.name] if size == 1 else [f"{tunable.name} {k + 1 + moved}" for k in range(size)]
        )
    return found


def document_of(found: Found, labels: Sequence[str]) -> Document:
    """The key `answer` of report.json; numbers that are not there are None."""
    document: Document = {
        "method": found.method,
        "undetermined": [dict(zip(labels, column, strict=True)) for column in found.free.T.tolist()],
        "combination": None,
        "coupled": [label for label, coupled in zip(labels, found.coupled, strict=True) if coupled],
        "unsettled": {label: cause for label, cause in zip(labels, found.causes, strict=True) if cause},
        "valley": None if found.valley is None else found.valley.tolist(),
        "ellipse": None if found.ellipse is None else found.ellipse.tolist(),
        "labels": list(labels),
    }
    if found.combination is not None:
        weights, value, se = found.combination
        settled = "unsettled" not in found.kinds  # else the point is the path's end, which is not on it
        document["combination"] = {
            "of": dict(zip(labels, weights.tolist(), strict=True)),
            "value": value if settled else None,
            "se": se if settled and math.isfinite(se) and se > 0 else None,
        }
    return document


# -- in words ----------------------------------------------------------------------------------------------------------


def each(value: Mapping[str, Any]) -> list[str]:
    """The kinds of a tunable's numbers; none in documents of old."""
    kind = value.get("kind")
    return [] if kind is None else [kind] if isinstance(kind, str) else list(kind)


def beside(value: Mapping[str, Any]) -> str:
    """What stands behind a single number: that it is a bound."""
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in BOUNDS:
        return ""
    return f", at its {BOUNDS[kind]} bound {value['bounds'][kind == 'upper_bound']:g},"


def in_full(value: Mapping[str, Any]) -> str:
    """What stands behind a single number in the terminal: its interval, or why there is none."""
    kind, interval = value.get("kind"), value.get("interval")
    if not isinstance(kind, str):
        return ""
    if interval:
        return f", 95 % interval {number_format.interval(interval)}"
    names = {"unsettled": "the path has not settled", "undetermined": "not determined"}
    return f" ({names[kind]})" if kind in names else f" ({BOUNDS[kind]} bound)" if kind in BOUNDS else ""


def remarks(document: Document) -> list[tuple[str, str]]:
    """Levels and sentences for the trust list."""
    answer = document.get("answer")
    kinds = [kind for value in document["phi"].values() for kind in each(value)]
    if not answer or document["status"] != "done":
        return []
    said = list(_about_bounds(document["phi"]))
    said += [("warning", _unsettled(label, cause)) for label, cause in answer["unsettled"].items()]
    if answer["method"] == "root" and set(kinds) <= {"interior", "fixed"}:
        text = "The optimum lies inside the path: the gradient crosses zero there, which gives the error bar."
        said.append(("good", text))
    said += [("warning", _coupled(label)) for label in answer.get("coupled", ())]
    said += _about_free(answer, kinds)
    if "interior" in kinds and answer["method"] == "root":
        said.append(("note", f"{CLAIM}."))
    return said


def _about_bounds(phi: Mapping[str, Any]) -> list[tuple[str, str]]:
    said = []
    for name, value in phi.items():
        kinds = each(value)
        for kind, side in BOUNDS.items():
            at = kinds.count(kind)
            if not at:
                continue
            labels = value.get("labels") or [f"{name} {k + 1}" for k in range(len(kinds))]
            named = [label for label, each in zip(labels, kinds, strict=False) if each == kind]
            more = f" and {at - FEW} more" if at > FEW else ""
            which = name if len(kinds) == 1 else f"{', '.join(named[:FEW])}{more}"
            edge = f" {value['bounds'][kind == 'upper_bound']:g}" if value["bounds"] else ""
            text = (
                f"{which[:1].upper()}{which[1:]} went to its {side} bound{edge}, and the reward still rises there: "
                "there is no optimum inside, so no error bar. Wider bounds alone only move the end: this reward cannot "
                "choose it alone. Hold another reward with keep:, or take another reward"
            )
            said.append(("warning", f"{text}."))
    return said


def _unsettled(label: str, cause: str) -> str:
    return f"{label[:1].upper()}{label[1:]} has not settled, so it has no error bar: {REMEDIES[cause]}."


def _coupled(label: str) -> str:
    return f"{label[:1].upper()}{label[1:]} has no error bar: its best value moves with a number that is at its bound."


def _about_free(answer: Document, kinds: Sequence[str]) -> list[tuple[str, str]]:
    """What is not determined, by name."""
    free, several = answer["undetermined"], len(kinds) > 1
    if not free or not set(kinds) & {"undetermined", "unsettled"}:
        return []
    if not several:
        text = (
            "The tuned value has no error bar: the path shows no curvature to measure it by. More steps or samples may"
        )
        return [] if answer["unsettled"] else [("note", f"{text}.")]
    along = f"along {direction(free[0])} the path shows no curvature that stands out from the noise"
    if answer["combination"] is not None:
        of = answer["combination"]
        known = "" if of["value"] is None else f", {number_format.with_error(of['value'], of['se'])}"
        text = f"Only the combination {summed(of['of'])} is determined{known}: {along}. This is a valley, drawn above"
        return [("warning", f"{text}; neither number has an error bar of its own.")]
    many = len(answer["labels"])
    if len(free) >= many:
        text = f"None of the {many} numbers is determined by itself: more budget.steps or budget.samples may show more"
        return [("warning", f"{text}.")]
    count = "One direction is" if len(free) == 1 else f"{len(free)} directions are"
    text = (
        f"{count} not determined, the first of them drawn above: {along}"
        if len(free) > 1
        else f"{count} not determined: {along}"
    )
    return [("warning", f"{text}. Numbers that have a part in it have no error bar.")]


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
        sign = (
            (" + " if part >= 0 else f" {number_format.MINUS} ") if text else ("" if part >= 0 else number_format.MINUS)
        )
        text += f"{sign}{size}{name}"
    return text


def _signed(part: float) -> str:
    return number_format.number(part, 0 if abs(part) == 1 else None, sign=True)
