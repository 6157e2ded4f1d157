"""`status.json` and `report.json`, read back only where they are what was written."""

from __future__ import annotations

import json
from pathlib import Path

from genbo.cli.run.atomic import is_plain_file
from genbo.cli.run.json_files import Document
from genbo.cli.run.layout import REPORT, STATUS
from genbo.cli.run.seals import read_sealed, sha256

STATES = ("running", "done", "preempted", "diverged", "failed")


def read_status(path: Path) -> Document | None:
    """What `status.json` says; None where there is none, or it is damaged."""
    found = read_sealed(path / STATUS)
    kinds = {"schema": int, "last_step": int, "resumable": bool, "reason": str | None}
    if found is None or found.get("state") not in STATES:
        return None
    return found if all(isinstance(found.get(key, found), kind) for key, kind in kinds.items()) else None


def read_report(path: Path) -> Document | None:
    """The object of `report.json`; None where there is none, or it is not what was written."""
    place, status = path / REPORT, read_status(path) or {}
    try:
        data = place.read_bytes() if is_plain_file(place) else b""
        found = json.loads(data)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or "headline" not in found:
        return None
    return found if status.get("report") in (None, sha256(data)) else None
