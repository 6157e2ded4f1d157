"""Phrases that several parts of a report share: a change, a verdict with its judges, how a gain lies over prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from genbo.cli.report import number_format

if TYPE_CHECKING:
    from genbo.cli.report.records import ComparedRow, PhiValue

NAMED, LONGEST = 3, 60  # prompts that a sentence names, and characters of each
BOUNDS = {"lower_bound": "lower", "upper_bound": "upper"}  # kinds of an answer at a bound


def title(name: str) -> str:
    """`noise_schedule` -> `Noise schedule`."""
    return capitalised(name).replace("_", " ")


def capitalised(text: str) -> str:
    """With a capital letter in front; the rest stays as it is."""
    return text[:1].upper() + text[1:]


def instead(name: str, value: PhiValue) -> str:
    """`Guidance 6.31 ± 0.42 instead of 1.00`, or of a few numbers each by its name."""
    start, tuned = value.start, value.tuned
    if value.labels and isinstance(start, list) and isinstance(tuned, list):
        errors = value.se if isinstance(value.se, list) else None
        after = number_format.named(value.labels, tuned, errors)
        return f"{title(name)} {after} instead of {number_format.named(value.labels, start)}"
    after = number_format.numbers(tuned, value.se)
    return f"{title(name)} {after}{at_bound(value)} instead of {number_format.numbers(start)}"


def at_bound(value: PhiValue) -> str:
    """`, at its upper bound 20,` of a single number that is there."""
    if not isinstance(value.kind, str) or value.kind not in BOUNDS or value.bounds is None:
        return ""
    return f", at its {BOUNDS[value.kind]} bound {value.bounds[value.kind == 'upper_bound']:g},"


def interval_or_reason(value: PhiValue) -> str:
    """What follows a single number in the terminal: its interval, or why there is none."""
    kind, interval = value.kind, value.interval
    if not isinstance(kind, str):
        return ""
    if isinstance(interval, tuple):
        return f", 95 % interval {number_format.interval(interval)}"
    reasons = {"unsettled": "the path has not settled", "undetermined": "not determined"}
    reasons |= {bound: f"{side} bound" for bound, side in BOUNDS.items()}
    return f" ({reasons[kind]})" if kind in reasons else ""


def opinions(verdict: str | None, name: str, judges: Mapping[str, ComparedRow]) -> str:
    """`better`, or with judges `better by clip; by emoji-judge no measurable difference`."""
    if not judges:
        return str(verdict)
    agree = [judge for judge, row in judges.items() if row.verdict == verdict]
    others = [f"by {judge} {row.verdict or 'no verdict'}" for judge, row in judges.items() if judge not in agree]
    return "; ".join([f"{verdict} by {' and by '.join([name, *agree])}", *others])


def change(row: ComparedRow) -> str:
    """`+0.041 [0.035, 0.047]`."""
    return number_format.change(row.difference, row.interval)


def shape_in_words(row: ComparedRow) -> str:
    """`62 of 128 prompts gained and 66 lost (median −0.0002, worst −0.21: 'key')`."""
    same = f", {row.unchanged} did not change" if row.unchanged else ""
    of = f"{row.gained} of {number_format.plural(row.prompts, 'prompt')} gained and {row.lost} lost{same}"
    median = f"median {number_format.number(row.median, sign=True)}"
    if row.worst is None or row.worst.difference is None:
        return f"{of} ({median})"
    worst = number_format.number(row.worst.difference, sign=True)
    return f"{of} ({median}, worst {worst}: {quoted(row.worst.prompt)})"


def quoted(prompt: str) -> str:
    """A prompt inside a sentence: cut where it is long, and harmless in a terminal."""
    return repr(prompt if len(prompt) <= LONGEST else f"{prompt[:LONGEST]}…")


def overlap(prompts: Sequence[str]) -> str:
    """That held-out prompts are tuned on too, with the first of them by name."""
    named = ", ".join(map(quoted, prompts[:NAMED]))
    more = f" and {len(prompts) - NAMED} more" if len(prompts) > NAMED else ""
    number = "1 prompt is" if len(prompts) == 1 else f"{len(prompts)} prompts are"
    return f"{number} both tuned on and held out, and left out of the evaluation: {named}{more}"


def noise_ratio(grad: Sequence[float | None], se: Sequence[float | None]) -> float | None:
    """How many standard errors a gradient is from zero, root mean square over coordinates whose error is known."""
    pairs = [(g, s) for g, s in zip(grad, se, strict=True) if g is not None and s is not None and s > 0]
    return math.sqrt(sum((g / s) ** 2 for g, s in pairs) / len(pairs)) if pairs else None
