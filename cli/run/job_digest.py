"""What of a job decides its numbers: its digest, and how two jobs differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from genbo.cli.run.json_files import Document, strict
from genbo.cli.run.redaction import without_secrets
from genbo.cli.run.seals import sha256

FREE_KEYS = {
    "output",
    "budget.minutes",
    "model.batch",
}  # may differ when a run is resumed: they change no noise


def flat(document: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every leaf of a document with its dotted name."""
    if isinstance(document, Mapping) and document:
        for key, value in document.items():
            yield from flat(value, f"{prefix}{key}.")
    elif isinstance(document, (list, tuple)) and document:
        for index, value in enumerate(document):
            yield from flat(value, f"{prefix}{index}.")
    else:
        yield prefix.removesuffix("."), document


def decisive(document: Document) -> Document:
    """The leaves that numbers of tuning depend on: judges look at its end alone."""
    return {k: v for k, v in flat(strict(document)) if k not in FREE_KEYS and not k.startswith("evaluate.judges")}


def judges_in(document: Any) -> object:
    """Those of a job's document, as they are kept."""
    return without_secrets(strict((document.get("evaluate") or {}).get("judges", [])))


def digest_of(document: Document) -> str:
    return sha256(json.dumps(decisive(document), sort_keys=True).encode())


def differing(stored: Document, wanted: Document) -> list[str]:
    """`key: stored value -> wanted value` for every leaf that differs."""
    a, b = decisive(stored), decisive(wanted)
    absent = "(none)"
    names = [name for name in {**a, **b} if a.get(name, absent) != b.get(name, absent)]
    return [f"{name}: {a.get(name, absent)} -> {b.get(name, absent)}" for name in sorted(names)]
