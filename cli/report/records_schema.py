"""genbo schema report: the JSON schemas of what a run writes, from the records that it is read with."""

from __future__ import annotations

import json

from genbo.cli.errors import UserMistake
from genbo.cli.report.records import Record, Status, StepRecord
from genbo.cli.report.records_report import RunReport
from genbo.cli.run.layout import SCHEMA

DIALECT = "https://json-schema.org/draft/2020-12/schema"
RECORDS: dict[str, tuple[type[Record], str]] = {
    "report": (RunReport, "report.json"),
    "status": (Status, "status.json"),
    "step": (StepRecord, "a line of steps.jsonl"),
}


def run(name: str) -> int:
    """Print one; `UserMistake` for a name that has no schema."""
    if name not in RECORDS:
        raise UserMistake(f"unknown schema {name!r}; choose job, {', '.join(RECORDS)}")
    print(json.dumps(schema_of(name), indent=2, ensure_ascii=False))
    return 0


def schema_of(name: str) -> dict[str, object]:
    """A schema with the version of the run folder in its title."""
    record, file = RECORDS[name]
    schema = record.model_json_schema(by_alias=True)
    return {**schema, "$schema": DIALECT, "title": f"{file} of a genbo run, schema {SCHEMA}"}
