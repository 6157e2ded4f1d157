"""genbo schema: the JSON schema of a job, for editors; from the same sections that read it."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from genbo.cli.job import forms
from genbo.cli.job.grammar import SECTIONS

DIALECT = "http://json-schema.org/draft-07/schema#"  # what editors' YAML servers read


def run() -> int:
    """Print it."""
    print(json.dumps(job_schema(), indent=2, ensure_ascii=False))
    return 0


def job_schema() -> dict[str, object]:
    """A schema in draft 7: `definitions` rather than `$defs`, and no `prefixItems`."""
    schema = job_model().model_json_schema(ref_template="#/definitions/{model}")
    schema["definitions"] = schema.pop("$defs")
    return {"$schema": DIALECT, "title": "A genbo job", **_without_titles(schema)}


def job_model() -> type[BaseModel]:
    """A model of the job as it may be written, with all its short forms."""
    return forms.mapping("Job", **{section.key: section.described() for section in SECTIONS})


def _without_titles(value: object) -> Any:
    """pydantic titles every field after its own name, which tells a reader nothing."""
    match value:
        case dict():
            return {k: _without_titles(v) for k, v in value.items() if not (k == "title" and isinstance(v, str))}
        case list():
            return [_without_titles(item) for item in value]
    return value
