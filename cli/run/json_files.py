"""JSON files: strict, in UTF-8, written whole."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genbo.cli.run.atomic import write_atomic

Document = dict[str, object]  # a JSON object; whoever reads a value of one says what it must be


def strict(value: object) -> Any:
    """Numbers that JSON cannot hold become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): strict(v) for k, v in value.items()}
    return [strict(v) for v in value] if isinstance(value, (list, tuple)) else value


def to_json(value: object, *, indent: int | None = 2) -> bytes:
    return (json.dumps(strict(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode(
        "utf-8", "backslashreplace"
    )  # half of a surrogate pair, as in a file's name that is not UTF-8, becomes an escape of JSON


def write_json(path: Path, value: object) -> None:
    write_atomic(path, to_json(value))
