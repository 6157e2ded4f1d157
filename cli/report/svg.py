"""SVG elements, ticks and a pair of axes: what charts are drawn with.

Classes carry the colours (`start`, `tuned`, `axis`, `grid`); every text is escaped; nothing here can run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
