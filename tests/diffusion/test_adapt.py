"""Trainable models: on pretrained weights, which stay as they are, and out into folders that plain diffusers loads."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

from genbo.diffusion.adapt import Adapter, Trainable, adapt, restore, tensors, twin
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.models.exponential import Exponential
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.models.mixture import Mixture
from genbo.diffusion.process import process_of
from genbo.diffusion.refused import Refused
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.seed import Batch, Seed
from genbo.diffusion.tuned import export, load

PROMPTS, SEEDS = ("a red apple", "a dog"), (11, 12)
ADAPTERS = [Adapter("lora", 4), Adapter("lora", 4, "all"), Adapter("full")]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model(tiny_sd):
    return Diffusers(pretrained=str(tiny_sd), device="cpu").open()


@pytest.fixture
def asked(model):
    """The arguments of one call of the network."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *model.shape, generator=generator), torch.tensor([800.0, 300.0]), model.encode(PROMPTS)


def disturbed(model: Trainable, by: float = 0.2) -> Trainable:
    """As if it had been trained: every weight moved by a part of what it is, or from 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.weights.values():
            weight.add_(by * torch.randn(weight.shape, generator=generator) * weight.std().clamp(min=0.1))
    return model


# -- networks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ADAPTERS, ids=str)
def test_an_adapted_model_begins_as_the_pretrained_one_and_leaves_it_alone(model, asked, adapter):
    with torch.no_grad():
        before, own = model(*asked), adapt(model, adapter, Seed(0))
        torch.testing.assert_close(own(*asked), before, rtol=0, atol=1e-6)
        assert (disturbed(own)(*asked) - before).abs().max() > 0.01
        assert torch.equal(model(*asked), before)
    assert not any(p.requires_grad for p in model.unet.parameters()) and model.weights == {}


def test_the_pretrained_weights_are_held_once(model):
    twins = [twin(model.unet), twin(model.unet)]
    for again in twins:
        assert all(a is b for a, b in zip(again.parameters(), model.unet.parameters(), strict=True))
    lora = adapt(model, Adapter("lora", 4), Seed(0))
    own = sum(weight.numel() for weight in lora.weights.values())
    held = {p.data_ptr(): p.numel() for m in (model.unet, lora.network.module) for p in m.parameters()}
    assert sum(held.values()) == own + sum(p.numel() for p in model.unet.parameters())


@pytest.mark.parametrize("adapter", ADAPTERS, ids=str)
def test_gradients_reach_every_weight_and_no_other(model, asked, adapter):
    own = disturbed(adapt(model, adapter, Seed(0)))
    own(*asked).square().sum().backward()
    assert own.weights and all(w.grad is not None and w.grad.abs().max() > 0 for w in own.weights.values())
    assert all(p.grad is None for p in model.unet.parameters())


def test_two_adapters_of_one_model_know_nothing_of_each_other(model, asked):
    y, z = (adapt(model, Adapter("lora", 4), Seed(0)) for _ in range(2))
    assert all(torch.equal(y.weights[name], z.weights[name]) for name in y.weights)
    with torch.no_grad():
        before = y(*asked)
        disturbed(z)
        assert torch.equal(y(*asked), before)
    again = adapt(y, Adapter("full"), Seed(0))  # of an adapted model: from the pretrained weights, not from its own
    with torch.no_grad():
        torch.testing.assert_close(again(*asked), model(*asked), rtol=0, atol=1e-6)


def test_lora_stands_in_attention_or_everywhere(model):
    attention, everywhere = (
        adapt(model, Adapter("lora", 4, layers), Seed(0)).weights for layers in ("attention", "all")
    )
    places = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in attention}
    assert places == {"to_q", "to_k", "to_v", "0"}  # the last is to_out.0
    assert set(attention) < set(everywhere) and any("conv1" in name for name in everywhere)
    assert all(4 in weight.shape[:2] for weight in everywhere.values())


@pytest.mark.parametrize("adapter", ADAPTERS, ids=str)
def test_what_is_trained_is_float32_in_a_half_precision_network(tiny_sd, adapter):
    model = Diffusers(pretrained=str(tiny_sd), device="cpu", dtype="bf16").open()
    own = adapt(model, adapter, Seed(0))
    assert {weight.dtype for weight in own.weights.values()} == {torch.float32}
    x = torch.randn(1, *model.shape, dtype=torch.bfloat16)
    out = own(x, torch.tensor([500.0]), model.encode(["a dog"]))
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert all(weight.grad.dtype == torch.float32 for weight in own.weights.values() if weight.grad is not None)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=str)
def test_weights_are_kept_and_put_back(model, asked, adapter):
    own, other = disturbed(adapt(model, adapter, Seed(0))), adapt(model, adapter, Seed(5))
    restore(other, tensors(own))
    with torch.no_grad():
        assert torch.equal(own(*asked), other(*asked))
    with pytest.raises(Refused, match="another adapter"):
        restore(adapt(model, Adapter("lora", 2), Seed(0)), tensors(own))


def test_a_model_without_weights_says_so():
    with pytest.raises(ValueError, match="cannot be fine-tuned"):
        adapt(object(), Adapter(), Seed(0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no layers for LoRA"):
        adapt(Gaussian().open(), Adapter("lora"), Seed(0))


# -- worlds ------------------------------------------------------------------------------------------------------------

WORLDS = [
    (Gaussian(means={"a": [0.4, -1.0], "b": [0.0, 2.0]}), {"means": [[1.0, -1.0], [0.5, 2.0]], "log_std": 0.1}),
    (Exponential(means={"a": [0.5], "b": [1.0]}), {"log_means": [[0.3], [-0.4]]}),
    (
        Mixture(labels=["a", "a", "b"]),
        {"means": [[1.0, 0.0], [-0.7, 1.3], [0.0, -1.3]], "log_weights": [0.2, 0.5, 0.1], "log_std": -0.3},
    ),
]


def options_with(options, numbers):
    """The world that has these numbers in its options."""
    from dataclasses import replace

    exp = {name.removeprefix("log_"): torch.tensor(v).double().exp().tolist() for name, v in numbers.items()}
    given = {name: exp[name] if f"log_{name}" in numbers else numbers[name] for name in exp}
    if isinstance(options.means, dict):
        given["means"] = dict(zip(options.means, given["means"], strict=True))
    return replace(options, **given)


@pytest.mark.parametrize(("options", "numbers"), WORLDS, ids=lambda x: type(x).__name__)
def test_a_trained_world_is_the_world_of_its_numbers(options, numbers):
    base = options.open()
    own = adapt(base, Adapter("full"), Seed(0))
    x, time, cond = torch.randn(2, *base.shape).double(), torch.tensor([-1.0, 2.0]).double(), ("a", "b")
    assert torch.equal(own(x, time, own.encode(cond)), base(x, time, base.encode(cond)))
    restore(own, {name: torch.tensor(value).double() for name, value in numbers.items()})
    there = options_with(options, numbers).open()
    torch.testing.assert_close(own(x, time, own.encode(cond)), there(x, time, there.encode(cond)))
    assert (own(x, time, own.encode(cond)) - base(x, time, base.encode(cond))).abs().max() > 0.01
    torch.testing.assert_close(own.unconditional().tensors, base.unconditional().tensors)


@pytest.mark.parametrize(("options", "numbers"), WORLDS, ids=lambda x: type(x).__name__)
def test_a_world_is_differentiable_in_its_numbers_through_the_sampler(options, numbers):
    own = adapt(options.open(), Adapter("full"), Seed(0))
    process = process_of(own, Ddim(steps=4, eta=1.0), Plain(weight=1.5))

    def mean() -> torch.Tensor:
        return sample(process, Batch(("a", "b"), (1, 2)), checkpoint=True).square().sum()

    mean().backward()
    for weight in own.weights.values():
        flat, grad, h = weight.data.view(-1), weight.grad.view(-1), 1e-5
        before = flat[0].item()
        flat[0] = before + h
        up = mean().item()
        flat[0] = before - h
        down = mean().item()
        flat[0] = before
        assert grad[0].item() == pytest.approx((up - down) / (2 * h), rel=1e-5, abs=1e-7)


# -- folders -----------------------------------------------------------------------------------------------------------


def drawn(process) -> torch.Tensor:
    with torch.no_grad():
        return process.model.decode(sample(process, Batch(PROMPTS, SEEDS)))


def plain_images(pipeline, model, steps: int, weight: float) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    size = [side * pipeline.vae_scale_factor for side in model.shape[1:]]
    return pipeline(
        list(PROMPTS),
        num_inference_steps=steps,
        guidance_scale=weight,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in SEEDS],
        output_type="pt",
        height=size[0],
        width=size[1],
    ).images


@pytest.mark.parametrize("adapter", [pytest.param(ADAPTERS[0], marks=pytest.mark.slow), *ADAPTERS[1:]], ids=str)
def test_plain_diffusers_draws_the_tuned_images_from_the_folder(model, tmp_path, adapter):
    from diffusers import DiffusionPipeline

    moved = disturbed(adapt(model, adapter, Seed(0)), 0.2 if adapter.how == "full" else 2.0)
    process = process_of(moved, Dpmpp(steps=6), Plain(weight=2.5))
    expected = drawn(process)
    assert (expected - drawn(process_of(model, Dpmpp(steps=6), Plain(weight=2.5)))).abs().max() > 0.01
    export(process, tmp_path / "tuned", {})
    torch.testing.assert_close(drawn(load(tmp_path / "tuned", device="cpu").process), expected, rtol=0, atol=TOLERANCE)
    merged = DiffusionPipeline.from_pretrained(tmp_path / "tuned", use_safetensors=True)
    torch.testing.assert_close(plain_images(merged, model, 6, 2.5), expected, rtol=0, atol=TOLERANCE)
    lora = tmp_path / "tuned" / "lora"
    assert lora.is_dir() == (adapter.how == "lora")
    if lora.is_dir():
        pretrained = DiffusionPipeline.from_pretrained(model.folder, use_safetensors=True)
        pretrained.scheduler = merged.scheduler
        pretrained.load_lora_weights(lora)
        torch.testing.assert_close(plain_images(pretrained, model, 6, 2.5), expected, rtol=0, atol=TOLERANCE)


def test_only_what_was_trained_is_written_in_full_precision(tiny_sd, tmp_path):
    """A folder in half precision stays one, but for the trained layers, which lose nothing."""
    from safetensors.torch import save_file

    half = shutil.copytree(tiny_sd, tmp_path / "half")
    file = next((half / "unet").glob("*.safetensors"))
    save_file({name: t.half() for name, t in load_file(file).items()}, file, metadata={"format": "pt"})
    model = Diffusers(pretrained=str(half), device="cpu").open()
    process = process_of(disturbed(adapt(model, Adapter("lora", 4), Seed(0))), Ddim(steps=4), Plain(weight=1.0))
    export(process, tmp_path / "tuned", {})
    stored = load_file(tmp_path / "tuned" / "unet" / "diffusion_pytorch_model.safetensors")
    precise = {name for name, t in stored.items() if t.dtype == torch.float32}
    assert precise and all(".to_" in name for name in precise) and len(precise) < len(stored) / 2
    torch.testing.assert_close(drawn(load(tmp_path / "tuned", device="cpu").process), drawn(process), rtol=0, atol=1e-4)


def test_a_variant_is_left_behind(tiny_sd, tmp_path):
    """From a folder of fp16 files a tuned folder that loads without a word about variants."""
    import json

    source = shutil.copytree(tiny_sd, tmp_path / "source")
    for file in list(source.glob("*/*.safetensors")):
        if file.parent.name == "unet":  # both: the right one is taken
            shutil.copyfile(file, file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
            file.write_bytes(b"another")
        else:
            file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    model = Diffusers(pretrained=str(source), variant="fp16", device="cpu").open()
    process = process_of(model, Ddim(steps=4), Plain(weight=2.0))
    export(process, tmp_path / "tuned", {})
    names = {file.name for file in (tmp_path / "tuned").glob("*/*.safetensors")}
    assert names == {"model.safetensors", "diffusion_pytorch_model.safetensors"}
    torch.testing.assert_close(drawn(load(tmp_path / "tuned", device="cpu").process), drawn(process), rtol=0, atol=1e-5)
    assert "negative_prompt" in json.loads((tmp_path / "tuned" / "genbo.json").read_text())


def test_a_trained_world_leaves_its_numbers(tmp_path):
    import json

    own = adapt(Gaussian().open(), Adapter("full"), Seed(0))
    with torch.no_grad():
        own.weights["means"].add_(0.25)
    export(process_of(own, Ddim(steps=4), Plain(weight=1.0)), tmp_path / "tuned", {})
    assert json.loads((tmp_path / "tuned" / "genbo.json").read_text())["weights"]["means"] == [[1.25], [-0.75]]
