"""A job that tunes for its worst prompts, from its file to its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from genbo.cli.commands import show, tune
from genbo.cli.job.job import read_job
from genbo.cli.report.html import render

JOB = """\
version: 1
model: {kind: mixture, sampler: {kind: ddim, steps: 5}, batch: 16}
prompts: [east, north, south]
tune: {guidance: {start: 4.0, bounds: [0, 20]}}
reward: {kind: quadratic, target: [1.2, 0.2]}
objective: {cvar: 0.5}
budget: {steps: 6, samples: 12}
evaluate: {samples: 24}
output: run
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path


@pytest.mark.parametrize(
    ("written", "share", "name"),
    [("worst", 0.0, "worst"), ("{cvar: 0.25}", 0.25, "cvar: 0.25"), ("{cvar: 1}", 1.0, "mean"), ("mean", 1.0, "mean")],
)
def test_what_a_job_may_write(place: Path, written: str, share: float, name: str) -> None:
    job = read_job("job.yaml", [f"objective={written}"])
    assert (job.objective.share, job.objective.name) == (share, name)
    assert read_job(job.document()).objective == job.objective


def test_the_mean_is_what_jobs_without_the_key_mean_and_their_digest_stays(place: Path) -> None:
    (place / "job.yaml").write_text(JOB.replace("objective: {cvar: 0.5}\n", ""))
    plain = read_job("job.yaml")
    assert plain.objective.is_mean and "objective" not in plain.document()
    assert plain.digest() == read_job("job.yaml", ["objective=mean"]).digest()
    assert plain.digest() == read_job("job.yaml", ["objective.cvar=1"]).digest()
    assert plain.digest() != read_job("job.yaml", ["objective=worst"]).digest()


def test_cvar_one_is_the_mean_exactly(place: Path) -> None:
    one = tune.tune("job.yaml", ["objective.cvar=1", "output=one"]).result().document
    mean = tune.tune("job.yaml", ["objective=mean", "output=mean"]).result().document
    worst = tune.tune("job.yaml", ["objective=worst", "output=worst"]).result().document
    same = [(a["u"], a["grad"], a["value"]) == (b["u"], b["grad"], b["value"]) for a, b in steps(one, mean)]
    assert all(same) and one["held_out"] == mean["held_out"] and one["phi"] == mean["phi"]
    other = [a["grad"] == b["grad"] for a, b in steps(one, worst)]
    assert other[0] and not any(other[2:]), "the first step knows nothing, the later ones weigh the prompts"


def steps(a: dict, b: dict) -> list[tuple[dict, dict]]:
    return list(zip(a["steps"], b["steps"], strict=True))


def test_a_run_that_is_left_goes_on_to_the_last_bit(place: Path) -> None:
    whole = tune.tune("job.yaml", ["output=whole"]).result().document
    with tune.tune("job.yaml") as left:
        for _ in range(3):
            next(left)
    rest = tune.tune("job.yaml", resume=True).result().document
    for a, b in steps(whole, rest):
        assert (a["u"], a["grad"], a["value"], a["scores"]) == (b["u"], b["grad"], b["value"], b["scores"])
    assert whole["held_out"] == rest["held_out"] and whole["phi"] == rest["phi"]


def test_report_page_and_show_name_the_objective_and_the_worst_prompts(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tune.tune("job.yaml").result().document
    found = document["held_out"]["objective"]
    assert (found["name"], found["share"]) == ("cvar: 0.5", 0.5)
    before, after = found["worst_before"], found["worst_after"]
    assert [row["start"] for row in before] == sorted(row["start"] for row in before)
    assert [row["tuned"] for row in after] == sorted(row["tuned"] for row in after)
    assert {row["prompt"] for row in before} == {"east", "north", "south"} and before[0]["samples"] == 8
    assert found["mean"]["start"] == document["rewards"]["quadratic"]["start"]
    assert document["held_out"]["start"] < found["mean"]["start"]
    assert "quadratic of the worst 50 % of prompts" in document["headline"]
    page = render(document, None, "run")
    assert "The worst prompts" in page and "objective: cvar: 0.5" in page
    capsys.readouterr()
    assert show.run("run") == 0
    shown = capsys.readouterr().out
    assert "objective: cvar: 0.5" in shown and "worst at the start" in shown and repr(before[0]["prompt"]) in shown
    assert json.loads((place / "run" / "report.json").read_text())["job"]["objective"] == {"cvar": 0.5}


def test_the_value_has_no_error_bar_where_prompts_may_tie(place: Path) -> None:
    document = tune.tune("job.yaml", ["objective=worst", "budget.steps=12", "budget.samples=24"]).result().document
    value = document["phi"]["guidance"]
    assert value["se"] is None and value["interval"] is None and value["kind"] != "interior"


def test_the_state_of_the_prompts_is_in_the_checkpoint(place: Path) -> None:
    from safetensors.torch import load_file

    with tune.tune("job.yaml") as left:
        next(left), next(left)
    (newest, *_) = sorted((place / "run" / "ckpt").glob("step-*"), reverse=True)
    tensors = load_file(next(newest.glob("*.safetensors")))
    assert tensors["standing.mass"].tolist() == pytest.approx([20.0] * 3, abs=8)
    assert tensors["standing.u"].shape == (3, 1) and all(t.isfinite().all() for t in tensors.values())
    assert tensors["standing.mass"].dtype == torch.float64
