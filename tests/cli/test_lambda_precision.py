"""`budget: {precision: 1.5x}` in a job: what is planned, what is drawn, and the same after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from genbo.cli.job.job import read_job
from genbo.cli.job.yaml_nodes import JobMistakes
from genbo.cli.plan.counts import plan
from tests.cli.conftest import Warm
from tests.cli.test_regularize import JOB, outcome, report_of

LARGE: dict[str, Any] = {**JOB, "lower": {**JOB["lower"], "samples": 8192}, "model": {**JOB["model"], "batch": 8192}}
PRECISE: dict[str, Any] = {**LARGE, "budget": {"steps": 2, "precision": "1.3x"}}


def test_the_plan_has_the_same_limit_and_a_smaller_least():
    precise, plain = plan(read_job(PRECISE)), plan(read_job(LARGE))
    less = plain.total_at_least.image_forwards - precise.total_at_least.image_forwards
    assert less == (8192 - 1024) * 32
    pilots = 1024 * 15 // 4 * 2 * 32, 8192 // 4 * 2 * 32  # of all shifted banks, there and again on the way back
    assert precise.tuning.image_forwards - pilots[0] == plain.tuning.image_forwards - pilots[1]
    assert "up to 4 more banks" in (precise.inexact or "")


@pytest.fixture(scope="module")
def whole(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "job.yaml").write_text(json.dumps(PRECISE))
    started = warm.start(folder, "job.yaml")
    assert started.wait() == 0, started.said
    return folder / "run"


def test_it_ends_when_lambda_is_known_within_the_factor(whole):
    report = report_of(whole)
    best = report["search"]["optimum"]
    low, high = best["interval"]
    assert max(high / best["lam"], best["lam"] / low) <= 1.3 and low < 2 / 3 < high
    assert report["search"]["after"] == "done" and report["search"]["samples"][0] == 1024
    spent = report["cost"]["image_forwards"]
    assert report["cost"]["planned_at_least"]["image_forwards"] < spent < report["cost"]["planned"]["image_forwards"]


def test_a_resolved_job_has_a_precision_only_where_it_was_given():
    assert "precision" not in read_job(JOB).document()["budget"]
    assert read_job(PRECISE).document()["budget"]["precision"] == "1.3x"
    assert read_job(read_job(PRECISE).document()) == read_job(PRECISE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": {"precision": "0.9x"}}, "must be more than 1x"),
        ({"budget": {"precision": "tight"}}, "precision"),
        ({"lower": {**JOB["lower"], "precision": 0.2}}, "given twice"),
        ({"lower": {"kind": "closed_form", "reward": JOB["lower"]["reward"]}}, "one bank for every lambda"),
        ({"lower": None, "tune": {"guidance": {}}}, "is for a search for lambda"),
    ],
)
def test_a_precision_that_cannot_be_is_a_sentence(change, message):
    with pytest.raises(JobMistakes, match=message):
        read_job({**PRECISE, **change})


@pytest.mark.parametrize(
    "point", ["journal.after:1", "step.computed:2", pytest.param("evaluation.side:2", marks=pytest.mark.slow)]
)
def test_killed_and_gone_on_with_it_is_the_same(warm: Warm, tmp_path: Path, whole: Path, point: str):
    (tmp_path / "job.yaml").write_text(json.dumps(PRECISE))
    at, nth = point.rsplit(":", 1)
    assert warm.start(tmp_path, "job.yaml", GENBO_FAULT=f"{at}:kill:{nth}").wait() != 0
    again = warm.start(tmp_path, "job.yaml", "--resume")
    assert again.wait() == 0, again.said
    assert outcome(tmp_path / "run") == outcome(whole)
