"""Run folders that an earlier genbo wrote, with what `show` and `report` read of them.

Made by commit e436500, a small job of each kind; `stopped` is a run that a signal ended. Two things are shorter than
they were written, and nothing else differs: curves keep every tenth point, and the stopped run its first six steps.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from genbo.cli.commands import show
from genbo.cli.report import html

RUNS = Path(__file__).with_name("old_runs")
ENDED = ["guidance", "timesteps", "noise-schedule", "regularization-closed-form"]


@pytest.fixture(params=ENDED)
def ended(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(RUNS / request.param, tmp_path / request.param))


def test_show_prints_the_verdict_and_every_value(ended: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show.run(ended) == 0
    shown = capsys.readouterr().out
    report = json.loads((ended / "report.json").read_text())
    assert shown.startswith(report["verdict"])
    assert all(name in shown for name in (*report["phi"], *report["rewards"]))
    assert "denoiser calls" in shown or report["cost"].get("denoiser_calls") is None


def test_show_gives_the_object_as_it_was_written(ended: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show.run(ended, as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((ended / "report.json").read_text())


def test_report_draws_the_page_again(ended: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert html.run(ended) == 0
    page = (ended / "report.html").read_text()
    report = json.loads((ended / "report.json").read_text())
    assert capsys.readouterr().out.strip() == str(ended / "report.html")
    assert "<svg" in page and report["reproduce"] in page and f">{report['verdict']}</p>" in page


def test_a_run_that_was_stopped_is_shown_with_its_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(RUNS / "stopped", tmp_path / "stopped"))
    assert show.run(folder) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("preempted stopped by a signal after step 62") and "--resume" in shown
    assert "guidance" in shown and "2.51 ± 0.92" in shown.replace("−", "")
    show.run(folder, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert (document["status"], len(document["steps"])) == ("preempted", 6)
