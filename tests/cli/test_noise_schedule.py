"""A noise schedule learned from a job: its network, its plan, its gradient's two parts, and what it leaves behind."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import genbo
from genbo.cli.commands import show
from genbo.cli.errors import ArtifactRefused, Diverged
from genbo.cli.job.job import JobMistakes, read_job
from genbo.cli.plan.counts import plan
from genbo.cli.report.held_out_side import shown_samples
from genbo.diffusion.sample import sample
from genbo.diffusion.seed import Batch, Seed, batch_of

BROAD: dict[str, Any] = {"kind": "denoising", "pretrain": 6, "batch": 16}
COUPLED = {**BROAD, "noise_levels": "schedule", "steps": 2, "z_steps": 2, "z_refresh": 1, "z_batches": 2}
OFTEN = 4  # steps after which a network in training is kept: it is stopped in the middle of the six


def written(place: Path, lower: dict[str, Any] = BROAD, **changed: Any) -> dict[str, Any]:
    """A job whose run lies in that folder."""
    model = {"kind": "unet", "channels": [4], "sampler": {"kind": "ddim", "steps": 3}, "batch": 40}
    return {
        "version": 1,
        "data": "digits",
        "model": {**model, **changed.pop("model", {})},
        "tune": {"noise_schedule": {"parameters": ["end", "tau"], "start": {"end": 0.6}, "normalised": False}},
        "lower": lower,
        "reward": {"kind": "mmd", "features": "pixels"},
        "budget": {"steps": 2, "samples": 16},
        "evaluate": {"samples": 24},
        "output": str(place / "run"),
        **changed,
    }


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    return partial(written, tmp_path)


def run_once(place: Path, lower: dict[str, Any]) -> Any:
    """The result of a run that several tests read and none changes."""
    from genbo.cli.stages import pretraining

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        patch.setattr(pretraining, "OFTEN", OFTEN)
        torch.set_num_threads(1)
        return genbo.tune(written(place, lower)).result()


@pytest.fixture(scope="module")
def broad(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_once(tmp_path_factory.mktemp("broad"), BROAD)


@pytest.fixture(scope="module")
def coupled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_once(tmp_path_factory.mktemp("coupled"), COUPLED)


CASES = {
    "broad": (BROAD, {}),
    "coupled": (COUPLED, {}),
    "one-sided": (COUPLED, {"estimator": {"kind": "penalty", "symmetric": False, "gauge": False}}),
    "backwards": ({**BROAD, "steps": 1}, {"estimator": "reverse_mode"}),
    "backwards in parts": (BROAD, {"estimator": "reverse_mode", "model": {"batch": 6}}),
    "coupled, backwards, in parts": (
        COUPLED,
        {"estimator": {"kind": "penalty", "direct": "reverse_mode"}, "model": {"batch": 10}},
    ),
    "two points along a random direction": (
        BROAD,
        {"estimator": {"kind": "zeroth_order", "directions": "random", "count": 1}},
    ),
    "told the index": ({**COUPLED, "conditioning": "index", "train_steps": 21}, {}),
    "with classes and guidance": (
        BROAD,
        {"model": {"classes": True, "guidance": 2.0}, "evaluate": {"samples": 20}},
    ),
}


def test_genbo_draws_from_the_tuned_folder_what_the_run_drew(job):
    """The same images by class, guidance and seed, though the network is told indices now."""
    told = {"classes": True, "guidance": 2.0, "sampler": {"kind": "ddim", "steps": 6}}  # which do not divide 1,000
    result = genbo.tune(job(model=told, evaluate={"samples": 30})).result()
    again = genbo.load(result.folder)
    images = again(["7", "3"], samples=2, seed=0)
    assert [image.size for image in images] == [(8, 8)] * 4 and images[0].mode == "L"
    assert images[0].tobytes() != images[2].tobytes()
    shown = load_file(result.folder / "evaluation" / "tuned.safetensors")["shown"]
    batch = batch_of(read_job(result.document["job"]).held_out, 30, Seed(0).child("evaluate"))
    with torch.no_grad():
        drawn = again.process.model.decode(sample(again.process, batch))
    mine = (drawn[sorted(shown_samples(batch.prompts))] * 255).round()
    assert (mine - shown.float()).abs().max() <= 1


LONG = "coupled, backwards, in parts"  # which test_outlay has with hooks on the network


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] if c == LONG else []) for c in CASES])
def test_a_job_costs_what_its_plan_says(request, job, case):
    lower, changed = CASES[case]
    document = job(lower, **changed)
    planned = plan(read_job(document))
    result = request.getfixturevalue(case) if case in ("broad", "coupled") else genbo.tune(document).result()
    spent = result.document["cost"]
    for key in ("denoiser_calls", "image_forwards", "image_backwards", "reward_images"):
        assert spent[key] == getattr(planned, key), key
    assert planned.inexact is None
    assert result.verdict in ("better", "worse", "no measurable difference")
    assert "end " in result.document["headline"] and "tau " in result.document["headline"]
    html = (result.folder / "report.html").read_text()
    assert "The noise schedule" in html and "<script" not in html


def test_both_parts_stand_in_every_step_and_add_up(coupled):
    document = coupled.document
    assert document["estimator"]["kind"] == "penalty"
    for step in document["steps"]:
        for total, direct, indirect in zip(step["grad"], step["direct"], step["indirect"], strict=True):
            assert total == pytest.approx(direct + indirect) and direct and indirect
        assert step["apart"] > 0
    html = (coupled.folder / "report.html").read_text()
    assert "Direct and indirect part of the gradient" in html and "direct and indirect part of tau" in html


def test_the_report_warns_where_the_parts_disagree():
    from genbo.cli.report.ascent_trust import about_parts
    from genbo.cli.report.records_report import RunReport

    def said(direct: list[float], indirect: list[float], apart: float) -> list[str]:
        steps = [{"direct": direct, "indirect": indirect, "apart": apart}]
        phi = {"noise_schedule": {"start": 0.5, "tuned": 0.5}}
        report = RunReport.model_validate({"phi": phi, "steps": steps})
        return [remark.text for remark in about_parts(report)]

    (against, loose) = said([1.0, 2.0], [-3.0, 1.0], 0.2)
    assert against.startswith("In 1 of 2 derivatives") and "in 1 the sampler's part alone" in against
    assert "raise z_steps or gamma" in loose
    (together, agreed) = said([1.0, 2.0], [0.5, 1.0], 0.01)
    assert "the same sign" in together and "agreed to 5%" in agreed


def test_the_tuned_folder_carries_the_schedule_without_genbo(broad):
    from diffusers import DDIMPipeline

    result = broad
    folder = result.folder / "tuned"
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert len(config["trained_betas"]) == config["num_train_timesteps"] == 1002  # which three steps divide
    pipeline = DDIMPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in (11, 12)]
    images = pipeline(batch_size=2, generator=noise, num_inference_steps=3, output_type="np").images
    assert images.shape == (2, 8, 8, 1) and images.std() > 0
    process = genbo.load(result.folder).process
    with torch.no_grad():
        mine = process.model.decode(sample(process, Batch(("", ""), (11, 12))))
    torch.testing.assert_close(torch.from_numpy(images).permute(0, 3, 1, 2), mine, atol=1e-5, rtol=0)
    phi = result.phi["noise_schedule"]
    from genbo.bilevel.tunables.noise_schedule import NoiseSchedule

    tunable = NoiseSchedule(parameters=["end", "tau"], normalised=False)
    bar = tunable.schedule(torch.tensor(phi, dtype=torch.float64)).alphas_cumprod(1002)[0]
    torch.testing.assert_close(pipeline.scheduler.alphas_cumprod.double(), bar, rtol=1e-5, atol=1e-6)


def test_a_run_that_is_stopped_again_and_again_ends_where_the_undisturbed_one_does(job, coupled, monkeypatch):
    """In the middle of training, of a step, of training anew and of judging: weights are the same to the last bit."""
    from genbo.cli.errors import Preempted
    from genbo.cli.stages import pretraining

    monkeypatch.setattr(pretraining, "OFTEN", OFTEN)
    one = coupled
    kept = {name: load_file(one.folder / name) for name in ("network/start.safetensors",)}
    begun = False
    for point in ("network.block:1", "step.computed:2", "network.block:1", "evaluation.part:1"):
        name, nth = point.split(":")
        monkeypatch.setenv("GENBO_FAULT", f"{name}:term:{nth}")
        monkeypatch.setattr("genbo.cli.run.faults._passed", {})
        with pytest.raises(Preempted):
            genbo.tune(job(COUPLED), overwrite=not begun, resume=begun).result()
        begun = True
    monkeypatch.delenv("GENBO_FAULT")
    two = genbo.tune(job(COUPLED), resume=True).result()
    for key in ("phi", "held_out"):
        assert one.document[key] == two.document[key]
    assert {**one.document["cost"], "elapsed_s": 0} == {**two.document["cost"], "elapsed_s": 0}
    for file, tensors in kept.items():
        again = load_file(two.folder / file)
        assert all(torch.equal(tensors[key], again[key]) for key in tensors)


def test_a_lower_level_that_diverges_stops_the_run_with_the_last_good_state(job, monkeypatch):
    """The third training of a step sees NaN: what the first two came to is there, and the report says it."""
    from genbo.bilevel.training import network_trainer

    calls, train = [], network_trainer.NetworkTrainer.train

    def poisoned(self: Any, schedule: Any, steps: int, seed: Any) -> float:
        calls.append(steps)
        if len(calls) == 4:  # the first is the training before the climb
            self.data = torch.full_like(self.data, float("nan"))
        return train(self, schedule, steps, seed)

    monkeypatch.setattr(network_trainer.NetworkTrainer, "train", poisoned)
    document = job(COUPLED, budget={"steps": 4, "samples": 16})
    with pytest.raises(Diverged, match="the training loss is nan after 12 steps; lower lr"):
        genbo.tune(document).result()
    folder = Path(document["output"])
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "diverged" and status["last_step"] == 2
    assert len((folder / "steps.jsonl").read_text().splitlines()) == 2
    state = load_file(folder / "ckpt" / "step-000002" / "state.safetensors")
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": {"channels": [6]}}, "channels: 6 is no multiple of 4"),
        ({"model": {"pretrained": "./nowhere"}}, "give the folder of a UNet2DModel"),
        ({"estimator": "penalty"}, "use estimator: auto"),
        ({"lower": {**BROAD, "pretrain": 0}}, "leave the network untrained"),
        (
            {"reward": {"kind": "quadratic"}, "data": {"path": "digits", "validation": 0.6, "test": 0.5}},
            "hold back less",
        ),
    ],
    ids=str,
)
def test_mistakes_are_sentences(job, changed, said):
    with pytest.raises(JobMistakes, match=said):
        read_job(job(**changed))


def test_a_job_is_read_back_from_its_own_words(job):
    for case in CASES.values():
        read = read_job(job(case[0], **case[1]))
        assert read_job(read.document()).document() == read.document()


def test_levels_that_an_image_has_no_room_for(job):
    from genbo.cli.errors import ArtifactRefused

    with pytest.raises(
        ArtifactRefused, match="5 levels halve the sides of an image 4 times, and 8 x 8 pixels have no such halves"
    ):
        genbo.tune(job(model={"channels": [8] * 5})).result()


@pytest.fixture
def own_network(tmp_path: Path) -> Path:
    """A UNet2DModel of the digits' size, as diffusers saves it."""
    from genbo.diffusion.models.unet import Unet

    folder = tmp_path / "own" / "unet"
    Unet(channels=[8, 16], seed=7).open().module.save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]
    return folder.parent


def test_a_network_from_a_folder_is_trained_on(job, own_network):
    from genbo.diffusion.models.unet import Unet

    first = load_file(own_network / "unet" / "diffusion_pytorch_model.safetensors")
    again = Unet(pretrained=str(own_network)).open().module.state_dict()
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
    result = genbo.tune(job(model={"pretrained": str(own_network)})).result()
    trained = load_file(result.folder / "network" / "start.safetensors")
    moved = max((trained[f"module.{name}"] - value).abs().max().item() for name, value in first.items())
    assert 0 < moved < 0.1, "it was trained on from there"


def test_a_network_that_does_not_fit_is_refused_with_a_sentence(job, own_network):
    from safetensors.torch import save_file

    from genbo.cli.errors import ArtifactRefused

    with pytest.raises(ArtifactRefused, match="has in_channels 1, and the data want 3"):
        genbo.tune(job(model={"pretrained": str(own_network)}, data={"path": "digits", "color": "rgb"})).result()
    file = own_network / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    lost = tensors.pop("conv_out.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ArtifactRefused, match=r"lack conv_out\.weight"):
        genbo.tune(job(model={"pretrained": str(own_network)}), overwrite=True).result()
    save_file({**tensors, "conv_out.weight": lost * float("nan")}, file, metadata={"format": "pt"})
    with pytest.raises(ArtifactRefused, match=r"NaN or infinity in conv_out\.weight"):
        genbo.tune(job(model={"pretrained": str(own_network)}), overwrite=True).result()


def test_the_examples_and_the_template_are_jobs(capsys, tmp_path):
    from genbo.cli.commands import init

    root = Path(__file__).parents[2] / "examples"
    digits = read_job(root / "noise-schedule-digits.yaml")
    assert plan(digits).inexact is None and not digits.lower.options.coupled  # type: ignore[union-attr]
    assert init.run("noise-schedule") == 0
    (tmp_path / "job.yaml").write_text(capsys.readouterr().out)
    assert read_job(tmp_path / "job.yaml").digest() == digits.digest()
    with pytest.raises(JobMistakes, match="data"):  # the images are not here
        read_job(root / "noise-schedule-fashion-mnist.yaml", ["data.path=/nowhere"])


@pytest.mark.parametrize("bounds", [{}, {"end": [0.58, 0.9]}])
def test_a_schedule_is_shown_number_by_number(job, broad, capsys, bounds):
    schedule = {"parameters": ["end", "tau"], "start": {"end": 0.6}, "normalised": False, "bounds": bounds}
    result = genbo.tune(job(tune={"noise_schedule": schedule})).result() if bounds else broad
    assert show.run(result.folder) == 0
    said = capsys.readouterr().out
    assert "noise_schedule.end" in said and "noise_schedule.tau" in said
    assert result.document["phi"]["noise_schedule"]["bounds"] is None


def test_what_one_step_finds_is_said_to_be_nothing(job):
    document = genbo.tune(job(budget={"steps": 1, "samples": 16})).result().document
    assert any("Nothing moved" in said["text"] for said in document["trust"])
    assert any("nothing moves" in warning for warning in plan(read_job(job(budget={"steps": 1}))).warnings)


def test_the_verdict_says_what_it_rests_on(broad):
    document = broad.document
    assert any("fresh seeds, and distances to data on test images" in said["text"] for said in document["trust"])
    assert not any("prompts" in said["text"] for said in document["trust"])
    inputs = document["environment"]["inputs"]
    assert set(inputs) == {"data.train", "data.validation", "data.test", "mmd"} and "features" in inputs["mmd"]


def test_a_tuned_network_is_no_beginning(job, broad):
    """Its table holds one schedule; training another on it would be told nonsense."""
    with pytest.raises(JobMistakes, match="the steps of one schedule alone"):
        read_job(job(model={"pretrained": str(broad.folder / "tuned")}))


def test_short_forms_can_be_overridden(job):
    read = read_job(job(), ["data.validation=0.2", "reward.features=digits-features"])
    assert read.data is not None and (read.data.path, read.data.validation) == ("digits", 0.2)
    assert [reward.options.features for reward in read.reward] == ["digits-features"]
    one = {"kind": "mmd", "features": "pixels"}
    assert read_job(job(reward=[one]), ["reward.features=digits-features"]).reward[0].options.features != "pixels"
    with pytest.raises(JobMistakes, match=r"write reward\.0\.features"):
        read_job(job(reward=[one, {**one, "degree": 2}]), ["reward.features=digits-features"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(job):
    with pytest.raises(ArtifactRefused, match="no CUDA device"):
        genbo.tune(job(model={"device": "cuda"})).result()


def test_check_looks_at_the_images(job, tmp_path, capsys):
    """What would end the run before its first step is said before anything is begun."""
    from PIL import Image

    from genbo.cli.commands import check

    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(40):
        Image.new("L", (8, 8 if n else 9), n).save(folder / f"{n}.png")
    document = tmp_path / "job.json"
    document.write_text(json.dumps(job(data=str(folder))))
    with pytest.raises(ArtifactRefused, match="size"):
        check.run(document)
    document.write_text(json.dumps(job(model={"channels": [8, 8, 8, 8, 8]})))
    with pytest.raises(ArtifactRefused, match="levels"):
        check.run(document)
    document.write_text(json.dumps(job()))
    assert check.run(document) == 0
