"""JSON of the user's, read strictly: Python's own reader takes NaN and Infinity, which are no JSON and no numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_BYTES = 100_000_000


def mapping_in(file: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """The mapping in a file. OSError where it cannot be read; ValueError says what is wrong with it."""
    if file.stat().st_size > most_bytes:
        raise ValueError(f"it is larger than {most_bytes / 1e6:g} MB")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("it is no mapping")
    return found


def not_finite(value: object, where: str = "") -> Iterator[tuple[str, float]]:
    """The places of every NaN and infinity, as `betas.3`, with the number there."""
    if isinstance(value, float) and not math.isfinite(value):
        yield where, value
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in entries:
        yield from not_finite(part, f"{where}.{name}" if where else str(name))


def strict_mapping_in(file: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """The same, where every number must be finite."""
    found = mapping_in(file, most_bytes)
    for where, value in not_finite(found):
        raise ValueError(f"{where} is {value}")
    return found
