"""Strict reading of all that a run folder says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from genbo.cli.report.records import Record, Status, StepRecord
from genbo.cli.report.records_report import RunReport


def assert_strict(folder: Path) -> None:
    """report.json, status.json and every line of steps.jsonl have no key without a field, and dump to the same JSON."""
    report = folder / "report.json"
    if report.is_file():
        same(RunReport, json.loads(report.read_text()))
    same(Status, json.loads((folder / "status.json").read_text()))
    for line in (folder / "steps.jsonl").read_text().splitlines():
        same(StepRecord, json.loads(line))


def same(record: type[Record], document: dict[str, Any]) -> None:
    again = record.model_validate(document, extra="forbid").document()
    assert json.dumps(again, sort_keys=True) == json.dumps(document, sort_keys=True)
