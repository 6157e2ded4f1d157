"""A pipeline that genbo has no file for draws by its own call, what that call draws, and is tuned without gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from genbo.bilevel.protocols import Facts
from genbo.cli.commands import tune
from genbo.cli.job.job import JobMistakes, read_job
from genbo.cli.plan.counts import plan
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.blackbox import Blackbox
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.process import Timed, Whole, process_of
from genbo.diffusion.refused import Refused
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.samplers.euler import Euler
from genbo.diffusion.seed import Batch
from genbo.diffusion.tuned import load

BATCH = Batch(("a red apple", "a dog"), (11, 12))
FAMILY = "sd_pag"


@pytest.fixture(scope="module")
def model(family_folder) -> Any:
    return Blackbox(pretrained=str(family_folder(FAMILY)), device="cpu", height=16, width=16).open()


def called(model: Any, sampler: Any, weight: float, **more: Any) -> torch.Tensor:
    own, model.pipeline.scheduler = model.pipeline.scheduler, model.scheduler(sampler)
    generators = [torch.Generator().manual_seed(seed) for seed in BATCH.seeds]
    given = {"guidance_scale": weight, "num_inference_steps": sampler.steps, "height": 16, "width": 16, **more}
    try:
        return model.pipeline(list(BATCH.prompts), generator=generators, output_type="pt", **given).images
    finally:
        model.pipeline.scheduler = own


@pytest.mark.parametrize("sampler", [Ddim(steps=4), Ddim(steps=4, eta=0.5), Euler(steps=4), Dpmpp(steps=5)], ids=repr)
def test_it_draws_what_its_call_draws(model, sampler):
    more = {"eta": sampler.eta} if isinstance(sampler, Ddim) else {}
    process = process_of(model, sampler, Plain(3.0))
    found = model.decode(sample(process, BATCH))
    assert found.std() > 0.02
    assert torch.equal(found, called(model, sampler, 3.0, **more))
    assert (
        process.meter.denoiser_calls == sampler.steps and process.meter.image_forwards >= 2 * len(BATCH) * sampler.steps
    )


def test_members_are_calls_of_their_own_on_the_same_noise(model):
    process = process_of(model, Ddim(steps=3), Plain(3.0))
    two = process.with_option("weight", torch.tensor([[2.0] * 3, [5.0] * 3], dtype=torch.float64))
    found = sample(two, BATCH)
    assert torch.equal(found, torch.cat([called(model, Ddim(steps=3), weight) for weight in (2.0, 5.0)]))


def test_a_weight_a_step_is_handed_over_at_the_end_of_the_step_before(model):
    weights = [2.0, 6.0, 3.0]

    def next_weight(pipeline: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipeline._guidance_scale = weights[min(i + 1, 2)]
        return {}

    found = sample(process_of(model, Ddim(steps=3), Plain(weights)), BATCH)
    assert torch.equal(found, called(model, Ddim(steps=3), 2.0, callback_on_step_end=next_weight))
    assert (found - called(model, Ddim(steps=3), 2.0)).abs().max() > 1e-3
    with pytest.raises(Refused, match="bounds above 1"):
        sample(process_of(model, Ddim(steps=3), Plain([2.0, 1.0, 3.0])), BATCH)


def test_a_call_without_a_callback_takes_one_weight(family_folder):
    model = Blackbox(pretrained=str(family_folder("pixart_alpha")), device="cpu", height=16, width=16).open()
    with pytest.raises(Refused, match="shape: scalar"):
        sample(process_of(model, Ddim(steps=2), Plain([2.0, 3.0])), BATCH)


def test_it_promises_no_more_than_it_can(model, family_folder):
    assert isinstance(model, Whole) and not isinstance(model, Timed)
    options = Blackbox(pretrained=str(family_folder(FAMILY)))
    assert options.mistakes() == [] and not options.differentiable
    assert "write model.kind: blackbox" in Diffusers(pretrained=str(family_folder(FAMILY))).mistakes()[0]
    assert [key for key, _ in options.misfits(Ddim(), Plain(), frozenset({"guidance", "timesteps"}))] == ["tune"]
    process = process_of(model, Ddim(steps=2), Plain(3.0))
    for wrong in ({"start": torch.zeros(2, 3, 16, 16)}, {"paired": True}):
        with pytest.raises(ValueError, match="black box"):
            sample(process, BATCH, **wrong)
    with pytest.raises(ValueError, match="cannot be fine-tuned"):
        model.adapted(None, None)
    assert Facts(1, differentiable_model=options.differentiable).differentiable_model is False
    with pytest.raises(Refused, match="takes no prompt"):
        Blackbox(pretrained=str(family_folder("ddim")), device="cpu").open()


def job(family_folder: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "model": {
            "kind": "blackbox",
            "pretrained": str(family_folder(FAMILY)),
            "device": "cpu",
            "height": 16,
            "width": 16,
            "sampler": {"kind": "dpmpp", "steps": 3},
        },
        "prompts": ["a red apple", "a dog"],
        "tune": {"guidance": {"start": 3.0, "bounds": [1, 10]}},
        "reward": {"kind": "quadratic", "target": 0.3},
        "budget": {"steps": 2, "samples": 2},
        "evaluate": {"prompts": ["a cat", "a house"], "samples": 4},
    }


def test_it_is_tuned_without_gradients(family_folder, tmp_path, monkeypatch):
    """From a job to a folder that plain diffusers loads, and genbo.load with the weight applied."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert read_job(job(family_folder)).chosen().name == "zeroth_order"
    result = tune.tune({**job(family_folder), "output": "run"}).result()
    assert result.verdict
    planned, cost = plan(read_job(job(family_folder))), result.document["cost"]
    least, most = planned.total_at_least.document(), planned.total.document()
    assert all(least[key] <= cost[key] <= most[key] for key in most) and "by its own call" in (planned.inexact or "")
    tuned = load(Path("run/tuned"), device="cpu")
    assert tuned.process.options["weight"][0].tolist() == pytest.approx([result.phi["guidance"]] * 3)
    assert [image.size for image in tuned("a dog", samples=2)] == [(16, 16)] * 2
    said = json.loads(Path("run/report.json").read_text())["use"]["diffusers"]
    scope: dict[str, Any] = {"prompt": "a dog"}
    exec(said, scope)  # noqa: S102  the lines that the report offers for pasting
    assert scope["image"].size == (16, 16)


def test_what_needs_gradients_is_refused_before_anything_is_loaded(family_folder):
    with pytest.raises(JobMistakes) as found:
        read_job({**job(family_folder), "estimator": "reverse_mode"})
    assert "needs a model with gradients" in str(found.value)
