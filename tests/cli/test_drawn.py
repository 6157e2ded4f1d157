"""What is said, before and after a run, of how a model is drawn: settings, steps, schedulers, guidance below 1."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genbo.cli.commands import tune
from genbo.cli.job.job import JobMistakes, read_job
from genbo.cli.plan.counts import plan

SD15: dict[str, Any] = {  # as Stable Diffusion 1.5 has it
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}
DPM = {**SD15, "_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++"}
Folder = Callable[..., Path]


@pytest.fixture
def scheduled(family_folder, tmp_path) -> Folder:
    """A folder of a family whose scheduler says this."""

    def folder(config: dict[str, Any], family: str = "stable_diffusion") -> Path:
        made: Path = shutil.copytree(family_folder(family), tmp_path / f"model-{len(list(tmp_path.iterdir()))}")
        (made / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
        index = json.loads((made / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", config["_class_name"]]
        (made / "model_index.json").write_text(json.dumps(index))
        return made

    return folder


def job(folder: Path, sampler: str = "ddim", steps: int = 5, **more: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "model": {
            "pretrained": str(folder),
            "device": "cpu",
            "sampler": {"kind": sampler, "steps": steps},
            **more.pop("model", {}),
        },
        "prompts": ["a red apple", "a dog"],
        "tune": {"guidance": {"start": 3.0, "bounds": [1, 10]}},
        "reward": {"kind": "quadratic", "target": 0.3},
        "budget": {"steps": 2, "samples": 2},
        "evaluate": {"prompts": ["a cat", "a house"], "samples": 4},
        **more,
    }


def teacher(steps: int, sampler: str | None = None) -> dict[str, Any]:
    return {"kind": "teacher", "steps": steps, **({"sampler": sampler} if sampler else {})}


def said_of(wrong: dict[str, Any]) -> str:
    with pytest.raises(JobMistakes) as found:
        read_job(wrong)
    return str(found.value)


@pytest.mark.parametrize(
    ("sampler", "steps", "most"),
    [("ddim", 1000, 999), ("ddpm", 1001, 999), ("euler", 1200, None), ("dpmpp", 1000, 999)],
)
def test_more_steps_than_a_scheduler_has_are_refused_with_the_number_to_take(scheduled, sampler, steps, most):
    folder = scheduled(SD15)
    if most is None:  # Euler stops between training steps, too
        read_job(job(folder, sampler, steps))
        return
    said = said_of(job(folder, sampler, steps))
    assert f"model.sampler: {sampler} cannot take {steps} steps here" in said
    assert f"take {most}, the largest number below that works" in said
    read_job(job(folder, sampler, most))


def test_a_teachers_steps_are_checked_as_well(scheduled):
    folder = scheduled(SD15)
    own, other = teacher(1000), teacher(1000, "ddim")
    assert "reward: teacher: ddim cannot take 1000 steps" in said_of(job(folder, reward=own))
    assert "reward: teacher: ddim cannot take 1000 steps" in said_of(job(folder, "dpmpp", reward=other))
    assert said_of(job(folder, "ddim", 1000, reward=own)).count("cannot take") == 1
    read_job(job(folder, "dpmpp", reward=teacher(999, "ddim")))
    flow = job(scheduled({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "stable_diffusion_3"), "euler", 4)
    assert "a flow model is sampled by euler, not by ddim" in said_of({**flow, "reward": teacher(20, "ddim")})


@pytest.mark.parametrize(
    ("config", "sampler", "said"),
    [
        ({**DPM, "algorithm_type": "sde-dpmsolver++"}, "dpmpp", "algorithm_type: sde-dpmsolver++"),
        ({**DPM, "thresholding": True}, "dpmpp", "thresholding: True"),
        ({**DPM, "use_flow_sigmas": True}, "ddim", "use_flow_sigmas: True"),
        ({**SD15, "prediction_type": "flow_prediction"}, "ddim", "prediction_type: flow_prediction"),
        ({**SD15, "thresholding": True}, "ddpm", "thresholding: True"),
    ],
    ids=str,
)
def test_a_setting_that_is_not_followed_is_refused_by_check(scheduled, config, sampler, said):
    found = said_of(job(scheduled(config), sampler))
    assert "model.sampler: this model's scheduler sets " + said in found and "does not apply; take" in found.replace(
        "do not", "does not"
    )


@pytest.mark.parametrize(
    "settings",
    [{"solver_type": "heun"}, {"solver_order": 3}, {"lower_order_final": False}, {"unknown_to_all": 3}],
    ids=str,
)
def test_a_setting_that_is_followed_or_means_nothing_is_no_mistake(scheduled, settings):
    assert not plan(read_job(job(scheduled({**DPM, **settings}), "dpmpp"))).warnings


def test_times_of_a_network_that_is_told_log_sigma_are_not_tuned(scheduled):
    edm = {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True}
    folder = scheduled({**SD15, "_class_name": "EulerDiscreteScheduler", **edm})
    read_job(job(folder, "euler"))
    assert "told log sigma" in said_of(job(folder, "euler", tune={"timesteps": {}}))


@pytest.mark.parametrize(
    "name", ["PNDMScheduler", "UniPCMultistepScheduler", "LCMScheduler", "EulerAncestralDiscreteScheduler"]
)
def test_a_scheduler_that_is_replaced_is_named_in_the_plan(scheduled, name):
    (said,) = plan(read_job(job(scheduled({**SD15, "_class_name": name}), "dpmpp"))).warnings
    assert f"the folder's {name} is replaced by dpmpp" in said and "sampler: {kind: dpmpp}" in said


@pytest.mark.parametrize(
    "more",
    [
        {"tune": {"guidance": {"start": 3.0, "bounds": [0, 10]}}},
        {"model": {"guidance": 0.5}, "tune": {"timesteps": {}}},
        {"model": {"guidance": [0.0, 1.0, 2.0, 3.0, 4.0]}, "tune": {"timesteps": {}}},
    ],
    ids=str,
)
def test_guidance_below_1_is_explained(scheduled, more):
    (said,) = plan(read_job(job(scheduled(DPM), "dpmpp", **more))).warnings
    assert "0 is the unconditional model here" in said and "diffusers switches guidance off at 1" in said


def test_a_report_says_what_plain_diffusers_would_not_draw(scheduled, tmp_path, monkeypatch):
    """A replaced scheduler, and a weight below 1; the folder itself says it as well."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    low = {"guidance": {"start": 0.4, "bounds": [0, 0.9]}}
    small = {"budget": {"steps": 1, "samples": 2}, "evaluate": {"prompts": ["a cat", "a house"], "samples": 2}}
    found = tune.tune({**job(scheduled(SD15), "ddim", 2, tune=low, **small), "output": "run"}).result()
    notes = [said["text"] for said in found.document["trust"] if said["level"] == "note"]
    assert any("PNDMScheduler is replaced by ddim" in text for text in notes)
    assert any("A plain diffusers call does not draw" in text and "genbo.load does" in text for text in notes)
    assert found.document["use"]["diffusers"] is None
    (beyond,) = json.loads(Path("run/tuned/genbo.json").read_text())["beyond_diffusers"]
    assert "draws without guidance, as at 1" in beyond
