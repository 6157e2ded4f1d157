"""The examples for weights of one's own, with small models in their place: each from check to a tuned folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from genbo.cli.commands import check, tune
from genbo.cli.job.job import JobMistakes, read_job

EXAMPLES = Path(__file__).parents[2] / "examples"
WORDS = ["a red apple", "a dog"]
HELD_OUT = ["a blue house", "a cat"]


def asked(family_folder: Any, family: str, tiny_clip: Path, *more: str) -> list[str]:
    """What to set so that an example runs in seconds."""
    said = {
        "model.pretrained": str(family_folder(family)),
        "model.device": "cpu",
        "prompts": WORDS,
        "evaluate": {"prompts": HELD_OUT, "samples": 4},
        "budget": {"steps": 2, "samples": 2},
    }
    if "timesteps" not in more:
        said["reward"] = {"kind": "clip", "pretrained": str(tiny_clip)}
    return [*(f"{key}={json.dumps(value)}" for key, value in said.items()), *(text for text in more if "=" in text)]


FLUX_SIZE = ("model.height=16", "model.width=16")
EACH = {
    "sd15-guidance": ("stable_diffusion", ("model.sampler.steps=3", "keep=[]")),
    "sdxl-guidance": ("stable_diffusion_xl", ("model.sampler.steps=3", "model.variant=null")),
    "sd3-timesteps": (
        "stable_diffusion_3",
        ("timesteps", "model.sampler.steps=3", "reward.steps=6", "budget.pool=4", *FLUX_SIZE),
    ),
    "flux-guidance": ("flux", ("model.sampler.steps=2", *FLUX_SIZE)),
}


@pytest.mark.parametrize("example", EACH)
def test_an_example_lacks_its_weights_and_nothing_else(example):
    with pytest.raises(JobMistakes) as found:
        read_job(EXAMPLES / f"{example}.yaml")
    said = {mistake.where: mistake.message for mistake in found.value.mistakes}
    assert "there is no folder '/models/" in said.pop("model.pretrained")
    assert set(said) <= {"prompts", "evaluate.prompts", "keep.0.pretrained"}


@pytest.mark.parametrize("example", EACH)
def test_an_example_runs_with_a_small_model_in_its_place(
    example, family_folder, tiny_clip, tmp_path, monkeypatch, capsys
):
    family, more = EACH[example]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    job, overrides = EXAMPLES / f"{example}.yaml", asked(family_folder, family, tiny_clip, *more)
    assert check.run(job, overrides) == 0
    assert tune.run(job, overrides, quiet=True) == 0
    run = tmp_path / "runs" / example
    report = json.loads((run / "report.json").read_text())
    assert report["verdict"] and json.loads((run / "status.json").read_text())["state"] == "done"
    planned = {k: v for k, v in report["cost"]["planned"].items() if report["cost"][k] != v}
    assert planned == {} or example == "sdxl-guidance"  # which says that it only estimates
    draws_the_same(run, family, report)


def draws_the_same(run: Path, family: str, report: dict[str, Any]) -> None:
    """The line that the report offers for pasting runs on plain diffusers, where there is one."""
    from diffusers import DiffusionPipeline

    import genbo

    images = genbo.load(run / "tuned", device="cpu")(WORDS, samples=1, seed=0)
    assert [image.size for image in images] == [(16, 16)] * 2
    said = report["use"]["diffusers"]
    assert (said is None) == (family != "stable_diffusion_3")  # knots and intervals have no diffusers call
    pipeline = DiffusionPipeline.from_pretrained(run / "tuned", use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    if said is not None:
        scope = {"pipeline": pipeline, "prompt": "a dog"}
        exec(said.split("\n")[-1], scope)  # noqa: S102  the line that the report offers for pasting
        assert scope["image"].size == (16, 16)


def test_a_transformers_memory_grows_with_its_tokens(family_folder):
    """And by the size that the job asks for, which the config of FLUX does not say."""
    from genbo.cli.plan.memory import activations

    folder = family_folder("flux")
    small, wide = (activations(folder, 4, 2, False, (side, 16)) for side in (16, 64))
    assert wide == 4 * small
    assert activations(folder, 4, 2, False) == 16**2 * activations(folder, 4, 2, False, (16, 16))
    assert activations(folder, 4, 2, True, (16, 16)) >= activations(folder, 4, 2, False, (16, 16))


def mistakes_of(model: dict[str, Any], *prompts: str, **more: Any) -> dict[str, str]:
    job = {"version": 1, "model": model, "prompts": list(prompts or WORDS), "reward": {"kind": "quadratic"}}
    with pytest.raises(JobMistakes) as found:
        read_job({**job, "tune": {"guidance": {"start": 3.0}}, **more})
    return {mistake.where: mistake.message for mistake in found.value.mistakes}


def test_what_a_family_does_not_allow_is_said_at_its_place_in_the_job(family_folder):
    flux, pixels, classes = (str(family_folder(name)) for name in ("flux", "ddpm", "dit"))
    said = mistakes_of({"pretrained": flux, "sampler": "dpmpp"})
    assert "sampled by euler" in said["model.sampler"] and "distilled_guidance" in said["model.guidance"]
    assert "nothing to guide" in mistakes_of({"pretrained": pixels})["model.guidance"]
    said = mistakes_of({"pretrained": pixels, "guidance": 1}, tune={"distilled_guidance": {}})
    assert said == {"tune": "this model's network is not told its guidance; set or tune guidance instead"}
    said = mistakes_of({"pretrained": classes}, "207", "a dog")
    assert said["prompts.1"].startswith("this model does not know the prompt 'a dog'; choose from 0, 1, 2")
    assert said["prompts.1"].endswith("19 and 980 more")
    assert mistakes_of({"pretrained": flux, "sampler": "euler", "guidance": 1, "lora": "nowhere"})["model.lora"]


def test_a_folder_without_a_job_is_drawn(family_folder, tmp_path, capsys):
    from genbo.cli.commands import sample

    assert sample.run(family_folder("stable_diffusion_3"), ["a dog"], samples=1, output=tmp_path / "out") == 0
    assert len(list((tmp_path / "out").glob("000-a-dog-*.png"))) == 1


def test_a_model_that_takes_no_prompt_is_given_none(family_folder, tmp_path, capsys):
    from genbo.cli.commands import sample
    from genbo.cli.errors import UserMistake

    pixels = family_folder("ddpm")
    assert sample.run(pixels, samples=2, output=tmp_path / "out") == 0
    written = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert written == ["000-image-s0-0.png", "000-image-s0-1.png", "sheet-s0.png"]
    with pytest.raises(UserMistake, match="is told nothing, so no prompt changes what it draws; leave --prompt out"):
        sample.run(pixels, ["a dog"], output=tmp_path / "none")
    for folder, said in (("dit", "add --prompt 0"), ("stable_diffusion_3", "add --prompt 'a red apple'")):
        with pytest.raises(UserMistake, match=said):
            sample.run(family_folder(folder), output=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_job_with_such_a_model_needs_prompts_only_for_a_reward(family_folder):
    from genbo.cli.plan.counts import plan

    job = {
        "version": 1,
        "model": {"pretrained": str(family_folder("ddpm")), "sampler": {"kind": "ddim", "steps": 3}, "guidance": 1},
        "tune": {"timesteps": {}},
        "reward": "compressibility",
    }
    assert read_job(job).prompts == ("",)
    assert any("prompts change nothing" in text for text in plan(read_job({**job, "prompts": ["a"]})).warnings)
    clip = {"kind": "clip", "pretrained": "emoji-clip"}
    with pytest.raises(JobMistakes, match="prompts: missing; clip reads prompts, though the model takes none"):
        read_job({**job, "reward": clip})
    read = plan(read_job({**job, "reward": clip, "prompts": ["a"]}))
    assert not any("prompts change nothing" in text for text in read.warnings)
