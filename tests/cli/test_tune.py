"""genbo tune from a job to its folder: what it finds, what it writes, and every way that it can end."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from genbo.cli.commands import show, tune
from genbo.cli.errors import ArtifactRefused, Diverged, OutOfMemory, UserMistake
from genbo.cli.job.job import JobMistakes
from genbo.cli.stages import provenance

JOB_DICT = {
    "version": 1,
    "model": {"kind": "mixture", "sampler": {"kind": "ddim", "steps": 5}, "batch": 16},
    "prompts": ["east", "north"],
    "tune": {"guidance": {"start": 1.0, "bounds": [0, 20]}},
    "reward": {"kind": "quadratic", "target": [1.2, 0.2]},
    "budget": {"steps": 4, "samples": 8},
    "evaluate": {"samples": 24},
    "output": "run",
}


def report_of(run: Path) -> dict:
    return dict(json.loads((run / "report.json").read_text()))


def status_of(run: Path) -> dict:
    return dict(json.loads((run / "status.json").read_text()))


# -- what it leaves behind -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on an exact world, far from its optimum at the start."""
    place = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        patch.setenv("HF_TOKEN", "hf_neverwritethis123")
        job = {
            **JOB_DICT,
            "tune": {"guidance": {"start": 4.0, "bounds": [0, 20]}},
            "budget": {"steps": 12, "samples": 32},
        }
        assert tune.run(job, [], quiet=True) == 0
    return place / "run"


def test_it_climbs_to_the_optimum_and_says_better(done: Path) -> None:
    report = report_of(done)
    guidance = report["phi"]["guidance"]
    assert guidance["start"] == 4.0
    assert guidance["bounds"] == [0, 20]
    assert guidance["tuned"] < 2
    total = report["held_out"]
    assert total["difference"] == pytest.approx(report["rewards"]["quadratic"]["difference"])
    assert total["tuned"] > total["start"]


def test_the_object_of_show_json(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show.run(done, as_json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == report_of(done)
    assert said["phi"]["guidance"].keys() >= {"start", "tuned", "se", "bounds"}
    assert said["verdict"] in {"better", "worse", "no measurable difference"}
    wanted = {"start", "tuned", "difference", "interval", "samples", "prompts", "fresh_prompts"}
    assert said["held_out"].keys() >= wanted
    assert said["rewards"]["quadratic"].keys() >= {"start", "tuned", "difference", "interval", "weight"}
    counts = {"denoiser_calls", "image_forwards", "reward_images"}
    assert said["cost"].keys() >= {*counts, "elapsed_s", "planned"}
    assert said["cost"]["planned"].keys() >= counts
    assert said["steps"][0].keys() >= {"phi", "value", "value_se", "grad", "grad_se", "status"}
    assert said["estimator"].keys() == {"kind", "reason"}
    assert all(said[key] for key in ("trust", "job", "environment", "reproduce", "genbo", "headline"))
    assert said["status"] == "done"


def test_what_it_cost_is_what_was_planned(done: Path) -> None:
    cost = report_of(done)["cost"]
    assert {key: cost[key] for key in cost["planned"]} == cost["planned"]


def test_held_out_seeds_are_not_the_tuning_seeds() -> None:
    from genbo.diffusion.seed import Seed, batch_of

    held_out = batch_of(["a"], 50, Seed(0).child("evaluate"))
    for step in range(20):
        assert not set(held_out.seeds) & set(batch_of(["a"], 50, Seed(0).child("tune", step)).seeds)


def test_the_journal_has_a_line_a_step(done: Path) -> None:
    records = [json.loads(line) for line in (done / "steps.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == list(range(12))
    assert records[0]["phi"] == {"guidance": pytest.approx(4.0)}
    assert all(math.isfinite(r["value"]) and r["status"] == "ok" for r in records)
    assert [r["elapsed_s"] for r in records] == sorted(r["elapsed_s"] for r in records)


def test_tuned_says_what_was_found(done: Path) -> None:
    said = json.loads((done / "tuned" / "genbo.json").read_text())
    assert said["guidance"]["weight"] == report_of(done)["phi"]["guidance"]["tuned"]
    assert said["sampler"] == {"kind": "ddim", "steps": 5, "eta": 0.0}


def test_no_secret_and_no_foreign_path_is_written(done: Path) -> None:
    for file in done.rglob("*"):
        if file.is_file():
            assert b"hf_neverwritethis123" not in file.read_bytes(), file
    for name in ("report.html", "report.json", "status.json", "steps.jsonl", "environment.json"):
        assert str(Path.home()) + "/" not in (done / name).read_text(), name


def test_the_job_it_keeps_is_the_same_job(done: Path, workplace: Path) -> None:
    from genbo.cli.job.job import read_job

    assert read_job(done / "job.yaml").document() == report_of(done)["job"]


def test_show_draws_a_finished_run(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show.run(done) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert report_of(done)["verdict"] in said
    assert "guidance" in said
    assert str(done / "report.html") in said.replace(" ", "") or "report.html" in said


# -- streams and flags ---------------------------------------------------------------------------------------


def test_results_on_stdout_all_else_on_stderr(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.run("job.yaml", []) == 0
    out, err = capsys.readouterr()
    headline, value, place = out.strip().split("\n")
    assert headline == report_of(workplace / "run")["headline"]
    assert value.startswith("guidance: ")
    assert place == "report: run/report.html"
    assert [line.split()[1] for line in err.split("\n") if line.startswith("step ")] == [
        "1/4",
        "2/4",
        "3/4",
        "4/4",
    ]


def test_json_prints_the_report_and_nothing_else(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.run("job.yaml", [], as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == report_of(workplace / "run")


def test_quiet_is_silent_on_stderr(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.run("job.yaml", [], quiet=True) == 0
    assert capsys.readouterr().err == ""


def test_a_dry_run_shows_the_plan_and_writes_nothing(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.run("job.yaml", [], dry_run=True) == 0
    assert "network calls" in capsys.readouterr().out
    assert not (workplace / "run").exists()


def test_overrides_are_in_the_job_and_in_the_command(workplace: Path) -> None:
    tune.run("job.yaml", ["budget.steps=2", "output=other run"], quiet=True)
    report = report_of(workplace / "other run")
    assert len(report["steps"]) == 2
    assert report["reproduce"] == "genbo tune job.yaml --set budget.steps=2 --set 'output=other run'"


def test_the_python_function_gives_the_same(workplace: Path) -> None:
    found = tune.tune(JOB_DICT).result()
    assert found.folder == Path("run")
    assert found.document == report_of(workplace / "run")
    assert found.phi["guidance"] == found.document["phi"]["guidance"]["tuned"]


def test_a_finished_run_resumed_does_no_work(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune.run("job.yaml", [], quiet=True) == 0
    before = {p: p.stat().st_mtime_ns for p in (workplace / "run").rglob("*") if p.is_file() and p.name != "lock"}
    first = capsys.readouterr().out
    monkeypatch.setattr("genbo.cli.stages.build.assemble", None)  # whoever loads the model again, fails
    assert tune.run("job.yaml", [], resume=True) == 0
    assert capsys.readouterr().out == first
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_minutes_end_the_climb_and_the_rest_is_done(workplace: Path) -> None:
    found = tune.tune("job.yaml", ["budget.minutes=0.000001"]).result()
    assert found.document["status"] == "done"
    assert len(found.document["steps"]) == 1
    assert found.document["held_out"]["samples"] == 24


@pytest.fixture
def stopped(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that failed in its third step."""
    with monkeypatch.context() as patch:
        patch.setattr("genbo.cli.run.faults._passed", {})
        patch.setenv("GENBO_FAULT", "step.computed:raise:3")
        with pytest.raises(RuntimeError):
            tune.tune("job.yaml").result()
    return workplace / "run"


def test_other_weights_are_refused_on_resume(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "files_of", lambda part: {"weights.safetensors": "another hash"})
        with pytest.raises(UserMistake, match=r"inputs\.model\.weights\.safetensors"):
            tune.tune("job.yaml", resume=True).result()
    assert status_of(stopped)["resumable"]
    assert tune.tune("job.yaml", resume=True).result().document["status"] == "done"


def test_another_version_is_noted_on_resume(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = provenance.environment_of
    monkeypatch.setattr(provenance, "environment_of", lambda assembled: {**real(assembled), "python": "2.7"})
    trust = tune.tune("job.yaml", resume=True).result().document["trust"]
    assert any("is 2.7" in said["text"] and "bit for bit" in said["text"] for said in trust)


# -- shapes --------------------------------------------------------------------------------------------------


def test_a_schedule_is_reported_over_the_steps(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.run("job.yaml", ["tune.guidance={start: 1.5, bounds: [0, 9], shape: {knots: 3}}"], quiet=True) == 0
    guidance = report_of(workplace / "run")["phi"]["guidance"]
    assert len(guidance["tuned"]) == len(guidance["se"]) == 3
    assert guidance["start_over_steps"] == [1.5] * 5
    assert guidance["tuned_over_steps"][0] == pytest.approx(guidance["tuned"][0])
    assert show.run(workplace / "run") == 0
    assert "instead of 1.50, 1.50, 1.50" in capsys.readouterr().out


def test_what_is_kept_is_reported(workplace: Path) -> None:
    found = tune.tune({**JOB_DICT, "keep": [{"kind": "quadratic", "target": 0, "at_least": -1000}]}).result()
    (kept,) = found.document["keep"].values()
    assert kept["held"]
    assert not kept["broken"]
    assert kept["gap"] == pytest.approx(kept["tuned"] + 1000)


# -- how it can end ------------------------------------------------------------------------------------------


class Reward:
    """A reward that does as a test says from its nth call on."""

    differentiable = True

    def __init__(self, then: Exception | float, after: int = 0) -> None:
        self.then, self.left = then, after

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        self.left -= 1
        if self.left >= 0:
            return -images.square().flatten(1).sum(1)
        if isinstance(self.then, Exception):
            raise self.then
        return torch.full((len(images),), self.then, dtype=torch.float64)


def with_reward(monkeypatch: pytest.MonkeyPatch, reward: Reward) -> None:
    monkeypatch.setattr("genbo.rewards.quadratic.Quadratic.open", lambda self, device="cpu": reward)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_end_with_4_and_the_last_good_value(
    bad: float, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_reward(monkeypatch, Reward(bad, after=2))  # a step of 8 samples in 2 versions is one call
    with pytest.raises(Diverged, match="not finite") as ended:
        tune.tune("job.yaml", ["budget.steps=8"]).result()
    assert ended.value.exit_code == 4
    report = report_of(workplace / "run")
    assert [s["status"] for s in report["steps"]] == ["ok", "ok", "non_finite", "non_finite", "non_finite"]
    assert report["phi"]["guidance"]["tuned"] == report["steps"][1]["phi"]["guidance"]
    assert (report["verdict"], report["held_out"], report["status"]) == (None, None, "diverged")
    assert not (workplace / "run" / "tuned").exists()
    assert "no verdict" in (workplace / "run" / "report.html").read_text()
    assert status_of(workplace / "run")["state"] == "diverged"
    with pytest.raises(Diverged, match="not finite"):
        tune.tune("job.yaml", ["budget.steps=8"], resume=True).result()


def test_a_flat_reward_ends_with_4_and_a_sentence(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_reward(monkeypatch, Reward(0.5))
    with pytest.raises(Diverged, match="does not change with guidance") as ended:
        tune.tune("job.yaml").result()
    assert ended.value.exit_code == 4
    assert report_of(workplace / "run")["phi"]["guidance"]["tuned"] == pytest.approx(1.0)


def test_a_held_out_score_that_is_not_finite_is_4(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_reward(monkeypatch, Reward(math.nan, after=4))
    with pytest.raises(Diverged, match="held-out sample is not finite"):
        tune.tune("job.yaml").result()
    assert not (workplace / "run" / "report.html").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        torch.OutOfMemoryError("Allocation on device"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_5(error: Exception, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_reward(monkeypatch, Reward(error, after=2))
    with pytest.raises(OutOfMemory, match="not even one image at a time fits") as ended:
        tune.tune("job.yaml").result()
    assert ended.value.exit_code == 5
    assert status_of(workplace / "run") | {"reason": ""} == {
        "schema": 1, "state": "failed", "reason": "", "last_step": 2, "resumable": True,
    }  # fmt: skip


def test_an_error_that_only_sounds_like_memory_is_not_swallowed(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_reward(monkeypatch, Reward(ValueError("out of memory?")))
    with pytest.raises(ValueError, match="out of memory"):
        tune.tune("job.yaml").result()
    assert status_of(workplace / "run")["reason"] == "ValueError: out of memory?"


def test_a_refused_model_is_3(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genbo.diffusion.refused import Refused

    def refuse(self: object) -> None:
        raise Refused("pretrained: the weights lack conv_in.weight")

    monkeypatch.setattr("genbo.diffusion.models.mixture.Mixture.open", refuse)
    with pytest.raises(ArtifactRefused, match=r"conv_in\.weight") as ended:
        tune.tune("job.yaml").result()
    assert ended.value.exit_code == 3


def test_damaged_checkpoints_are_named_and_stepped_over(
    workplace: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tune.tune("job.yaml", ["output=whole"]).result().document
    damaged = workplace / "run" / "ckpt" / "step-000002" / "state.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert tune.run("job.yaml", [], resume=True) == 0
    assert str(damaged.relative_to(workplace)) in capsys.readouterr().err
    assert report_of(workplace / "run")["phi"] == whole["phi"]
    assert report_of(workplace / "run")["held_out"] == whole["held_out"]


def test_show_a_run_that_was_stopped(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show.run(stopped) == 0
    said = capsys.readouterr().out
    assert "failed" in said
    assert "--resume" in said
    assert show.run(stopped, as_json=True) == 0
    assert len(json.loads(capsys.readouterr().out)["steps"]) == 2


def test_show_what_is_no_run_is_a_mistake(workplace: Path) -> None:
    with pytest.raises(UserMistake, match="not a run"):
        show.run(workplace)


def test_the_rooms_below_are_not_loaded_to_show(done: Path) -> None:
    code = (
        f"import sys; from genbo.cli.commands import show; show.run({str(done)!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_job_as_a_dict_is_the_job_as_a_file(workplace: Path) -> None:
    from genbo.cli.job.job import read_job

    assert read_job(JOB_DICT).document() == read_job(workplace / "job.yaml").document()


# -- with a network and images -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictured(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on a Stable Diffusion pipeline of random weights."""
    place = tmp_path_factory.mktemp("pictured")
    job = {
        **JOB_DICT,
        "model": {
            "pretrained": str(tiny_sd),
            "device": "cpu",
            "sampler": {"kind": "ddim", "steps": 3},
            "batch": 16,
        },
        "prompts": ["a red apple", "a dog"],
        "tune": {"guidance": {"start": 2.0, "bounds": [1, 20]}},
        "reward": {"kind": "quadratic", "target": 0.3},
        "evaluate": {"prompts": ["../../etc <b>", "a cat"], "samples": 6},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        assert tune.run(job, [], quiet=True) == 0
    return place / "run"


def test_the_report_shows_pairs_of_images(pictured: Path) -> None:
    text = (pictured / "report.html").read_text()
    assert text.count("data:image/jpeg;base64,") == 12
    assert "../../etc &lt;b&gt;" in text
    report = report_of(pictured)
    assert report["held_out"]["fresh_prompts"]
    assert report["held_out"]["prompts"] == 2
    assert {k: report["cost"][k] for k in report["cost"]["planned"]} == report["cost"]["planned"]
    assert report["environment"]["inputs"]["model"]["model_index.json"]


def test_tuned_loads_with_diffusers_alone(pictured: Path) -> None:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(pictured / "tuned", use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    said = report_of(pictured)["use"]["diffusers"]
    line = said.split("\n")[-1]
    scope = {"pipeline": pipeline, "prompt": "a dog"}
    exec(line, scope)  # noqa: S102  the line that the report offers for pasting
    assert scope["image"].size == (16, 16)


def test_sample_draws_with_the_tuned_values(pictured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from genbo.cli.commands import sample

    assert sample.run(pictured, ["../../evil", "ein Ärger!"], samples=2, seed=3, output=tmp_path / "out") == 0
    printed = capsys.readouterr().out.split()
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert written == [
        "000-evil-s3-0.png",
        "000-evil-s3-1.png",
        "001-ein-arger-s3-0.png",
        "001-ein-arger-s3-1.png",
        "sheet-s3.png",
    ]
    assert sorted(Path(p).name for p in printed) == written
    before = (tmp_path / "out" / "000-evil-s3-0.png").read_bytes()
    sample.run(pictured / "tuned", ["../../evil"], samples=1, seed=3, output=tmp_path / "again")
    assert (tmp_path / "again" / "000-evil-s3-0.png").read_bytes() == before


def test_sample_takes_a_plain_model_and_refuses_the_rest(
    tiny_sd: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from genbo.cli.commands import sample

    assert sample.run(tiny_sd, ["a dog"], samples=1, output=tmp_path / "out") == 0
    with pytest.raises(UserMistake, match="exact world"):
        sample.run(done, ["east"], output=tmp_path / "none")
    with pytest.raises(UserMistake, match="neither a run nor a model"):
        sample.run(tmp_path / "nothing", ["a dog"], output=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_steps_are_given_as_they_are_made_and_a_run_that_is_left_goes_on(workplace: Path) -> None:
    whole = tune.tune("job.yaml", ["output=whole"]).result().document
    with tune.tune("job.yaml") as left:
        first, second = next(left), next(left)
    assert (first["step"], second["step"]) == (0, 1) and first["phi"].keys() == whole["phi"].keys()
    assert json.loads((workplace / "run" / "status.json").read_text())["state"] == "preempted"
    rest = tune.tune("job.yaml", resume=True)
    assert [step["step"] for step in rest] == [2, 3]
    assert list(rest) == [], "all steps have been given"
    assert rest.result().document["phi"] == whole["phi"] and rest.result().verdict == whole["verdict"]
    again = tune.tune("job.yaml", resume=True)
    assert list(again) == [] and again.result().phi == rest.result().phi, "a run that has ended has no steps left"


def test_a_wrong_job_is_refused_before_anything_is_asked_for(workplace: Path) -> None:
    with pytest.raises(JobMistakes):
        tune.tune("job.yaml", ["tune.guidance.start=ten"])
