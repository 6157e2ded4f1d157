"""Numbers as a person writes them: as many digits as the error bar supports."""

from __future__ import annotations

import math
from collections.abc import Sequence

MINUS = "−"
FEW = 3  # numbers that are all written


def decimals(error: float | None, value: float = 0.0) -> int:
    """Places behind the point that show two digits of the error, or three of the value without one."""
    if error is not None and math.isfinite(error) and error > 0:
        return max(0, min(8, 1 - math.floor(math.log10(error))))
    if not math.isfinite(value) or value == 0:
        return 2
    return max(0, min(8, 2 - math.floor(math.log10(abs(value)))))


def number(value: float | None, places: int | None = None, *, sign: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return "—"
    places = decimals(None, value) if places is None else places
    text = f"{value:+.{places}f}" if sign else f"{value:.{places}f}"
    if float(text) == 0:
        text = text.replace("-", "+") if sign else text.replace("-", "")
    return text.replace("-", MINUS)


def with_error(value: float | None, error: float | None) -> str:
    """6.31 ± 0.42; without an error bar the value alone."""
    if value is None:
        return "—"
    if error is None or not math.isfinite(error) or error <= 0:
        return number(value)
    places = decimals(error)
    return f"{number(value, places)} ± {number(error, places)}"


def interval(bounds: Sequence[float | None] | None, places: int | None = None) -> str:
    if bounds is None or bounds[0] is None or bounds[1] is None:
        return "[—]"
    low, high = bounds[0], bounds[1]
    places = decimals((high - low) / 2, high) if places is None else places
    return f"[{number(low, places)}, {number(high, places)}]"


def change(difference: float | None, bounds: Sequence[float | None] | None) -> str:
    """+0.041 [0.035, 0.047]."""
    half = None if bounds is None or None in bounds else (bounds[1] - bounds[0]) / 2  # type: ignore[operator]
    places = decimals(half, difference or 0.0)
    return f"{number(difference, places, sign=True)} {interval(bounds, places)}"


def numbers(value: float | Sequence[float], error: float | Sequence[float | None] | None = None) -> str:
    """A hyperparameter: a number with its error bar, a few of them, or the range of a longer list."""
    if isinstance(value, (int, float)):
        return with_error(float(value), error if isinstance(error, (int, float)) else None)
    if len(value) <= FEW:
        errors = error if isinstance(error, Sequence) else [None] * len(value)
        return ", ".join(with_error(v, e) for v, e in zip(value, errors, strict=True))
    low, high = min(value), max(value)
    if low == high:
        return number(low)
    places = decimals((high - low) / 2, high)
    return f"{number(low, places)} to {number(high, places)} ({len(value)} values)"


def named(names: Sequence[str], values: Sequence[float], errors: Sequence[float | None] | None = None) -> str:
    """A few numbers, each by its name: `end 0.88 ± 0.02, tau 5.4`."""
    pairs = zip(names, values, errors or [None] * len(names), strict=True)
    return ", ".join(f"{name} {with_error(value, error)}" for name, value, error in pairs)


def count(n: float | None) -> str:
    """12 800: thousands apart by a thin space that does not break."""
    return "—" if n is None else f"{round(n):,}".replace(",", "\u202f")


def duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return "—"
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def plural(n: int, word: str) -> str:
    """1 image, 2048 images, 10 000 images."""
    return f"{n} {word}" if n == 1 else f"{count(n) if n >= 10_000 else n} {word}s"


def pasted(value: float | Sequence[float]) -> float | list[float]:
    """A value with as many digits as a person pastes into a job: five."""
    return float(f"{value:.5g}") if isinstance(value, (int, float)) else [float(f"{v:.5g}") for v in value]


BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None]) -> str:
    """A line of text as high as its values; a gap where a value is missing."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    levels = [None if v is None else round((v - low) / span * 7) if span else 3 for v in values]
    return "".join(" " if level is None else BLOCKS[level] for level in levels)
