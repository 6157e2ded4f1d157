"""Folders that cannot be loaded are refused with the remedy; options of loading do what they say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.diffusers import LONG_CALLS, Diffusers
from genbo.diffusion.process import process_of
from genbo.diffusion.refused import Refused
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.samplers.euler import Euler
from genbo.diffusion.seed import Batch
from genbo.diffusion.tuned import export
from tests.families import CLASSES, NAMES

SEEDS = (1, 2, 3)


def images(model: Any, prompts: tuple[str, ...], sampler: Any, weight: float = 2.0) -> torch.Tensor:
    with torch.no_grad():
        return model.decode(sample(process_of(model, sampler, Plain(weight)), Batch(prompts, SEEDS[: len(prompts)])))


@pytest.fixture
def copied(family_folder, tmp_path) -> Callable[[str], Path]:
    """A family's folder that may be damaged."""
    return lambda family: Path(shutil.copytree(family_folder(family), tmp_path / family))


def said(folder: Path | str, **options: Any) -> str:
    """The one mistake that is found without loading."""
    (mistake,) = Diffusers(pretrained=str(folder), **options).mistakes()
    return mistake


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_a_path_that_is_not_there():
    mistake = said("/models/nowhere")
    assert "there is no folder '/models/nowhere'" in mistake and "hf download" in mistake and "emoji" in mistake


def test_a_folder_without_an_index(tmp_path):
    assert "no model_index.json" in said(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "give the folder above it" in said(tmp_path)


def test_pickles_alone(copied):
    folder = copied("stable_diffusion_xl")
    file = next((folder / "unet").glob("*.safetensors"))
    file.rename(file.with_suffix(".bin"))
    assert "could run code when read" in said(folder) and "save_pretrained" in said(folder)


def test_a_tokenizer_that_is_missing_or_empty(copied):
    """transformers would make one that knows no word, and say nothing."""
    folder = copied("stable_diffusion_3")
    for file in (folder / "tokenizer_3").iterdir():
        if file.name != "tokenizer_config.json":
            file.unlink()
    assert "tokenizer_3 has no vocabulary" in said(folder)
    shutil.rmtree(folder / "tokenizer_3")
    assert "no tokenizer_3/ folder" in said(folder)


def test_a_pipeline_of_another_class(copied):
    folder = copied("ddpm")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "KandinskyPipeline"}))
    assert "'KandinskyPipeline'; genbo knows DDIMPipeline" in said(folder)


def test_a_hub_id_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    options = Diffusers(pretrained="black-forest-labs/FLUX.1-dev")
    assert options.mistakes() == []
    with pytest.raises(Refused, match=r"could not be fetched .* for a gated model, `hf auth login`"):
        options.open()


def test_a_scheduler_that_is_not_the_familys(copied):
    flow, betas = copied("stable_diffusion_3"), copied("stable_diffusion_xl")
    for folder, other in ((flow, betas), (betas, flow)):
        index = json.loads((folder / "model_index.json").read_text())
        index["scheduler"] = json.loads((other / "model_index.json").read_text())["scheduler"]
        (folder / "other.json").write_text(json.dumps(index))
    scheduler = (flow / "scheduler" / "scheduler_config.json", betas / "scheduler" / "scheduler_config.json")
    texts = [file.read_text() for file in scheduler]
    for folder, text in zip((flow, betas), reversed(texts), strict=True):
        (folder / "scheduler" / "scheduler_config.json").write_text(text)
        (folder / "other.json").rename(folder / "model_index.json")
        with pytest.raises(Refused, match=r"is not FlowMatchEuler|has no betas"):
            Diffusers(pretrained=str(folder), device="cpu").open()


def test_damaged_weights_of_any_component_are_named(copied):
    folder = copied("flux")
    file = next((folder / "text_encoder_2").glob("*.safetensors"))
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] * float("nan")}, file, metadata={"format": "pt"})
    with pytest.raises(Refused, match=r"text_encoder_2.*NaN"):
        Diffusers(pretrained=str(folder), device="cpu").open()


def test_sizes_that_no_patch_fits(family_folder):
    with pytest.raises(Refused, match=r"height: .* multiples of 4 pixels"):
        Diffusers(pretrained=str(family_folder("flux")), device="cpu", height=18, width=16).open()


@pytest.mark.parametrize(
    ("family", "options", "sampler", "rule", "tuned", "said"),
    [
        ("stable_diffusion_3", {}, Dpmpp(), Plain(), (), "sampled by euler"),
        ("ddpm", {}, Ddim(), Plain(), (), "nothing to guide"),
        ("ddim", {}, Ddim(), Plain(1.0), ("guidance",), "nothing to guide"),
        ("flux", {}, Euler(), Plain(), (), "write guidance: 1 and set or tune distilled_guidance"),
        ("flux", {"negative_prompt": "a cat"}, Ddim(), Plain(), (), "sampled by euler"),
        ("stable_diffusion_xl", {"distilled_guidance": 3.0}, Euler(), Plain(), (), "not told its guidance"),
        ("stable_diffusion_xl", {}, Euler(), Plain(), ("distilled_guidance",), "not told its guidance"),
    ],
)
def test_what_a_family_does_not_allow_is_told_before_anything_is_loaded(
    family_folder, family, options, sampler, rule, tuned, said
):
    model = Diffusers(pretrained=str(family_folder(family)), **options)
    (misfit,) = model.misfits(sampler, rule, frozenset(tuned))
    assert said in misfit[1]


def test_what_a_family_allows_is_no_misfit(family_folder):
    for family, options, sampler, weight, tuned in (
        ("flux", {}, Euler(), 1.0, {"distilled_guidance", "timesteps"}),
        ("flux", {"negative_prompt": "a cat"}, Euler(), 4.0, {"guidance"}),
        ("stable_diffusion_xl", {}, Ddim(), 5.0, {"guidance"}),
        ("ddim_classes", {}, Ddim(), 5.0, {"guidance"}),
        ("ddpm", {}, Ddim(), 1.0, set()),
    ):
        model = Diffusers(pretrained=str(family_folder(family)), **options)
        assert list(model.misfits(sampler, Plain(weight), frozenset(tuned))) == []


# -- classes -----------------------------------------------------------------------------------------------------------


def by_hand(model: Any, labels: list[int], steps: int, weight: float) -> torch.Tensor:
    """diffusers' own scheduler and network, told classes, which its DDIMPipeline cannot be."""
    scheduler = model.scheduler(Ddim(steps=steps))
    scheduler.set_timesteps(steps)
    x = torch.stack([torch.randn(model.shape, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS])
    none = torch.full((3,), CLASSES)
    with torch.no_grad():
        for t in scheduler.timesteps:
            cond, uncond = (model.denoiser(x, t, class_labels=c).sample for c in (torch.tensor(labels), none))
            x = scheduler.step(uncond + weight * (cond - uncond), t, x).prev_sample
    return (x / 2 + 0.5).clamp(0, 1)


def test_classes_of_a_network_over_pixels(copied):
    """By number, or by the names in a genbo.json beside the pipeline."""
    folder = copied("ddim_classes")
    options = Diffusers(pretrained=str(folder), device="cpu")
    assert options.known_prompts == ["0", "1", "2", "3", "4"]
    expected = by_hand(options.open(), [3, 0, 1], 5, 2.0)
    assert (expected[0] - expected[1]).abs().max() > 0.02
    found = images(options.open(), ("3", "0", "1"), Ddim(steps=5))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    (folder / "genbo.json").write_text(json.dumps({"classes": ["zero", "one", "two", "three"]}))
    assert options.known_prompts[:4] == ["zero", "one", "two", "three"]
    assert torch.equal(images(options.open(), ("three", "zero", "one"), Ddim(steps=5)), found)
    with pytest.raises(ValueError, match="knows none called 'seven'"):
        images(options.open(), ("seven",), Ddim(steps=5))


def test_a_tuned_folder_keeps_the_names_of_classes(copied, tmp_path):
    folder = copied("ddim_classes")
    (folder / "genbo.json").write_text(json.dumps({"classes": ["zero", "one", "two", "three"]}))
    model = Diffusers(pretrained=str(folder), device="cpu").open()
    export(process_of(model, Ddim(steps=3), Plain(2.0)), tmp_path / "tuned", {})
    again = Diffusers(pretrained=str(tmp_path / "tuned"), device="cpu")
    assert again.known_prompts[:2] == ["zero", "one"]
    found, wanted = (images(m, ("two", "one"), Ddim(steps=3)) for m in (again.open(), model))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_classes_of_a_transformer_have_names(copied):
    folder = copied("dit")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "id2label": NAMES}))
    options = Diffusers(pretrained=str(folder), device="cpu")
    assert options.known_prompts[:5] == ["tench", "Tinca tinca", "goldfish", "white shark", "0"]
    assert len(options.known_prompts) == 1004
    model = options.open()
    told = model.encode(["white shark", "Tinca tinca", "999", ""]).tensors["class_labels"]
    assert told.tolist() == [2, 0, 999, 1000] and model.unconditional().tensors["class_labels"].tolist() == [1000]
    assert Diffusers(pretrained=str(folder), negative_prompt="goldfish", device="cpu").open().unconditional().tensors[
        "class_labels"
    ].tolist() == [1]


# -- LoRA --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def lora(family_folder, tmp_path) -> Path:
    """A LoRA of a U-Net, as diffusers saves one, that moves images."""
    from genbo.diffusion.adapt import Adapter, adapt
    from genbo.diffusion.seed import Seed

    adapted = adapt(
        Diffusers(pretrained=str(family_folder("stable_diffusion_xl")), device="cpu").open(), Adapter(rank=2), Seed(0)
    )
    with torch.no_grad():
        for n, weight in enumerate(adapted.weights.values()):
            weight.add_(0.2 * torch.randn(weight.shape, generator=Seed(n).generator()))
    type(adapted.pipeline).save_lora_weights(tmp_path / "lora", unet_lora_layers=adapted.network.lora())
    return tmp_path / "lora" / "pytorch_lora_weights.safetensors"


def test_a_lora_is_diffusers_own(family_folder, lora, tmp_path):
    """At a scale; and the tuned folder has it merged, so that it loads without the LoRA."""
    from diffusers import DiffusionPipeline

    folder = family_folder("stable_diffusion_xl")
    options = Diffusers(pretrained=str(folder), device="cpu", lora=str(lora), lora_scale=0.5)
    model = options.open()
    found = images(model, ("a dog", "a cat"), Euler(steps=4))
    plain = DiffusionPipeline.from_pretrained(folder, use_safetensors=True, add_watermarker=False)
    plain.load_lora_weights(lora.parent, weight_name=lora.name)
    plain.scheduler = model.scheduler(Euler(steps=4))
    expected = plain(
        ["a dog", "a cat"],
        num_inference_steps=4,
        guidance_scale=2.0,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS[:2]],
        output_type="pt",
        cross_attention_kwargs={"scale": 0.5},
        height=16,
        width=16,
    ).images
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    without = images(replace(options, lora=None).open(), ("a dog", "a cat"), Euler(steps=4))
    assert (found - without).abs().max() > 1e-3
    export(process_of(model, Euler(steps=4), Plain(2.0)), tmp_path / "tuned", {})
    again = images(
        Diffusers(pretrained=str(tmp_path / "tuned"), device="cpu").open(), ("a dog", "a cat"), Euler(steps=4)
    )
    torch.testing.assert_close(again, found, rtol=0, atol=1e-5)


def test_a_lora_that_cannot_be_merged_is_refused(family_folder, lora, tmp_path):
    folder = str(family_folder("stable_diffusion_xl"))
    assert "there is no file or folder" in said(folder, lora=str(tmp_path / "nowhere"))
    assert "has no safetensors" in said(folder, lora=str(tmp_path))
    pickled = tmp_path / "lora.bin"
    pickled.write_bytes(b"")
    assert "could run code" in said(folder, lora=str(pickled))
    assert said(folder, lora=str(lora.parent), device="cpu", offload="model").startswith("offload: ")
    broken, strange = tmp_path / "broken.safetensors", tmp_path / "strange.safetensors"
    tensors = load_file(lora)
    save_file({name: t * float("nan") for name, t in tensors.items()}, broken)
    save_file({name.replace("unet.", "controlnet."): t for name, t in tensors.items()}, strange)
    for file, message in ((broken, "NaN"), (strange, "lora: .*strange")):
        with pytest.raises(Refused, match=message):
            Diffusers(pretrained=folder, device="cpu", lora=str(file)).open()
    with pytest.raises(Refused, match="loads none into a DDPMPipeline"):
        Diffusers(pretrained=str(family_folder("ddpm")), device="cpu", lora=str(lora)).open()


# -- options -----------------------------------------------------------------------------------------------------------


def test_the_safety_checker_is_not_loaded(copied):
    """Published folders have one, or name one that they have not."""
    folder = copied("stable_diffusion")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
    options = Diffusers(pretrained=str(folder), device="cpu")
    assert options.mistakes() == [] and options.open().pipeline.safety_checker is None
    index["safety_checker"] = ["stable_diffusion", "Evil"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert "'stable_diffusion'" in said(folder)


def test_tiles_and_slices(family_folder):
    folder = str(family_folder("stable_diffusion_xl"))
    model = Diffusers(pretrained=folder, device="cpu", vae_slicing=True).open()
    assert model.vae.use_slicing and not model.vae.use_tiling
    x = torch.randn(3, *model.shape, generator=torch.Generator().manual_seed(0))
    whole = Diffusers(pretrained=folder, device="cpu").open().decode(x)
    torch.testing.assert_close(model.decode(x), whole, rtol=0, atol=1e-5)
    assert Diffusers(pretrained=folder, device="cpu", vae_tiling=True).open().vae.use_tiling


def test_attention_by_a_backend(family_folder):
    folder = str(family_folder("stable_diffusion_3"))
    prompts, usual = ("a dog",), Diffusers(pretrained=folder, device="cpu")
    by_name = images(replace(usual, attention="native").open(), prompts, Euler(steps=2))
    torch.testing.assert_close(by_name, images(usual.open(), prompts, Euler(steps=2)), rtol=0, atol=1e-5)
    with pytest.raises(Refused, match="attention: "):
        replace(usual, attention="of-my-own").open()


def test_blocks_are_compiled_where_it_is_asked_for(family_folder, monkeypatch):
    compiled: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, *a, **k: compiled.append(type(self).__name__))
    options = Diffusers(pretrained=str(family_folder("stable_diffusion_3")), device="cpu")
    options.open()
    assert compiled == []
    replace(options, compile="on").open()
    assert compiled == ["JointTransformerBlock"] * 2


def test_auto_compiles_long_jobs_on_a_gpu_alone():
    options = Diffusers(device="cuda")
    assert options.compiled_for(LONG_CALLS).compile == "on"
    assert options.compiled_for(LONG_CALLS - 1).compile == "off"
    assert Diffusers(device="cpu").compiled_for(LONG_CALLS).compile == "off"
    assert Diffusers(device="cuda", compile="off").compiled_for(LONG_CALLS).compile == "off"


def test_a_decoder_that_overflows_in_half_precision_is_not_loaded_in_it(family_folder):
    model = Diffusers(pretrained=str(family_folder("stable_diffusion_xl")), device="cpu", dtype="fp16").open()
    assert model.dtype == torch.float16 and model.vae.dtype == torch.float32
    assert model.decode(torch.zeros(1, *model.shape, dtype=torch.float16)).isfinite().all()


def test_offloading_leaves_no_way_back(family_folder):
    options = Diffusers(pretrained=str(family_folder("flux")), offload="model")
    assert not options.differentiable and replace(options, offload="none").differentiable
    with pytest.raises(Refused, match="offload"):
        replace(options, device="cpu").open()


@pytest.mark.parametrize("family", ["stable_diffusion_3", "flux", "ddpm", "ddim_classes", "dit", "stable_diffusion_xl"])
def test_a_plain_model_is_drawn_as_its_kind_wants_to_be(family_folder, family):
    """`genbo sample` of a folder, without a job."""
    options = Diffusers(pretrained=str(family_folder(family)))
    assert list(options.misfits(*options.usual(), frozenset())) == []


def test_a_model_from_the_hub_is_held_against_the_job_once_it_is_here(family_folder, monkeypatch):
    """Until then nobody knows what it is."""
    from genbo.cli.errors import UserMistake
    from genbo.cli.job.job import read_job
    from genbo.cli.stages.build import assemble

    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *given, **named: str(family_folder("flux")))
    words = {"version": 1, "prompts": ["a dog"], "reward": {"kind": "quadratic"}, "tune": {"guidance": {"start": 3.0}}}
    model = {
        "pretrained": "org/name",
        "device": "cpu",
        "height": 16,
        "width": 16,
        "sampler": {"kind": "euler", "steps": 2},
    }
    with pytest.raises(UserMistake, match=r"model\.guidance: .* distilled_guidance"):
        assemble(read_job({**words, "model": model}))
    assert assemble(read_job({**words, "model": {**model, "negative_prompt": "a cat"}})).problem.process.steps == 2


@pytest.mark.parametrize("family", ["pixart_sigma", "flux"])
def test_text_encoders_are_on_the_device_while_they_work_alone(family_folder, family, monkeypatch):
    """There and back once for new prompts, and not at all for known ones."""
    options = Diffusers(pretrained=str(family_folder(family)), device="cpu", height=16, width=16)
    model = options.open()
    model.options = replace(options, offload="encoders")
    moves: list[tuple[str, str]] = []
    monkeypatch.setattr(
        torch.nn.Module, "to", lambda self, device, *a, **k: moves.append((type(self).__name__, str(device))) or self
    )
    model.device = torch.device("cpu", 0)
    encoder = {"pixart_sigma": ["T5EncoderModel"], "flux": ["CLIPTextModel", "T5EncoderModel"]}[family]
    model.encode(["a dog", "a cat"])
    assert moves == [*((name, "cpu:0") for name in encoder), *((name, "cpu") for name in encoder)]
    model.encode(["a cat", "a dog"])
    assert len(moves) == 2 * len(encoder)
    assert model.options.differentiable and not replace(options, offload="sequential").differentiable
