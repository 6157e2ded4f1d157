"""Small charts as inline SVG, coloured by the page's own variables so that they follow light and dark.

Classes carry the colours (`start`, `tuned`, `axis`, `grid`); every text is escaped; nothing here can run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from markupsafe import Markup, escape

from genbo.cli.report import number_format

WIDTH, HEIGHT = 440, 236
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 40
LONGEST = 200  # characters of a prompt in a tooltip
Points = Sequence[tuple[float, float]]


def tag(name: str, content: object = "", /, **attributes: object) -> Markup:
    """An element; `class_` is class and `stroke_width` stroke-width."""
    pairs = ((k.rstrip("_").replace("_", "-"), v) for k, v in attributes.items() if v is not None)
    written = "".join(f' {k}="{escape(_short(v))}"' for k, v in pairs)
    return Markup(f"<{name}{written}>{escape(content)}</{name}>")


def _short(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def joined(parts: Sequence[Markup]) -> Markup:
    return Markup("").join(parts)


@dataclass(frozen=True)
class Ticks:
    """Round numbers inside a range, a step apart."""

    values: list[float]
    step: float

    def label(self, value: float, *, sign: bool = False) -> str:
        places = max(0, -math.floor(math.log10(self.step) + 1e-9))
        return "0" if abs(value) < self.step / 2 else number_format.number(value, places, sign=sign)


def ticks(low: float, high: float, about: int = 5) -> Ticks:
    """Steps of 1, 2 or 5 times a power of ten, of which that which comes nearest to `about` numbers."""
    power = 10.0 ** math.floor(math.log10((high - low) / about))

    def spread(step: float) -> Ticks:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        return Ticks([k * step for k in range(first, last + 1)], step)

    found = [spread(m * power) for m in (1, 2, 5, 10)]
    return min(found, key=lambda t: abs(len(t.values) - about))


def padded(values: Sequence[float], share: float = 0.08, least: float = 1e-9) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = max((high - low) * share, least, abs(high) * 1e-6)
    return low - room, high + room


@dataclass(frozen=True)
class Frame:
    """A pair of axes: data in, pixels out."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    top: int = TOP

    def px(self, x: float) -> float:
        return self.left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (self.width - self.left - RIGHT)

    def py(self, y: float) -> float:
        return self.height - BOTTOM - (y - self.y[0]) / (self.y[1] - self.y[0]) * (self.height - self.top - BOTTOM)

    def line(self, points: Points, **attributes: object) -> Markup:
        path = " ".join(f"{self.px(x):.1f},{self.py(y):.1f}" for x, y in points)
        return tag("polyline", points=path, fill="none", **attributes)

    def dot(self, x: float, y: float, r: float = 2.6, title: str = "", **attributes: object) -> Markup:
        return tag("circle", tag("title", title) if title else "", cx=self.px(x), cy=self.py(y), r=r, **attributes)

    def bar(self, x: float, low: float, high: float, **attributes: object) -> Markup:
        return tag("line", x1=self.px(x), x2=self.px(x), y1=self.py(low), y2=self.py(high), **attributes)

    def level(self, y: float, **attributes: object) -> Markup:
        return tag("line", x1=self.left, x2=self.width - RIGHT, y1=self.py(y), y2=self.py(y), **attributes)

    def band(self, low: float, high: float, **attributes: object) -> Markup:
        top, bottom = self.py(min(high, self.y[1])), self.py(max(low, self.y[0]))
        return tag(
            "rect",
            x=self.left,
            y=top,
            width=self.width - self.left - RIGHT,
            height=max(0.0, bottom - top),
            **attributes,
        )

    def axes(self, x_name: str, *, whole: bool = True) -> Markup:
        """Hair lines at the y ticks, numbers on both sides, the name of x below."""
        ys, xs = ticks(*self.y, 4), ticks(*self.x, 6)
        shown = [x for x in xs.values if not whole or abs(x - round(x)) < 1e-9]
        base = self.height - BOTTOM
        parts = [self.level(y, class_="grid") for y in ys.values]
        parts += [tag("text", ys.label(y), x=self.left - 8, y=self.py(y) + 4, class_="tick end") for y in ys.values]
        parts += [tag("text", xs.label(x), x=self.px(x), y=base + 17, class_="tick middle") for x in shown]
        parts.append(tag("text", x_name, x=self.width - RIGHT, y=self.height - 4, class_="tick end"))
        return joined(parts)


def svg(content: Markup, name: str, width: int = WIDTH, height: int = HEIGHT) -> Markup:
    return tag("svg", content, viewBox=f"0 0 {width} {height}", role="img", aria_label=name, class_="chart")


def finite(values: Sequence[float | None]) -> list[float]:
    return [v for v in values if v is not None and math.isfinite(v)]


def path(
    values: Sequence[float | None],
    errors: Sequence[float | None] | None,
    *,
    name: str,
    start: float | None = None,
    answer: float | None = None,
    answer_se: float | None = None,
) -> Markup:
    """A number at each step with error bars; the start as a dashed line, the answer as a line in its band."""
    errors = errors or [None] * len(values)
    marks = [(i + 1, v, e or 0.0) for i, (v, e) in enumerate(zip(values, errors, strict=True)) if v is not None]
    seen = [v for _, v, e in marks for v in (v - e, v + e)] + finite([start, answer])
    if not seen:
        return Markup("")
    frame = Frame((0.5, len(values) + 0.5), padded(seen))
    parts = [frame.axes("step")]
    if answer is not None:
        if answer_se:
            parts.append(frame.band(answer - answer_se, answer + answer_se, class_="band"))
        parts.append(frame.level(answer, class_="answer"))
    if start is not None:
        parts.append(frame.level(start, class_="before"))
    parts.append(frame.line([(x, v) for x, v, _ in marks], class_="way"))
    parts += [frame.bar(x, v - e, v + e, class_="error") for x, v, e in marks if e]
    parts += [frame.dot(x, v, class_="point", title=f"step {x}: {number_format.with_error(v, e)}") for x, v, e in marks]
    return svg(joined(parts), name)


def bundle(rows: Sequence[Sequence[float]], *, name: str) -> Markup:
    """Several numbers over the steps, a thin line each: the path of a schedule, its first value strongest."""
    values = [v for row in rows for v in row]
    if not values:
        return Markup("")
    frame = Frame((0.5, len(rows) + 0.5), padded(values))
    many = len(rows[0])
    lines = []
    for k in range(many):
        points = [(i + 1.0, row[k]) for i, row in enumerate(rows)]
        opacity = 1 - 0.6 * k / max(1, many - 1)
        lines.append(frame.line(points, class_="way", stroke_opacity=opacity))
    return svg(joined([frame.axes("step"), *lines]), name)


def schedule(
    start: Sequence[float], tuned: Sequence[float], errors: Sequence[float | None] | None, *, name: str
) -> Markup:
    """Both schedules over the sampling steps, drawn as stairs."""
    bars = [e or 0.0 for e in errors] if errors and len(errors) == len(tuned) else [0.0] * len(tuned)
    seen = [*start, *(t + s * e for t, e in zip(tuned, bars, strict=True) for s in (-1, 1))]
    frame = Frame((0.5, len(tuned) + 0.5), padded(seen))

    def stairs(values: Sequence[float]) -> list[tuple[float, float]]:
        return [(i + side, v) for i, v in enumerate(values) for side in (0.5, 1.5)]

    parts = [frame.axes("sampling step, noise to image"), frame.line(stairs(start), class_="before")]
    parts += [
        frame.bar(i + 1, t - e, t + e, class_="error") for i, (t, e) in enumerate(zip(tuned, bars, strict=True)) if e
    ]
    parts.append(frame.line(stairs(tuned), class_="tuned-line"))
    return svg(joined(parts), name)


def parts(direct: Sequence[float | None], indirect: Sequence[float | None], *, name: str) -> Markup:
    """Two parts of a derivative over the steps, with the zero that their signs are told by."""
    known = [v for v in (*direct, *indirect) if v is not None]
    if not known:
        return Markup("")
    frame = Frame((0.5, len(direct) + 0.5), padded([0.0, *known]))
    lines = []
    for side, kind in ((direct, "tuned-line"), (indirect, "before")):
        points = [(k + 1.0, v) for k, v in enumerate(side) if v is not None]
        word = "indirect" if kind == "before" else "direct"
        lines.append(frame.line(points, class_=kind))
        lines += [
            frame.dot(x, v, 2.6, class_="point", title=f"step {x:.0f}, {word}: {number_format.number(v)}")
            for x, v in points
        ]
    return svg(joined([frame.axes("step"), frame.level(0.0, class_="zero"), *lines]), name)


def plane(
    walked: Points,
    answer: tuple[float, float],
    *,
    valley: Points | None,
    ellipse: Points | None,
    axes: Sequence[str],
    name: str,
) -> Markup:
    """The path of two numbers in their plane, the answer, and its 95 % ellipse or the valley that it lies in."""
    seen = [*walked, answer, *(ellipse or ())]
    frame = Frame(padded([x for x, _ in seen]), padded([y for _, y in seen]))
    parts = [frame.axes(axes[0], whole=False), tag("text", axes[1], x=frame.left + 4, y=frame.top + 4, class_="tick")]
    if ellipse:
        outline = " ".join(f"{frame.px(x):.1f},{frame.py(y):.1f}" for x, y in ellipse)
        parts.append(tag("polygon", points=outline, class_="band"))
    if valley:
        inside = [(x, y) for x, y in valley if frame.x[0] <= x <= frame.x[1] and frame.y[0] <= y <= frame.y[1]]
        parts.append(frame.line(inside, class_="valley"))
    parts.append(frame.line(walked, class_="way"))
    parts += [frame.dot(x, y, class_="point", title=f"step {k}") for k, (x, y) in enumerate(walked, 1)]
    parts.append(frame.dot(*answer, 5.5, class_="stop tuned", title="the answer"))
    return svg(joined(parts), name)


def loadings(parts_of: Mapping[str, float], *, name: str) -> Markup:
    """What each number has of a direction that is not determined, its largest part 1: a bar each."""
    frame = Frame((0.5, len(parts_of) + 0.5), (-1.1, 1.1))
    bars = [frame.bar(k, 0, part, class_="loading") for k, (label, part) in enumerate(parts_of.items(), 1)]
    return svg(joined([frame.axes("number, in the order of the job"), frame.level(0.0, class_="zero"), *bars]), name)


Curve = Sequence[Sequence[float]]  # t, and log-SNR at each


def curve(start: Curve, tuned: Curve, *, name: str) -> Markup:
    """Both noise schedules, log-SNR over time; the start dashed."""
    frame = Frame((0.0, 1.0), padded([*start[1], *tuned[1]]))
    lines = [
        frame.line(list(zip(*side, strict=True)), class_=kind)
        for side, kind in ((start, "before"), (tuned, "tuned-line"))
    ]
    return svg(joined([frame.axes("time, image to noise; log-SNR upwards", whole=False), *lines]), name)


@dataclass(frozen=True)
class Stops:
    """Where a sampler stops: how much noise there is, and the time that the network is told."""

    log_snr: Sequence[float]
    times: Sequence[float]


def stops(start: Stops, tuned: Stops, *, name: str) -> Markup:
    """Both grids over log-SNR from noise to image, the start above; a thin line shows where each stop went."""
    frame = Frame(padded([*start.log_snr, *tuned.log_snr], 0.04), (0.0, 1.0), height=170)
    above, below = frame.py(0.8), frame.py(0.2)
    parts = [_axis_of_log_snr(frame)]
    for a, b in zip(start.log_snr, tuned.log_snr, strict=True):
        parts.append(tag("line", x1=frame.px(a), y1=above, x2=frame.px(b), y2=below, class_="grid"))
    for side, y, word in ((start, 0.8, "start"), (tuned, 0.2, "tuned")):
        label = frame.py(y) + (-9 if word == "start" else 17)
        parts.append(tag("text", word, x=frame.left - 8, y=frame.py(y) + 4, class_="tick end"))
        for number, (x, time) in enumerate(zip(side.log_snr, side.times, strict=True), 1):
            said = f"step {number}: time {number_format.number(time)}, log-SNR {number_format.number(x, 2)}"
            parts.append(frame.dot(x, y, 4, class_=f"stop {word}", title=said))
        parts += [
            tag(
                "text",
                number_format.number(time, 0 if time == round(time) else 1),
                x=frame.px(x),
                y=label,
                class_="tick middle",
            )
            for x, time in _apart(frame, side)
        ]
    return svg(joined(parts), name, height=frame.height)


def _apart(frame: Frame, side: Stops, least: float = 26.0) -> list[tuple[float, float]]:
    """The stops whose times can be written without touching those before."""
    kept: list[tuple[float, float]] = []
    for x, time in zip(side.log_snr, side.times, strict=True):
        if not kept or abs(frame.px(x) - frame.px(kept[-1][0])) >= least:
            kept.append((x, time))
    return kept


def _axis_of_log_snr(frame: Frame) -> Markup:
    marks, base = ticks(*frame.x, 6), frame.height - BOTTOM
    parts = [tag("text", marks.label(x), x=frame.px(x), y=base + 17, class_="tick middle") for x in marks.values]
    name = "log-SNR, noise to image"
    return joined([*parts, tag("text", name, x=frame.width - RIGHT, y=frame.height - 4, class_="tick end")])


def difference(low: float, value: float, high: float, *, name: str) -> Markup:
    """The interval of a difference on a line with its zero: left of it is worse, right of it better."""
    width, height, y = 440, 74, 30
    left, right = padded([0.0, low, high], 0.12)
    scale: Callable[[float], float] = lambda x: 14 + (x - left) / (right - left) * (width - 28)  # noqa: E731
    marks = ticks(left, right, 6)
    parts = [tag("line", x1=14, x2=width - 14, y1=y, y2=y, class_="grid")]
    for x in marks.values:
        at = scale(x)
        parts.append(tag("line", x1=at, x2=at, y1=y - 3, y2=y + 3, class_="grid"))
        parts.append(tag("text", marks.label(x, sign=True), x=at, y=y + 36, class_="tick middle"))
    parts.append(tag("line", x1=scale(0), x2=scale(0), y1=y - 20, y2=y + 20, class_="zero"))
    parts.append(tag("line", x1=scale(low), x2=scale(high), y1=y, y2=y, class_="interval"))
    parts.append(tag("circle", cx=scale(value), cy=y, r=6.5, class_="mean"))
    return svg(joined(parts), name, width, height)


def prompts(rows: Sequence[tuple[str, float]], *, name: str, width: int = 900) -> Markup:
    """A stem for each prompt's mean difference, from the greatest loss to the greatest gain."""
    if not rows:
        return Markup("")
    height = 190
    ys = [value for _, value in rows]
    frame = Frame((-0.8, len(rows) - 0.2), padded([0.0, *ys]), width=width, height=height)
    marks = ticks(*frame.y, 4)
    parts = [frame.level(y, class_="grid") for y in marks.values]
    parts += [tag("text", marks.label(y), x=LEFT - 8, y=frame.py(y) + 4, class_="tick end") for y in marks.values]
    parts.append(frame.level(0, class_="zero"))
    for i, (prompt, value) in enumerate(rows):
        side = "gain" if value >= 0 else "loss"
        parts.append(frame.bar(i, 0, value, class_=f"stem {side}"))
        parts.append(
            frame.dot(
                i,
                value,
                min(3.2, width / len(rows) / 3),
                class_=f"head {side}",
                title=f"{_cut(prompt, LONGEST)}: {number_format.number(value, sign=True)}",
            )
        )
    base = height - 14
    most = (width - LEFT) // 18  # characters of a name: both must stand on one line
    parts.append(tag("text", _cut(rows[0][0], most), x=frame.left, y=base, class_="tick"))
    if len(rows) > 1:
        parts.append(tag("text", _cut(rows[-1][0], most), x=width - RIGHT, y=base, class_="tick end"))
    return svg(joined(parts), name, width, height)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def scatter(start: Points, tuned: Points, *, name: str) -> tuple[Markup, Markup]:
    """Samples of a world without images, on the same axes."""
    both = [*start, *tuned]
    x, y = padded([a for a, _ in both]), padded([b for _, b in both])
    frame = Frame(x, y, width=440, height=330)

    def side(points: Points, kind: str) -> Markup:
        dots = [frame.dot(a, b, 2.4, class_=f"sample {kind}") for a, b in points]
        return svg(joined([frame.axes("first coordinate", whole=False), *dots]), f"{name}, {kind}", 440, 330)

    return side(start, "start"), side(tuned, "tuned")


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


def _linked(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
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
