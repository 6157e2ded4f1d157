"""The records of report.json, status.json and steps.jsonl: all keys, no others, and the same JSON again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from genbo.cli.commands import show, tune
from genbo.cli.errors import ArtifactRefused, UserMistake
from genbo.cli.main import main
from genbo.cli.report import html, records_schema
from genbo.cli.report.records import StepRecord
from genbo.cli.report.records_report import RunReport
from tests.cli.records_on_disk import assert_strict

OLD = Path(__file__).with_name("old_runs")
CLIMB: dict[str, Any] = {
    "version": 1,
    "model": {"kind": "mixture", "sampler": {"kind": "ddim", "steps": 4}, "batch": 16},
    "prompts": ["east", "north"],
    "tune": {"guidance": {"start": 1.0, "bounds": [0, 20], "shape": "per_step"}},
    "reward": {"kind": "quadratic", "target": [1.2, 0.2]},
    "keep": [{"kind": "linear", "direction": [1.0, 0.0], "at_least": "start - 5"}],
    "budget": {"steps": 2, "samples": 8},
    "evaluate": {"samples": 8, "judges": [{"kind": "quadratic", "target": [0.0, 1.0]}]},
    "output": "run",
}
SEARCH: dict[str, Any] = {
    "version": 1,
    "model": {"kind": "gaussian", "means": {"a": [0.0, 0.0]}, "std": 1.0, "sampler": {"kind": "ddim", "steps": 4}},
    "prompts": ["a"],
    "tune": {"regularization": {"start": 0.3, "bounds": [0.1, 10]}},
    "reward": {"kind": "quadratic", "target": [1.5, 0.0], "scale": 0.5},
    "lower": {"kind": "closed_form", "reward": {"kind": "linear", "direction": [1.0, 0.0]}},
    "output": "run",
}
SEARCH["model"]["guidance"] = 1.0


@pytest.mark.parametrize("job", [CLIMB, SEARCH], ids=["climb", "search"])
def test_what_a_run_writes_is_in_the_records_and_in_the_schema(job: dict[str, Any], workplace: Path) -> None:
    found = tune.tune(job).result()
    assert_strict(found.folder)
    written = json.loads((found.folder / "report.json").read_text())
    jsonschema.validate(written, records_schema.schema_of("report"))
    jsonschema.validate(json.loads((found.folder / "status.json").read_text()), records_schema.schema_of("status"))
    for line in (found.folder / "steps.jsonl").read_text().splitlines():
        jsonschema.validate(json.loads(line), records_schema.schema_of("step"))


@pytest.mark.parametrize("folder", sorted(OLD.iterdir()), ids=lambda folder: folder.name)
def test_what_an_earlier_version_wrote_is_read_and_comes_back_the_same(folder: Path) -> None:
    assert_strict(folder)


def test_strict_reading_refuses_a_key_that_has_no_field() -> None:
    document = json.loads((OLD / "guidance" / "report.json").read_text())
    for place in (document, document["phi"]["guidance"], document["held_out"], document["steps"][0]):
        place["another"] = 1
        with pytest.raises(ValidationError, match="another"):
            RunReport.model_validate(document, extra="forbid")
        assert RunReport.model_validate(document).document() == document, "lenient reading keeps it"
        del place["another"]


def test_a_line_of_the_journal_keeps_nothing_that_it_was_not_given() -> None:
    assert StepRecord(step=1, value=float("nan")).document() == {"step": 1, "value": None}


def test_a_report_that_is_not_one_is_refused_with_the_place(tmp_path: Path) -> None:
    document = json.loads((OLD / "guidance" / "report.json").read_text())
    document["held_out"]["difference"] = "much"
    (tmp_path / "report.json").write_text(json.dumps(document))
    (tmp_path / "status.json").write_text((OLD / "guidance" / "status.json").read_text())
    for command in (html.run, show.run):
        with pytest.raises(ArtifactRefused, match=r"report\.json cannot be read: held_out\.difference"):
            command(tmp_path)


def test_the_command_prints_each_schema(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("report", "status", "step"):
        assert records_schema.run(name) == 0
        schema = json.loads(capsys.readouterr().out)
        jsonschema.Draft202012Validator.check_schema(schema)
        assert "schema 1" in schema["title"]
    with pytest.raises(UserMistake, match="unknown schema 'foo'; choose job, report, status, step"):
        records_schema.run("foo")


def test_schema_alone_stays_that_of_the_job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def printed(*arguments: str) -> dict[str, Any]:
        monkeypatch.setattr("sys.argv", ["genbo", "schema", *arguments])
        with pytest.raises(SystemExit):
            main()
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    assert printed() == printed("job") and printed()["title"] == "A genbo job"
    assert printed("report")["title"] == "report.json of a genbo run, schema 1"
