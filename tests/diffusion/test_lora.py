"""A LoRA file by each of the names that such files have: all of it merged, as by hand, or none."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from genbo.diffusion.lora import merge_lora
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.pipelines._pipeline import networks
from genbo.diffusion.refused import Refused
from genbo.diffusion.seed import Seed

RANK, ALPHA, SCALE = 2, 6.0, 0.5
UNET = "down_blocks.0.attentions.0.transformer_blocks.0.attn{n}.{layer}"
LAYERS = [UNET.format(n=n, layer=layer) for n in (1, 2) for layer in ("to_q", "to_out.0")]
WORDS = [f"encoder.layers.{layer}" for layer in ("0.self_attn.q_proj", "0.self_attn.out_proj", "1.mlp.fc1")]

Namer = Callable[[str, str], tuple[str, str, str | None]]  # (part, layer) -> names of A, B and alpha


def peft(part: str, layer: str) -> tuple[str, str, None]:
    layer = f"text_model.{layer}" if part == "text_encoder" else layer
    return f"{part}.{layer}.lora_A.weight", f"{part}.{layer}.lora_B.weight", None


def flat(part: str, layer: str) -> tuple[str, str, None]:
    """As transformers names the layers of today, without `text_model`."""
    return f"{part}.{layer}.lora_A.weight", f"{part}.{layer}.lora_B.weight", None


def diffusers(part: str, layer: str) -> tuple[str, str, None]:
    """diffusers' own of 2023."""
    name = {"text_encoder": f"{part}.text_model.{layer}.lora_linear_layer", "unet": f"{part}.{layer}.lora"}[part]
    return f"{name}.down.weight", f"{name}.up.weight", None


def kohya(part: str, layer: str) -> tuple[str, str, str]:
    start = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}[part]
    name = start + layer.replace(".", "_")
    return f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"


NAMERS = {"peft": peft, "flat": flat, "diffusers": diffusers, "kohya": kohya}


@pytest.fixture
def model(family_folder) -> Any:
    return Diffusers(pretrained=str(family_folder("stable_diffusion")), device="cpu").open()


def pairs(pipeline: Any) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """A and B of each layer."""
    found, layers = {}, [("unet", name) for name in LAYERS] + [("text_encoder", name) for name in WORDS]
    for n, (part, name) in enumerate(layers):
        out, into = networks(pipeline)[part].get_submodule(name).weight.shape
        noise = Seed(n).generator()
        found[part, name] = (
            torch.randn(RANK, into, generator=noise) / 8,
            torch.randn(out, RANK, generator=noise) / 8,
        )
    return found


def written(file: Path, namer: Namer, made: dict[tuple[str, str], tuple[Tensor, Tensor]], **more: Tensor) -> Path:
    held: dict[str, Tensor] = {}
    for (part, layer), (a, b) in made.items():
        down, up, alpha = namer(part, layer)
        held |= {down: a, up: b} | ({alpha: torch.tensor(ALPHA)} if alpha else {})
    save_file(held | more, file)
    return file


@pytest.mark.parametrize("name", NAMERS)
def test_all_of_it_is_merged(model, tmp_path, name):
    """W + scale alpha / rank B A, where a file has alphas; without them alpha is the rank."""
    pipeline, made = model.pipeline, pairs(model.pipeline)
    before = {
        part: {k: t.clone() for k, t in networks(pipeline)[part].state_dict().items()} for part in ("unet", "vae")
    }
    before["text_encoder"] = {k: t.clone() for k, t in pipeline.text_encoder.state_dict().items()}
    file = written(tmp_path / "a.safetensors", NAMERS[name], made)
    assert merge_lora(pipeline, file, SCALE) == ("text_encoder", "unet")
    ratio = ALPHA / RANK if name == "kohya" else 1.0
    for part, held in before.items():
        found = networks(pipeline)[part].state_dict()
        assert set(found) == set(held)
        for key, value in held.items():
            a, b = made.get((part, key.removesuffix(".weight")), (None, None))
            expected = value if a is None or key.endswith(".bias") else value + SCALE * ratio * b @ a
            torch.testing.assert_close(found[key], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMERS)
def test_what_fits_no_layer_is_counted(model, tmp_path, name):
    """One of seven layers is of another model: in the U-Net, then in the text encoder."""
    made = pairs(model.pipeline)
    for part, layer, other in (
        ("unet", LAYERS[0], LAYERS[0].replace("down_blocks.0", "down_blocks.1")),
        ("text_encoder", WORDS[2], WORDS[2].replace("1", "7")),
    ):
        changed = {(p, other if own == layer else own): pair for (p, own), pair in made.items()}
        file = written(tmp_path / f"{part}.safetensors", NAMERS[name], changed)
        with pytest.raises(Refused, match=r"lora: 2 of 14 tensors of .* fit no layer of this model \(") as refused:
            merge_lora(model.pipeline, file, 1.0)
        assert re.search(r"and 1 more\); take one that was made for it$", str(refused.value))
        model.pipeline.unload_lora_weights()


@pytest.mark.parametrize("name", NAMERS)
def test_half_a_pair_is_refused(model, tmp_path, name):
    """diffusers would draw the other half at random."""
    down, up, _ = NAMERS[name]("unet", LAYERS[1])
    file = written(tmp_path / "a.safetensors", NAMERS[name], pairs(model.pipeline))
    from safetensors.torch import load_file

    for lost in (down, up):
        held = {key: t for key, t in load_file(file).items() if key != lost}
        save_file(held, tmp_path / "b.safetensors")
        with pytest.raises(Refused, match=r"^lora: "):
            merge_lora(model.pipeline, tmp_path / "b.safetensors", 1.0)
        model.pipeline.unload_lora_weights()


def test_numbers_that_are_none(model, tmp_path):
    made = pairs(model.pipeline)
    file = written(tmp_path / "a.safetensors", kohya, made, **{kohya("unet", LAYERS[0])[2]: torch.tensor(math.inf)})
    with pytest.raises(Refused, match=r"NaN or infinity in lora_unet_\S+alpha; fetch"):
        merge_lora(model.pipeline, file, 1.0)
    large = {key: (1e30 * a, 1e30 * b) for key, (a, b) in made.items()}
    file = written(tmp_path / "b.safetensors", peft, large)
    with pytest.raises(Refused, match=r"at lora_scale 1, \S+ of (unet|text_encoder) has a NaN or infinity"):
        merge_lora(model.pipeline, file, 1.0)


def test_another_width_is_refused(model, tmp_path):
    made = {key: (torch.zeros(RANK, 7), b) for key, (_, b) in pairs(model.pipeline).items()}
    with pytest.raises(Refused, match=r"^lora: .* does not fit this model \("):
        merge_lora(model.pipeline, written(tmp_path / "a.safetensors", peft, made), 1.0)


@pytest.mark.parametrize(("keep", "said"), [(0, "is empty"), (0.01, "safetensors file"), (0.5, "was cut short")])
def test_a_file_that_is_cut_short_is_seen_before_anything_is_loaded(model, family_folder, tmp_path, keep, said):
    whole = written(tmp_path / "a.safetensors", peft, pairs(model.pipeline)).read_bytes()
    file = tmp_path / "b.safetensors"
    file.write_bytes(whole[: int(keep * len(whole))])
    options = Diffusers(pretrained=str(family_folder("stable_diffusion")), device="cpu", lora=str(file))
    assert options.mistakes() == []
    (damage,) = options.damages()
    assert damage.startswith("lora: ") and said in damage
    with pytest.raises(Refused, match=said):
        options.open()


def test_headers_tell_a_lora_of_another_model(model, family_folder, tmp_path):
    """By peft's names, which are those of layers; the others are not looked up before loading."""
    made = pairs(model.pipeline)
    changed = {
        (part, layer.replace("down_blocks.0", "down_blocks.7")): (a.clone(), b.clone())
        for (part, layer), (a, b) in made.items()
        if part == "unet"
    }
    file = written(tmp_path / "a.safetensors", peft, {**made, **changed})
    options = Diffusers(pretrained=str(family_folder("stable_diffusion")), device="cpu", lora=str(file))
    (damage,) = options.damages()
    assert re.search(r"^lora: 8 of 22 tensors of .* fit no layer of this model \(unet.down_blocks.7", damage)
    with pytest.raises(Refused, match="8 of 22 tensors"):
        options.open()
    assert (
        Diffusers(pretrained=options.pretrained, lora=str(written(tmp_path / "b.safetensors", peft, made))).damages()
        == []
    )
