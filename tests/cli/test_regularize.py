"""A search for lambda from a job to its folder: known answers, every kind of end, and the same after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from genbo.cli.commands import tune
from genbo.cli.errors import Diverged, UserMistake
from genbo.cli.job.job import read_job
from genbo.cli.plan.counts import plan
from genbo.cli.stages.build import assemble
from genbo.rewards.linear import Linear
from tests.cli.conftest import Warm

MODEL: dict[str, Any] = {
    "kind": "gaussian",
    "means": {"a": [0.0, 0.0], "b": [0.2, 0.0]},
    "std": 1.0,
    "sampler": {"kind": "dpmpp", "steps": 32},
    "guidance": 1.0,
    "batch": 512,
}
JOB: dict[str, Any] = {
    "version": 1,
    "model": MODEL,
    "prompts": ["a"],
    "tune": {"regularization": {"start": 3.0, "bounds": [0.05, 20]}},
    "reward": {"kind": "quadratic", "target": [1.5, 0.0], "scale": 0.5},
    "lower": {"kind": "reweight", "reward": {"kind": "linear", "direction": [1.0, 0.0]}, "samples": 1024},
    "budget": {"steps": 2},
    "evaluate": {"samples": 1024},
    "output": "run",
}
LAM = 2 / 3  # 1 / c_1, docs/regularization.md section 9


def report_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "report.json").read_text()))


def status_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "status.json").read_text()))


def with_lower(**options: Any) -> dict[str, Any]:
    return {**JOB, "lower": {**JOB["lower"], **options}}


# -- what it finds -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(searched_lambda: Path) -> Path:
    return searched_lambda


def test_the_known_optimum_lies_in_its_interval(done):
    report = report_of(done)
    best = report["search"]["optimum"]
    low, high = best["interval"]
    assert best["kind"] == "interior" and low < LAM < high
    assert report["phi"]["regularization"]["tuned"] == pytest.approx(LAM, rel=0.06)
    assert report["phi"]["regularization"]["se"] == pytest.approx(best["lam"] * best["log_se"])


@pytest.mark.slow
def test_the_example_finds_what_is_known_and_its_intervals_hold_it(workplace):
    """`genbo tune examples/regularization-gaussian.yaml` at a hundred seeds."""
    example = Path(__file__).parents[2] / "examples" / "regularization-gaussian.yaml"
    found = []
    for seed in range(100):
        overrides = [f"seed={seed}", "output=run", "evaluate.samples=256"]
        found.append(tune.tune(example, overrides, overwrite=True).result().document["search"]["optimum"])
    held = sum(low <= LAM <= high for low, high in (best["interval"] for best in found))
    errors = sorted(abs(best["lam"] / LAM - 1) for best in found)
    assert held >= 90
    assert errors[50] < 0.01 and errors[90] < 0.02


def test_the_verdict_is_that_of_the_closed_form(done):
    """E[r1] = -(1/lam - 1.5)^2 / 2 - 1: from lambda = 3 to 2/3 it gains 0.68."""
    held_out = report_of(done)["held_out"]
    assert held_out["verdict"] == "better" and held_out["samples"] == 1024
    low, high = held_out["interval"]
    assert low < (1 / 3 - 1.5) ** 2 / 2 < high
    rows = report_of(done)["rewards"]
    assert rows["quadratic"]["difference"] == held_out["difference"]
    assert rows["KL, nats"]["tuned"] == pytest.approx(1.5**2 / 2, rel=0.15)


def test_the_curve_is_the_closed_form_where_samples_can_speak(done):
    search = report_of(done)["search"]
    low, high = search["reach"]
    seen = [row for row in search["curve"] if low <= row["lam"] <= high]
    assert len(seen) > 30 and all(row["verdict"] != "refuse" for row in seen)
    for row in (row for row in seen if row["verdict"] == "reliable"):
        lam = row["lam"]
        assert abs(row["r2"] - 1 / lam) < 5 * row["r2_se"] + 0.03 / lam
        assert abs(row["kl"] - 1 / (2 * lam**2)) < 5 * row["kl_se"] + 0.03 / lam**2


def test_a_line_a_round_and_the_folder(done):
    lines = [json.loads(line) for line in (done / "steps.jsonl").read_text().splitlines()]
    assert [line["shifted"] for line in lines] == [False, True]
    assert lines[0]["after"] == "bridge"
    assert lines[0]["cost"]["image_forwards"] < lines[1]["cost"]["image_forwards"]
    assert sorted(p.name for p in (done / "banks").iterdir()) == [
        "round-0.safetensors",
        "round-1.safetensors",
        "shifts-1.safetensors",
    ]
    assert json.loads((done / "tuned" / "genbo.json").read_text())["tuned"]["regularization"] > 0
    page = (done / "report.html").read_text()
    assert "The curve over λ" in page and "over-optimised" in page and "<script" not in page


def test_the_first_bank_and_the_held_out_one_are_as_planned(workplace):
    job = {**with_lower(bridge=False), "budget": {"steps": 1}}
    planned = plan(read_job(job))
    assert planned.inexact is None
    tune.run(job, [], quiet=True)  # type: ignore[arg-type]
    cost = report_of(workplace / "run")["cost"]
    assert cost["denoiser_calls"] == planned.denoiser_calls == 2 * 2 * 32
    assert cost["image_forwards"] == planned.image_forwards == 2 * 1024 * 32
    assert cost["reward_images"] == planned.reward_images == 2 * 1024


def test_what_is_known_on_paper_draws_nothing(workplace):
    tune.run({**JOB, "lower": {"kind": "closed_form", "reward": JOB["lower"]["reward"]}}, [], quiet=True)  # type: ignore[arg-type]
    report = report_of(workplace / "run")
    assert report["phi"]["regularization"]["tuned"] == pytest.approx(LAM, rel=1e-3)
    assert report["cost"]["image_forwards"] == 0 and report["verdict"] == "better"
    assert report["held_out"]["difference"] == pytest.approx((1 / 3 - 1.5) ** 2 / 2, rel=1e-3)


@pytest.mark.parametrize(
    "estimator",
    ["covariance", {"kind": "value_gap"}, pytest.param({"kind": "value_gap", "gamma": 1e4}, marks=pytest.mark.slow)],
)
def test_every_estimator_finds_it(workplace, estimator):
    tune.run({**with_lower(samples=2048), "estimator": estimator, "evaluate": {"samples": 64}}, [], quiet=True)  # type: ignore[arg-type]
    assert report_of(workplace / "run")["phi"]["regularization"]["tuned"] == pytest.approx(LAM, rel=0.05)


NOISY = {**MODEL, "means": {"a": [0.0, 0.0]}, "sampler": {"kind": "ddim", "steps": 48, "eta": 1.0}}


def test_guided_sampling_walks_to_its_own_optimum_and_says_whose_it_is(workplace):
    """On a Gaussian world with a linear r2 the guided law is the tilt, so it is the same optimum."""
    lower = {"kind": "guided", "reward": JOB["lower"]["reward"], "samples": 512, "most": None}
    job = {**JOB, "model": NOISY, "lower": lower, "budget": {"steps": 9}, "evaluate": {"samples": 64}}
    assert plan(read_job(job)).inexact is not None
    tune.run(job, [], quiet=True)  # type: ignore[arg-type]
    report = report_of(workplace / "run")
    assert report["phi"]["regularization"]["tuned"] == pytest.approx(LAM, rel=0.1)
    assert report["estimator"]["kind"] == "difference" and report["verdict"] == "better"
    assert any("guided sampler's own law" in line["text"] for line in report["trust"])
    best = report["search"]["optimum"]["lam"]
    assert report["search"]["tilt"]["lam"] == pytest.approx(best, rel=0.15), "here both laws are one"
    assert any("The tilt has the same linear at lambda" in line["text"] for line in report["trust"])
    lines = [json.loads(line) for line in (workplace / "run" / "steps.jsonl").read_text().splitlines()]
    assert lines[-1]["after"] == "done" and len(report["search"]["curve"]) == len(lines) > 4


@pytest.mark.slow
def test_fine_tuning_at_every_lambda_finds_it_by_the_value_gap(workplace):
    """The paper's general algorithm: two trainings a lambda, y and z, and the gap of their values."""
    lower = {"kind": "finetune", "reward": JOB["lower"]["reward"], "samples": 1024, "steps": 60}
    job = {**JOB, "model": NOISY, "lower": lower, "budget": {"steps": 9}, "evaluate": {"samples": 64}}
    tune.run(job, [], quiet=True)  # type: ignore[arg-type]
    report = report_of(workplace / "run")
    assert report["estimator"]["kind"] == "value_gap"
    assert report["phi"]["regularization"]["tuned"] == pytest.approx(LAM, rel=0.2)  # as well as 1,024 samples tell it


@pytest.mark.parametrize(
    ("reward", "kind", "said"),
    [
        ({"kind": "linear", "direction": [1.0, 0.0]}, "lower_bound", "never stops rising"),
        ({"kind": "linear", "direction": [-1.0, 0.0]}, "upper_bound", "no tuning at all"),
        ({"kind": "linear", "direction": [0.0, 1.0]}, "unclear", "within its noise of 0"),
    ],
)
def test_where_there_is_no_optimum_inside_it_says_so(workplace, reward, kind, said):
    """r1 = r2, r1 = -r2, and r1 that has nothing to do with r2."""
    job = {**with_lower(samples=512), "reward": reward, "tune": {"regularization": {"start": 3.0, "bounds": [1.0, 20]}}}
    tune.run(job, [], quiet=True)  # type: ignore[arg-type]
    report = report_of(workplace / "run")
    assert report["search"]["optimum"]["kind"] == kind
    assert any(said in line["text"] for line in report["trust"])


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, tiny_sd, tiny_clip) -> Path:
    """A small pipeline, tuned towards plain pictures, with its weights at lambda and at a tenth of it."""
    place = tmp_path_factory.mktemp("weights")
    job = {
        "version": 1,
        "model": {
            "pretrained": str(tiny_sd),
            "sampler": {"kind": "ddim", "steps": 2},
            "guidance": 2.0,
            "device": "cpu",
        },
        "prompts": ["a red apple", "a dog"],
        "tune": {"regularization": {"start": 5.0, "bounds": [0.5, 50]}},
        "reward": {"kind": "clip", "pretrained": str(tiny_clip)},
        "lower": {"kind": "reweight", "reward": {"kind": "compressibility"}, "samples": 16, "bridge": False},
        "finetune": {"steps": 2, "batch": 4, "also": [0.1]},
        "budget": {"steps": 1},
        "evaluate": {"prompts": ["a cat", "a house"], "samples": 8},
        "output": str(place / "run"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        assert tune.run(job, [], quiet=True) == 0  # type: ignore[arg-type]
        planned = plan(read_job(job))
    (place / "plan.json").write_text(json.dumps(planned.document()))
    return place / "run"


def test_tuned_weights_cost_what_was_planned(tuned):
    planned = json.loads((tuned.parent / "plan.json").read_text())
    cost = report_of(tuned)["cost"]
    assert planned["exact"] and {key: cost[key] for key in planned["total"]} == planned["total"]


def test_each_set_of_weights_is_compared_with_the_pretrained_model(tuned):
    report = report_of(tuned)
    rows = report["search"]["weights"]
    assert [row["factor"] for row in rows] == [None, 1.0, 0.1]
    assert rows[2]["lam"] == pytest.approx(0.1 * report["phi"]["regularization"]["tuned"])
    assert rows[0]["r1_gain"] is None and all(row["kl"] > 0 for row in rows[1:])
    for row in rows[1:]:
        for level in ("r1", "r2"):
            assert row[f"{level}_gain"]["difference"] == pytest.approx(row[level] - rows[0][level], abs=1e-5)
    page = (tuned / "report.html").read_text()
    assert "Fine-tuned weights" in page and "at 0.1 λ" in page
    for row in rows[1:]:  # beside the law, on both kinds of prompts
        assert row["promised"]["kl"] > 0 and row["on_held_out"]["r2"]["difference"] == row["r2_gain"]["difference"]
        assert row["on_tuned"]["r2"]["samples"] == row["on_tuned"]["r2"]["counted"] == 8
    assert "weights at 0.1 λ, tuning prompts" in page and page.count('alt="tuned"') == 2 * 8, "pairs of both kinds"
    assert "The weights tuned there: compressibility " in report["headline"]


def test_tuned_weights_are_judged_on_prompts_that_they_never_saw(tuned):
    """Every set of held-out samples says which prompts it is of, and what was trained has another place."""
    from genbo.cli.run.tensors import words_in

    files = [tuned / "evaluation" / f"{name}.safetensors" for name in ("start", "tuned", "weights-0.1")]
    of = [words_in(file)["prompts"] for file in files]
    assert of[0] == of[1] == of[2] and sorted(of[0]) == ["a cat"] * 4 + ["a house"] * 4


@pytest.mark.parametrize("method", ["weighted", "gradient"])
def test_what_is_trained_is_the_law_at_lambda_of_the_tuning_prompts(workplace, monkeypatch, method):
    """By samples of a standard normal law and r2 = x_1, whose mean under the tilt is 1 / lambda."""
    from genbo.bilevel.lower.finetune import Finetune

    seen = []
    trained = getattr(Finetune, method)

    def noted(self, process, prompts, *others, **options):
        seen.append((tuple(prompts), *others))
        return trained(self, process, prompts, *others, **options)

    monkeypatch.setattr(Finetune, method, noted)
    job = {
        **with_lower(samples=1024, bridge=False),
        "model": NOISY | {"means": MODEL["means"]},
        "finetune": {"steps": 1, "batch": 8, "also": [4.0] if method == "weighted" else [], "method": method},
        "budget": {"steps": 1},
        "evaluate": {"prompts": ["b"], "samples": 32},
    }
    tune.run(job, [], quiet=True)  # type: ignore[arg-type]
    assert {prompts for prompts, *_ in seen} == {("a",)} and len(seen) == 1 + (method == "weighted")
    best = report_of(workplace / "run")["search"]["optimum"]["lam"]
    for factor, (_, samples, weights, *_) in zip((1.0, 4.0), seen, strict=False):
        if method == "gradient":  # which is given the reward and lambda itself
            assert weights == pytest.approx(factor * best)
        else:
            mean = (weights.softmax(1) * samples.flatten(2)[..., 0]).sum(1).item()
            assert mean == pytest.approx(1 / (factor * best), abs=0.3)


def test_plain_diffusers_draws_from_the_tuned_weights(tuned):
    """The merged folder, and LoRA on top of the pretrained one, are not the pretrained model, and are the same."""
    from diffusers import DiffusionPipeline

    def unet(folder: str, lora: Path | None = None) -> Any:
        pipeline = DiffusionPipeline.from_pretrained(folder)
        if lora:
            pipeline.load_lora_weights(lora)
        return pipeline.unet

    job = report_of(tuned)["job"]
    model = job["model"]["pretrained"].replace("~", str(Path.home()))
    merged, adapted, plain = unet(str(tuned / "tuned")), unet(model, tuned / "tuned" / "lora"), unet(model)
    x = torch.randn(1, plain.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.randn(1, 7, plain.config.cross_attention_dim, generator=torch.Generator().manual_seed(1))
    said = [u(x, 500, text).sample.detach() for u in (merged, adapted, plain)]
    torch.testing.assert_close(said[0], said[1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(said[0], said[2], atol=1e-5)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


class Broken:
    """NaN for one sample in ten, or the same for all."""

    differentiable = True

    def __init__(self, constant: bool) -> None:
        self.constant = constant

    def __call__(self, images, prompts):
        scores = images.flatten(1).sum(1)
        return 0 * scores if self.constant else torch.where(scores > 1.8, torch.nan, scores)


@pytest.mark.parametrize(
    ("constant", "said"), [(True, "the same for every sample"), (False, "is not a finite number for")]
)
def test_a_reward_that_says_nothing_ends_the_search_and_keeps_what_was_drawn(workplace, monkeypatch, constant, said):
    monkeypatch.setattr(Linear, "open", lambda self, device="cpu": Broken(constant))
    with pytest.raises(Diverged, match=said):
        tune.run(JOB, [], quiet=True)  # type: ignore[arg-type]
    run = workplace / "run"
    assert status_of(run)["state"] == "diverged" and said in status_of(run)["reason"]
    assert (run / "banks" / "round-0.safetensors").is_file()
    assert report_of(run)["verdict"] is None and not (run / "tuned").exists()
    assert said in (run / "report.html").read_text()


def test_where_samples_cannot_speak_of_any_lambda_it_says_so(workplace):
    job = {
        **with_lower(samples=8, bridge=False),
        "tune": {"regularization": {"start": 0.01, "bounds": [0.005, 0.02]}},
        "budget": {"steps": 2},
    }
    with pytest.raises(Diverged, match="no lambda within the bounds has enough"):
        tune.run(job, [], quiet=True)  # type: ignore[arg-type]
    lines = (workplace / "run" / "steps.jsonl").read_text().splitlines()
    assert len(lines) == 2 and json.loads(lines[1])["samples"] == 16


def test_a_tilt_that_is_no_law_is_a_sentence(workplace):
    job = {
        **JOB,
        "model": {"kind": "exponential", "means": {"a": [1.0]}, "sampler": "dpmpp"},
        "reward": {"kind": "linear"},
        "lower": {"kind": "closed_form", "reward": {"kind": "linear"}},
    }
    with pytest.raises(UserMistake, match="lambda must be greater than the exponential's mean"):
        tune.run(job, [], quiet=True)  # type: ignore[arg-type]


def test_a_resolved_job_is_an_equal_job():
    job = read_job(JOB)
    assert read_job(job.document()).digest() == job.digest()
    assert "optimizer" not in job.document() and "samples" not in job.document()["budget"]


def test_both_levels_open_one_reward_once():
    assembled = assemble(read_job({**JOB, "reward": JOB["lower"]["reward"]}))
    assert assembled.problem.rewards[0][1] is assembled.lower_rewards[0][1]


# -- killed and gone on with -------------------------------------------------------------------------------------------

YAML = """\
version: 1
model:
  kind: gaussian
  means: {a: [0.0, 0.0]}
  std: 1.0
  sampler: {kind: dpmpp, steps: 8}
  guidance: 1.0
  batch: 128
prompts: [a]
tune: {regularization: {start: 3.0, bounds: [0.05, 20]}}
reward: {kind: quadratic, target: [1.5, 0.0], scale: 0.5}
lower: {kind: reweight, reward: {kind: linear, direction: [1.0, 0.0]}, samples: 512}
budget: {steps: 2}
evaluate: {samples: 256}
output: run
"""


def outcome(run: Path) -> dict[str, Any]:
    report = report_of(run)
    lines = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    for timed in (report["cost"], *lines, *report["steps"]):
        timed.pop("elapsed_s")
    return {
        "report": report,
        "steps": lines,
        "files": sorted(str(p.relative_to(run)) for p in run.rglob("*.safetensors")),
    }


@pytest.fixture(scope="module")
def undisturbed(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "job.yaml").write_text(YAML)
    assert warm.start(folder, "job.yaml").wait() == 0
    return outcome(folder / "run")


@pytest.mark.parametrize(
    "point",
    [
        "evaluation.part:1", "journal.after:1", "evaluation.side:3", "journal.torn:2", "step.computed:2",
        "evaluation.part:11", "start.safetensors.before_rename:1", "tuned.before_rename:1", "report.begin:1",
        *(pytest.param(point, marks=pytest.mark.slow) for point in (
            "evaluation.part:3", "evaluation.part:6", "evaluation.side:1", "journal.torn:1", "report.json:1",
        )),
    ],
)  # fmt: skip
def test_killed_at_a_point_and_gone_on_with(warm, tmp_path, undisturbed, point):
    (tmp_path / "job.yaml").write_text(YAML)
    name, nth = point.rsplit(":", 1)
    assert warm.start(tmp_path, "job.yaml", GENBO_FAULT=f"{name}:kill:{nth}").wait() != 0
    again = warm.start(tmp_path, "job.yaml", "--resume")
    assert again.wait() == 0, again.said
    assert outcome(tmp_path / "run") == undisturbed


def test_stopped_by_a_signal_it_says_how_to_go_on(warm, tmp_path, undisturbed):
    (tmp_path / "job.yaml").write_text(YAML)
    assert warm.start(tmp_path, "job.yaml", GENBO_FAULT="evaluation.part:term:2").wait() == 75
    assert status_of(tmp_path / "run")["resumable"] is True
    assert warm.start(tmp_path, "job.yaml", "--resume").wait() == 0
    assert outcome(tmp_path / "run") == undisturbed
