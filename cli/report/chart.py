"""Small charts as inline SVG, coloured by the page's own variables so that they follow light and dark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from genbo.cli.report import number_format
from genbo.cli.report.svg import BOTTOM, LEFT, LONGEST, RIGHT, Frame, Points, finite, joined, padded, svg, tag, ticks


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
    if not values or not seen:
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
    """Two parts of a derivative over the steps, with a line at zero."""
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
    """Where a sampler stops: how much noise there is, and the time that the network gets as input."""

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
            text = f"step {number}: time {number_format.number(time)}, log-SNR {number_format.number(x, 2)}"
            parts.append(frame.dot(x, y, 4, class_=f"stop {word}", title=text))
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
    most = (width - LEFT) // 18  # characters of a name: both must fit on one line
    parts.append(tag("text", _cut(rows[0][0], most), x=frame.left, y=base, class_="tick"))
    if len(rows) > 1:
        parts.append(tag("text", _cut(rows[-1][0], most), x=width - RIGHT, y=base, class_="tick end"))
    return svg(joined(parts), name, width, height)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def scatter(start: Points, tuned: Points, *, name: str) -> tuple[Markup, Markup]:
    """Samples of a toy model without images, on the same axes."""
    both = [*start, *tuned]
    x, y = padded([a for a, _ in both]), padded([b for _, b in both])
    frame = Frame(x, y, width=440, height=330)

    def side(points: Points, kind: str) -> Markup:
        dots = [frame.dot(a, b, 2.4, class_=f"sample {kind}") for a, b in points]
        return svg(joined([frame.axes("first coordinate", whole=False), *dots]), f"{name}, {kind}", 440, 330)

    return side(start, "start"), side(tuned, "tuned")
