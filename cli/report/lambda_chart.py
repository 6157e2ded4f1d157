"""Charts over lambda, which runs in powers of ten."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from markupsafe import Markup

from genbo.cli.report import number_format
from genbo.cli.report.svg import BOTTOM, LEFT, RIGHT, Frame, joined, padded, svg, tag, ticks

FARTHER = 1.3  # than the chosen lambda's KL: how far a chart over KL goes at least


@dataclass(frozen=True)
class Strength:
    """Where lambda was found: what the charts over lambda share."""

    best: float
    interval: tuple[float, float] | None
    start: float
    over: bool  # whether what lies below is over-optimised


def over_lambda(rows: Sequence[Mapping[str, Any]], key: str, at: Strength, *, name: str) -> Markup:
    """A number over lambda, which runs in powers of ten: a line with its band where samples are reliable, dashes where
    they are doubtful, and nothing where they are too few."""
    known = [row for row in rows if row["verdict"] != "refuse" and row[key] is not None]
    if len(known) < 2:
        return Markup("")
    lows, highs = ([row[key] + s * 2 * (row[f"{key}_se"] or 0.0) for row in known] for s in (-1, 1))
    xs = [math.log10(row["lam"]) for row in rows]
    frame = Frame((min(xs), max(xs)), padded([*lows, *highs]), left=LEFT)
    parts = [_over(frame, at), _decades(frame)]
    parts.append(_ribbon(frame, [math.log10(row["lam"]) for row in known], lows, highs))
    for verdict, group in groupby(_linked(known), key=lambda pair: pair[1]["verdict"]):
        points = [(math.log10(row["lam"]), row[key]) for pair in group for row in pair]
        parts.append(frame.line(points, class_=f"curve {verdict}"))
    top, bottom = frame.y[1], frame.y[0]
    parts.append(frame.bar(math.log10(at.start), bottom, top, class_="before"))
    parts.append(frame.bar(math.log10(at.best), bottom, top, class_="answer"))
    return svg(joined(parts), name)


def over_kl(
    rows: Sequence[Mapping[str, Any]], best_of: Sequence[Mapping[str, Any]], at: Strength, key: str, *, name: str
) -> Markup:
    """A number over the KL from the pretrained model: the curve over lambda as a line, best-of-n as points on another.

    It ends at the KL of the largest n, or a little beyond the chosen lambda.
    """
    known = [row for row in rows if row["verdict"] != "refuse" and None not in (row[key], row["kl"])]
    points = [row for row in best_of if None not in (row[key], row["kl"])]
    if len(known) < 2 or not points:
        return Markup("")
    chosen = min(known, key=lambda row: abs(math.log(row["lam"] / at.best)))
    end = max(chosen["kl"] * FARTHER, max(row["kl"] for row in points))
    known = [row for row in known if row["kl"] <= end]
    ends = [row[key] + s * 2 * (row[f"{key}_se"] or 0.0) for row in (*known, *points) for s in (-1, 1)]
    frame = Frame(padded([0.0, end], 0.03), padded(ends), left=LEFT)
    parts = [frame.axes("KL from the pretrained model, nats", whole=False)]
    for verdict, group in groupby(_linked(known), key=lambda pair: pair[1]["verdict"]):
        parts.append(frame.line([(row["kl"], row[key]) for pair in group for row in pair], class_=f"curve {verdict}"))
    parts.append(frame.line([(row["kl"], row[key]) for row in points], class_="best-of"))
    parts += [_best_of(frame, row, key) for row in points]
    label = f"λ = {number_format.number(at.best)}"
    parts.append(frame.dot(chosen["kl"], chosen[key], 5, class_="stop tuned", title=label))
    return svg(joined(parts), name)


def _best_of(frame: Frame, row: Mapping[str, Any], key: str) -> Markup:
    """A point with two standard errors to either side; n is written at powers of two."""
    n, x, y, error = row["n"], row["kl"], row[key], 2 * (row[f"{key}_se"] or 0.0)
    title = f"best of {n}: {number_format.with_error(y, row[f'{key}_se'])}"
    parts = [frame.bar(x, y - error, y + error, class_="best-of"), frame.dot(x, y, 3, class_="best-of", title=title)]
    if n & (n - 1) == 0:
        parts.append(tag("text", str(n), x=frame.px(x), y=frame.py(y + error) - 6, class_="tick middle"))
    return joined(parts)


def _linked(rows: Sequence[Mapping[str, object]]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    return list(pairwise(rows))


def _over(frame: Frame, at: Strength) -> Markup:
    """The side on which r2 is bought with r1, and the interval of lambda."""
    parts, left = [], frame.px(frame.x[0])
    height = frame.height - BOTTOM - frame.top
    if at.over:
        width = max(0.0, frame.px(math.log10(at.best)) - left)
        parts.append(tag("rect", x=left, y=frame.top, width=width, height=height, class_="over"))
        if width > 90:
            parts.append(tag("text", "over-optimised", x=left + 6, y=frame.top + 14, class_="tick"))
    if at.interval is not None:
        a, b = (frame.px(min(max(math.log10(x), frame.x[0]), frame.x[1])) for x in at.interval)
        parts.append(tag("rect", x=a, y=frame.top, width=max(1.0, b - a), height=height, class_="band"))
    return joined(parts)


def _decades(frame: Frame) -> Markup:
    """Hair lines at the y ticks, and lambda at 1, 2 and 5 of every power of ten that has room."""
    ys, base = ticks(*frame.y, 4), frame.height - BOTTOM
    parts = [frame.level(y, class_="grid") for y in ys.values]
    parts += [tag("text", ys.label(y), x=frame.left - 8, y=frame.py(y) + 4, class_="tick end") for y in ys.values]
    decades = range(math.floor(frame.x[0]), math.ceil(frame.x[1]) + 1)
    steps = (1, 2, 5) if frame.x[1] - frame.x[0] < 2.2 else (1,)
    marks = [m * 10.0**d for d in decades for m in steps]
    for lam in marks:
        x = math.log10(lam)
        if frame.x[0] - 1e-9 <= x <= frame.x[1] + 1e-9:
            parts.append(tag("text", f"{lam:g}", x=frame.px(x), y=base + 17, class_="tick middle"))
    parts.append(tag("text", "λ", x=frame.width - RIGHT, y=frame.height - 4, class_="tick end"))
    return joined(parts)


def _ribbon(frame: Frame, xs: Sequence[float], lows: Sequence[float], highs: Sequence[float]) -> Markup:
    outline = [*zip(xs, highs, strict=True), *reversed(list(zip(xs, lows, strict=True)))]
    points = " ".join(f"{frame.px(x):.1f},{frame.py(y):.1f}" for x, y in outline)
    return tag("polygon", points=points, class_="ribbon")
