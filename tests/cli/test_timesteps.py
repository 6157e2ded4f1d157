"""A job that tunes where the sampler stops, from YAML to a folder that stops there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from genbo.cli.commands import init, show, tune
from genbo.cli.job.job import read_job
from genbo.cli.plan.counts import plan
from genbo.cli.report import chart, html
from genbo.cli.report.usage import diffusers_arguments

ROOT = Path(__file__).parents[2]
JOB: dict[str, Any] = {
    "version": 1,
    "model": {"kind": "mixture", "sampler": {"kind": "dpmpp", "steps": 5}, "guidance": 2.0, "batch": 32},
    "prompts": ["east", "north"],
    "tune": {"timesteps": {"start": "uniform"}},
    "reward": {"kind": "teacher", "steps": 40},
    "budget": {"steps": 6, "samples": 16, "pool": 32},
    "evaluate": {"samples": 40},
    "output": "run",
}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_from_a_job_to_times_that_are_better(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = tune.tune(JOB).result()
    assert found.verdict == "better"
    value = found.document["phi"]["timesteps"]
    assert value["start"] == [-8, -4, 0, 4, 8]
    assert value["tuned"][0] == -8 and sorted(value["tuned"]) == value["tuned"]
    assert len(value["se"]) == 5 and value["se"][0] == 0
    assert value["tuned_log_snr"] == value["tuned"], "an exact world's times are log-SNRs"
    cost, planned = found.document["cost"], found.document["cost"]["planned"]
    assert {key: cost[key] for key in planned} == planned
    document = json.loads((found.folder / "tuned" / "genbo.json").read_text())
    assert document["timesteps"] == document["tuned"]["timesteps"] == value["tuned"]
    page = (found.folder / "report.html").read_text()
    assert "Where the sampler stops" in page and 'class="stop tuned"' in page
    assert show.run(found.folder) == 0
    assert "5 values" in capsys.readouterr().out


def test_together_with_guidance(workplace: Path) -> None:
    both = {"timesteps": {"start": "trailing"}, "guidance": {"start": 2.0, "shape": "per_step"}}
    found = tune.tune({**JOB, "tune": both}).result()
    assert found.document["estimator"]["kind"] == "reverse_mode"
    assert len(found.phi["timesteps"]) == len(found.phi["guidance"]) == 5
    settings = found.document["use"]["settings"]
    assert settings["timesteps"] == found.phi["timesteps"] and settings["guidance"]["weight"] == found.phi["guidance"]


def test_the_estimator_is_chosen_by_how_many_stops_move() -> None:
    def chosen(steps: int) -> str:
        sampler = {"kind": "ddim", "steps": steps}
        return read_job({**JOB, "model": {**JOB["model"], "sampler": sampler}}).chosen().name

    assert [chosen(steps) for steps in (2, 6, 9, 10, 30)] == ["zeroth_order"] * 3 + ["reverse_mode"] * 2


def test_times_of_a_pipeline_are_whole_and_can_be_pasted(workplace: Path, tiny_sd: Path) -> None:
    model = {"pretrained": str(tiny_sd), "device": "cpu", "sampler": {"kind": "dpmpp", "steps": 3}, "guidance": 2.0}
    job = {**JOB, "model": model, "tune": {"timesteps": {"start": "trailing"}}, "evaluate": {"samples": 4}}
    found = tune.tune({**job, "reward": {"kind": "teacher", "steps": 6}, "budget": {"steps": 2, "samples": 4}}).result()
    times = found.phi["timesteps"]
    assert times == [round(t) for t in times] and times[0] == 999
    pasted = [round(t) for t in times]
    assert f"guidance_scale=2.0, timesteps={pasted})" in found.document["use"]["diffusers"]
    document = json.loads((found.folder / "tuned" / "genbo.json").read_text())
    assert document["timesteps"] == times and document["diffusers"] == {"timesteps": pasted}

    from genbo.diffusion.tuned import load

    assert load(found.folder, device="cpu").process.grid.time.tolist() == [times]


def test_a_sampler_whose_scheduler_takes_no_times_is_for_genbo_alone(workplace: Path, tiny_sd: Path) -> None:
    model = {"pretrained": str(tiny_sd), "device": "cpu", "sampler": {"kind": "ddim", "steps": 3}, "guidance": 2.0}
    job = {**JOB, "model": model, "reward": {"kind": "compressibility"}, "evaluate": {"samples": 4}}
    found = tune.tune({**job, "budget": {"steps": 1, "samples": 4}}).result()
    assert found.document["use"]["diffusers"] is None and "genbo.load" in found.document["use"]["genbo"]


def test_stops_take_the_place_of_steps() -> None:
    said = {"guidance": {"kind": "plain", "weight": 2.5}, "sampler": {"kind": "euler", "steps": 3}}
    assert diffusers_arguments(said) == "guidance_scale=2.5, num_inference_steps=3"
    assert diffusers_arguments(said, {"sigmas": [2.0, 0.5]}) == "guidance_scale=2.5, sigmas=[2.0, 0.5]"


def test_the_example_and_the_template_are_jobs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    example = read_job(ROOT / "examples" / "timesteps.yaml")
    assert plan(example).inexact is None and example.steps == 6 and list(example.tune) == ["timesteps"]
    assert init.run("timesteps") == 0
    (tmp_path / "job.yaml").write_text(capsys.readouterr().out)
    assert read_job(tmp_path / "job.yaml").digest() == example.digest()


def test_the_chart_has_a_dot_a_stop_and_a_line_between_the_two() -> None:
    start, tuned = chart.Stops([-5.0, 0.0, 1.0], [999, 400, 200]), chart.Stops([-5.0, -1.0, 3.0], [999, 500.5, 40])
    drawn = str(chart.stops(start, tuned, name="times"))
    assert drawn.count('class="stop start"') == drawn.count('class="stop tuned"') == 3
    assert drawn.count("<line") == 3
    assert "step 3: time 40.0, log-SNR 3.00" in drawn and ">500.5<" in drawn and ">999<" in drawn


def test_times_that_stand_close_are_written_once() -> None:
    side = chart.Stops([-5.0, 0.0, 0.01], [999, 400, 399])
    drawn = str(chart.stops(side, side, name="times"))
    assert ">400<" in drawn and ">399<" not in drawn


def test_a_report_of_guidance_has_no_such_chart() -> None:
    value = {"start": 1.0, "tuned": 2.0, "se": 0.1, "bounds": [0, 20]}
    assert html.phi_view("guidance", value, {"steps": [{"phi": {"guidance": 1.0}}]}).stops == ""


def test_error_bars_of_times_pass_through_their_link() -> None:
    """Times hang together: each one's error has all coordinates in it, by the link's own Jacobian."""
    from genbo.bilevel.root_estimate import Answer
    from genbo.cli.report.summary import _through_link
    from genbo.cli.stages.build import assemble

    problem = assemble(read_job(JOB)).problem
    u = problem.coordinates(problem.first()) / 4
    se = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    draws = u + se * torch.randn(40_000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 20
    expected = problem.value(draws).std(0) * 20
    found = _through_link(problem, Answer(u, se, "mean"))
    assert found == pytest.approx(expected.tolist(), rel=0.02)
    unknown = Answer(u, torch.tensor([0.1, torch.nan, 0.1, 0.1], dtype=torch.float64), "mean")
    assert _through_link(problem, unknown) == [None] * 4
