"""genbo's images are diffusers' own: the same seeds, scheduler, steps and guidance, in float32."""

from __future__ import annotations

import json

import pytest
import torch

from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.process import process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.samplers.euler import Euler
from genbo.diffusion.seed import Batch

PROMPTS, SEEDS = ("a red apple", "a dog", "a blue house"), (11, 12, 13)
TOLERANCE = 1e-4


def diffusers_images(model, sampler, **arguments) -> torch.Tensor:
    """What the pipeline's own __call__ draws, (N, C, H, W) in [0, 1]."""
    pipeline = model.pipeline
    own, pipeline.scheduler = pipeline.scheduler, model.scheduler(sampler)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
    try:
        images = pipeline(
            list(PROMPTS),
            num_inference_steps=sampler.steps,
            generator=generators,
            output_type="pt",
            height=model.shape[1] * pipeline.vae_scale_factor,
            width=model.shape[2] * pipeline.vae_scale_factor,
            **arguments,
        ).images
    finally:
        pipeline.scheduler = own
    return images


def genbo_images(model, sampler, weight) -> torch.Tensor:
    process = process_of(model, sampler, Plain(weight=weight))
    with torch.no_grad():
        return model.decode(sample(process, Batch(PROMPTS, SEEDS)))


@pytest.fixture(scope="module")
def model(tiny_sd):
    return Diffusers(pretrained=str(tiny_sd), device="cpu").open()


@pytest.fixture
def configured(model):
    """The model under other scheduler settings."""
    own = model.pipeline.scheduler

    def configure(**settings):
        model.pipeline.scheduler = type(own).from_config({**own.config, **settings})
        model.prediction = str(model.pipeline.scheduler.config.prediction_type)
        return model

    yield configure
    model.pipeline.scheduler, model.prediction = own, str(own.config.prediction_type)


SAMPLERS = [
    Ddim(steps=7),
    Ddim(steps=6, eta=0.6),
    Ddim(steps=5, eta=1.0),
    Euler(steps=7),
    Dpmpp(steps=7),
    Dpmpp(steps=15),  # from here on diffusers does not lower the order at the end
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("weight", [1.0, pytest.param(1.7, marks=pytest.mark.slow), 5.0])
def test_equal_to_diffusers(model, sampler, weight):
    arguments = {"eta": sampler.eta} if isinstance(sampler, Ddim) else {}
    expected = diffusers_images(model, sampler, guidance_scale=weight, **arguments)
    assert expected.std() > 0.02  # a black image equals every black image
    torch.testing.assert_close(genbo_images(model, sampler, weight), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("sampler", [Ddim(steps=6), Euler(steps=6), Dpmpp(steps=6)], ids=repr)
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"timestep_spacing": "trailing"}, marks=pytest.mark.slow),  # which test_settings has as well
        {"timestep_spacing": "linspace"},
        pytest.param({"prediction_type": "v_prediction"}, marks=pytest.mark.slow),
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {"beta_schedule": "linear", "set_alpha_to_one": True},
        pytest.param({"beta_schedule": "linear"}, marks=pytest.mark.slow),
        pytest.param({"set_alpha_to_one": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_pipelines_own_scheduler_settings_are_respected(configured, sampler, settings):
    model = configured(**settings)
    expected = diffusers_images(model, sampler, guidance_scale=3.0)
    torch.testing.assert_close(genbo_images(model, sampler, 3.0), expected, rtol=0, atol=TOLERANCE)


def test_guidance_a_step_equals_diffusers_callback(model):
    """`callback_on_step_end` sets the weight of the next step."""
    weights = [2.0, 6.0, 3.0, 1.5, 4.0]

    def next_weight(pipeline, i, t, kwargs):
        if i + 1 < len(weights):
            pipeline._guidance_scale = weights[i + 1]
        return {}

    expected = diffusers_images(model, Ddim(steps=5), guidance_scale=weights[0], callback_on_step_end=next_weight)
    torch.testing.assert_close(genbo_images(model, Ddim(steps=5), weights), expected, rtol=0, atol=TOLERANCE)


def test_negative_prompt_is_the_other_end(tiny_sd):
    model = Diffusers(pretrained=str(tiny_sd), device="cpu", negative_prompt="a blurred photo").open()
    expected = diffusers_images(model, Ddim(steps=4), guidance_scale=4.0, negative_prompt=["a blurred photo"] * 3)
    torch.testing.assert_close(genbo_images(model, Ddim(steps=4), 4.0), expected, rtol=0, atol=TOLERANCE)


def test_a_prompt_is_encoded_once(model):
    calls = []
    handle = model.pipeline.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        model.encode(["an owl", "a fox", "an owl"])
    handle.remove()
    assert len(calls) == 1


def test_a_missing_tensor_is_named(tiny_sd, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    from genbo.diffusion.refused import Refused

    folder = shutil.copytree(tiny_sd, tmp_path / "model")
    file = next((folder / "unet").glob("*.safetensors"))
    tensors = load_file(file)
    gone = sorted(tensors)[3]
    save_file({k: v for k, v in tensors.items() if k != gone}, file)
    with pytest.raises(Refused, match=gone):
        Diffusers(pretrained=str(folder), device="cpu").open()
    tensors[gone] = tensors[gone] * float("nan")
    save_file(tensors, file)
    with pytest.raises(Refused, match=f"NaN.*{gone}"):
        Diffusers(pretrained=str(folder), device="cpu").open()


def test_a_folder_from_a_stranger_runs_no_code(tiny_sd, tmp_path):
    import shutil

    def folder_with(change):
        folder = shutil.copytree(tiny_sd, tmp_path / str(len(list(tmp_path.iterdir()))))
        index = json.loads((folder / "model_index.json").read_text())
        change(folder, index)
        (folder / "model_index.json").write_text(json.dumps(index))
        return Diffusers(pretrained=str(folder)).mistakes()

    def evil_code(folder, index):
        (folder / "unet" / "evil.py").write_text("raise SystemExit")

    def evil_pickle(folder, index):
        next((folder / "unet").glob("*.safetensors")).rename(folder / "unet" / "diffusion_pytorch_model.bin")

    assert folder_with(lambda folder, index: None) == []
    assert "os" in folder_with(lambda folder, index: index.update(unet=["os", "system"]))[0]
    assert "'evil'" in folder_with(lambda folder, index: index.update(_class_name="evil"))[0]
    assert "['evil'" in folder_with(lambda folder, index: index.update(_class_name=["evil", "X"]))[0]
    assert "Python code" in folder_with(evil_code)[0]
    assert "safe_serialization" in folder_with(evil_pickle)[0]
    assert "../x" in folder_with(lambda folder, index: index.update({"../x": ["diffusers", "UNet2DModel"]}))[0]


def test_a_tuned_folder_is_a_plain_pipeline(model, tmp_path):
    """Plain diffusers draws the same images from it, with the weight and the steps that it was tuned at."""
    from diffusers import DiffusionPipeline

    from genbo.diffusion.tuned import export, load

    process = process_of(model, Dpmpp(steps=6), Plain(weight=3.5))
    export(process, tmp_path / "tuned", {"tuned": {"guidance": 3.5}})
    plain = DiffusionPipeline.from_pretrained(tmp_path / "tuned", use_safetensors=True)
    assert type(plain.scheduler).__name__ == "DPMSolverMultistepScheduler"
    tuned = load(tmp_path / "tuned", device="cpu")
    assert tuned.process.rule == Plain(weight=3.5) and tuned.process.sampler == Dpmpp(steps=6)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
    size = {
        "height": model.shape[1] * plain.vae_scale_factor,
        "width": model.shape[2] * plain.vae_scale_factor,
    }
    expected = plain(
        list(PROMPTS),
        num_inference_steps=6,
        guidance_scale=3.5,
        generator=generators,
        output_type="pt",
        **size,
    ).images
    with torch.no_grad():
        found = tuned.process.model.decode(sample(tuned.process, Batch(PROMPTS, SEEDS)))
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
    assert [image.size for image in tuned("a red apple", samples=2)] == [(expected.shape[3], expected.shape[2])] * 2
