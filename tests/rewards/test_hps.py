"""HPS v2.1 against its published recipe, by torchvision and open_clip: longest side, black around it, 100 cosines."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip import factory
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from genbo.rewards import Refused
from genbo.rewards._tower import Tower
from genbo.rewards.hps import Hps
from tests.rewards.test_clip import pictures

OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PROMPTS = ["a red apple", "a dog"]


@pytest.fixture
def weights(tiny_clip, monkeypatch) -> Path:
    """A weights file by itself, of an architecture that open_clip is told of as ViT-H-14."""
    config = json.loads((tiny_clip / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-H-14", config)
    return Path(tiny_clip / "open_clip_model.safetensors")


def longest(image: Image.Image, size: int) -> torch.Tensor:
    """As HPS prepares an image: its longest side to `size`, the rest filled with black."""
    scale = size / max(image.size)
    width, height = (round(side * scale) for side in image.size)
    image = tv.resize(image, [height, width], InterpolationMode.BICUBIC)
    left, top = (size - width) // 2, (size - height) // 2
    image = tv.pad(image, [left, top, size - width - left, size - height - top], fill=0)
    return tv.normalize(tv.to_tensor(image), *OPENAI)


@pytest.mark.parametrize("shape", [(32, 32), (80, 80), (50, 90), (90, 47)])
def test_is_a_hundred_cosines_of_the_published_preparation(weights, tiny_clip, shape):
    network = open_clip.create_model_from_pretrained(f"local-dir:{tiny_clip}", return_transform=False)
    tokenize = open_clip.get_tokenizer(f"local-dir:{tiny_clip}")
    images = pictures(2, *shape)
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    prepared = torch.stack([longest(Image.fromarray(p), 32) for p in pixels])
    reward = Hps(str(weights)).open()
    off = (reward.prepare(images) - prepared).abs().max().item()
    assert off < 2.5 / 255 / 0.26
    with torch.no_grad():
        text = network.encode_text(tokenize(PROMPTS), normalize=True)
        same = 100 * (network.encode_image(reward.prepare(images), normalize=True) * text).sum(-1)
        theirs = 100 * (network.encode_image(prepared, normalize=True) * text).sum(-1)
    torch.testing.assert_close(reward(images, PROMPTS), same, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(reward(images, PROMPTS), theirs, atol=0.5, rtol=0)


def test_a_folder_is_taken_in_the_way_of_hps(tiny_clip):
    reward = Hps(str(tiny_clip)).open()
    assert reward.preprocess["resize_mode"] == "longest" and reward.preprocess["mean"] == [0.4, 0.5, 0.6]
    assert reward.folder == tiny_clip


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "it is empty; give a safetensors file of HPS v2.1"),
        ("HPS_v2.1_compressed.pt", '"HPS_v2.1_compressed.pt", weights_only=True)["state_dict"]'),
        ("hps.safetensors", "there is no hps.safetensors; give"),
    ],
)
def test_mistakes_are_sentences_with_a_remedy(name, said):
    (mistake,) = Hps(name).mistakes()
    assert mistake.startswith("pretrained: ") and said in mistake


def test_the_conversion_that_the_mistake_gives_works(weights, tmp_path, monkeypatch):
    """The published file is a checkpoint with a `state_dict` in it."""
    monkeypatch.chdir(tmp_path)
    torch.save({"epoch": 3, "state_dict": load_file(weights)}, "hps.pt")
    (mistake,) = Hps("hps.pt").mistakes()
    code = mistake.partition("convert it: ")[2]
    exec(f"import torch, safetensors.torch\n{code}")  # noqa: S102 - our own sentence
    assert Hps("hps.safetensors").open()(pictures(1, 32, 32), ["a dog"]).isfinite().all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda held: held.pop("visual.proj"), r'Missing key\(s\) in state_dict: "visual.proj"'),
        (lambda held: held["visual.proj"].fill_(float("nan")), r"visual\.proj of .* holds a NaN"),
        (lambda held: held.update({"visual.proj": torch.zeros(3, 3)}), "could not be loaded .*visual.proj"),
    ],
    ids=["missing", "NaN", "shape"],
)
def test_a_weight_that_is_missing_or_broken_is_named(weights, tmp_path, change, said):
    held = load_file(weights)
    change(held)
    save_file(held, tmp_path / "hps.safetensors")
    with pytest.raises(Refused, match=said):
        Hps(str(tmp_path / "hps.safetensors")).open()


def test_the_published_network_is_vit_h():
    """By its own name, which open_clip knows; nothing is loaded."""
    assert Tower("weights.safetensors", "ViT-H-14", "openai").width == 1024
