"""CLIP similarity against open_clip's own path: Pillow preprocessing, and the two towers called by hand."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.nn import functional

from genbo.rewards import Refused
from genbo.rewards._prepare import prepare
from genbo.rewards._tower import FAMILIES, Tower
from genbo.rewards.clip import Clip

PROMPTS = ["a red apple", "a dog"]


def pictures(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Sharp, saturated images on the 8-bit grid: blocks, lines and noise, hard on a resize."""
    generator = torch.Generator().manual_seed(seed)
    blocks = (torch.rand(count, 3, 5, 5, generator=generator) > 0.5).float()
    x = functional.interpolate(blocks, (height, width), mode="nearest")
    x[..., ::7, :] = 1 - x[..., ::7, :]
    x = x + 0.2 * torch.randn(x.shape, generator=generator)
    return (x.clamp(0, 1) * 255).round() / 255


def by_pillow(images: torch.Tensor, cfg: dict[str, object]) -> torch.Tensor:
    transform = image_transform_v2(PreprocessCfg(**cfg), is_train=False)
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return torch.stack([transform(Image.fromarray(image)) for image in pixels])


def off(images: torch.Tensor, cfg: dict[str, object]) -> float:
    """The largest difference to Pillow's way, in units of 1/255 of a pixel."""
    std = torch.tensor(cfg["std"]).reshape(-1, 1, 1)
    return ((prepare(images, **cfg) - by_pillow(images, cfg)) * std).abs().max().item() * 255


SIZES = [(64, 64), (32, 32), (16, 16), (97, 97), (50, 71), (71, 50), (24, 90), (12, 20), (512, 512)]


@pytest.mark.parametrize("size", [32, (32, 32), (24, 40)], ids=str)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_prepares_images_as_the_model_does(resize_mode, interpolation, size):
    if resize_mode == "longest" and isinstance(size, int):
        size = (size, size)
    cfg = {"size": size, "resize_mode": resize_mode, "interpolation": interpolation, "fill_color": 90}
    cfg |= {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    # Pillow 13 begins with the height where that shrinks much more than the width; those before it, never
    height, width = (size, size) if isinstance(size, int) else size
    sizes = [(h, w) for h, w in SIZES if resize_mode != "squash" or h / height <= 1.05 * w / width]
    assert sizes
    assert max(off(pictures(2, *shape), cfg) for shape in sizes) <= 2


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_open_clips_own(family):
    theirs = {
        "openai": ("ViT-B-32", "laion2b_s34b_b79k"),
        "siglip": ("ViT-B-16-SigLIP", "webli"),
        "mobileclip": ("MobileCLIP-S1", "datacompdr"),
    }
    published = open_clip.get_pretrained_cfg(*theirs[family])
    assert {key: published[key] for key in FAMILIES[family]} == FAMILIES[family]


def test_without_antialias_it_is_another_image(monkeypatch):
    cfg = {"size": 32, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    images = pictures(2, 97, 97)
    assert off(images, cfg) <= 2
    plain = functional.interpolate

    def aliased(*args, antialias, **options):
        return plain(*args, **options)

    monkeypatch.setattr(functional, "interpolate", aliased)
    assert off(images, cfg) > 25


def test_score_is_the_cosine_of_the_two_towers(tiny_clip):
    network, transform = open_clip.create_model_from_pretrained(f"local-dir:{tiny_clip}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{tiny_clip}")
    images = pictures(2, 48, 48)
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    with torch.no_grad():
        image = network.encode_image(torch.stack([transform(Image.fromarray(p)) for p in pixels]))
        text = network.encode_text(tokenize([f"a photo of {p}" for p in PROMPTS]))
    score = Clip(str(tiny_clip), template="a photo of {}").open()(images, PROMPTS)
    torch.testing.assert_close(score, torch.cosine_similarity(image, text), atol=5e-3, rtol=0)
    other = Clip(str(tiny_clip)).open()(images, PROMPTS)
    assert (other - score).abs().max() > 5e-3, "the template must matter, or this test says nothing of it"


def test_each_prompt_meets_the_text_tower_once(tiny_clip, monkeypatch):
    reward = Clip(str(tiny_clip)).open()
    seen = []
    encode = reward.network.encode_text
    monkeypatch.setattr(reward.network, "encode_text", lambda x, **o: seen.append(len(x)) or encode(x, **o))
    images = pictures(3, 32, 32)
    first = reward(images, ["a dog", "a cat", "a dog"])
    assert seen == [2]
    assert torch.equal(reward(images, ["a dog", "a cat", "a dog"]), first)
    reward(images, ["a cat", "a hen", "a hen"])
    assert seen == [2, 1]


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_folder_may_carry_open_clips_prefix(tiny_clip, prefix):
    assert Clip(prefix + str(tiny_clip)).mistakes() == []
    assert Clip(prefix + str(tiny_clip)).open()(pictures(1, 32, 32), ["a dog"]).shape == (1,)


def test_the_gradient_climbs_through_the_resize(tiny_clip):
    reward = Clip(str(tiny_clip)).open()
    images = pictures(1, 80, 80).mul(0.8).add(0.1)
    before = reward(images, ["a dog"])
    for _ in range(5):
        images.requires_grad_()
        (grad,) = torch.autograd.grad(reward(images, ["a dog"]).sum(), images)
        images = (images + 2e-3 * grad.sign()).detach()
    assert reward(images, ["a dog"]) > before + 0.01


# -- weights --------------------------------------------------------------


@pytest.fixture
def folder(tiny_clip, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_clip, tmp_path / "clip"))


def test_missing_weights_are_an_error_and_never_drawn_at_random(folder):
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(Refused, match=r"open_clip_model\.safetensors is missing; put the weights there"):
        Clip(str(folder)).open()


def test_weights_that_open_clip_does_not_find_are_an_error_too(tiny_clip, monkeypatch):
    """What is checked beforehand is a folder; from the hub, open_clip itself must insist."""
    monkeypatch.setattr("open_clip.factory._find_checkpoint_in_dir", lambda folder: None)
    with pytest.raises(Refused, match="Required pretrained weights"):
        Clip(str(tiny_clip)).open()


def test_pickled_weights_are_refused(folder):
    (folder / "open_clip_model.safetensors").rename(folder / "open_clip_pytorch_model.bin")
    (mistake,) = Clip(str(folder)).mistakes()
    assert "convert open_clip_pytorch_model.bin, which is pickled and can run code" in mistake


def test_a_pickled_file_beside_the_weights_is_not_read(folder):
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"not a checkpoint")
    assert Clip(str(folder)).open()(pictures(1, 32, 32), ["a dog"]).isfinite().all()


@pytest.mark.parametrize("damage", ["truncated", "of another network"])
def test_corrupt_weights_are_a_sentence(folder, damage):
    path = folder / "open_clip_model.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        config = json.loads((folder / "open_clip_config.json").read_text())
        config["model_cfg"]["embed_dim"] = 48
        (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(Refused, match=r"could not be loaded \(.+\); fetch or export it again"):
        Clip(str(folder)).open()


def test_embeddings_of_places_are_not_stretched(folder):
    """open_clip would fit those of 32 pixels to 64 without a word, and score with what it made up."""
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["image_size"] = 64
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(Refused, match=r"visual.positional_embedding is 17 x 32 in .*, but 65 x 32 by its config"):
        Clip(str(folder)).open()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "is missing; it holds"),
        ("{", "is not JSON"),
        ("[]", "has no model_cfg"),
        ("{}", "has no model_cfg"),
        ("[" * 100_000, "is not JSON"),
        ('{"model_cfg": {}, "preprocess_cfg": {"mean": [0, NaN, 0]}}', "says preprocess_cfg.mean.1: nan, which is no"),
        ('{"model_cfg": {}, "preprocess_cfg": {"std": [1, 0, 1]}}', "each must be greater than 0"),
    ],
)
def test_a_broken_config_is_a_sentence(folder, text, said):
    config = folder / "open_clip_config.json"
    config.unlink() if text is None else config.write_text(text)
    (mistake,) = Clip(str(folder)).mistakes()
    assert mistake.startswith("pretrained: ") and said in mistake


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pretrained": "emoji-klip"}, "'emoji-klip' is neither a bundled name"),
        ({"pretrained": ""}, "pretrained: it is empty"),
        ({"pretrained": "", "model": "ViT-B-32"}, "give the weights for ViT-B-32"),
        ({"pretrained": "openai", "model": "ViT-B32"}, "did you mean 'ViT-B-32'"),
        ({"pretrained": "openai", "model": "ViT-B-32", "preprocess": "openai"}, "leave it out"),
        ({"pretrained": "w.pt", "model": "ViT-B-32"}, "which can run code; convert it"),
        ({"pretrained": "w.safetensors", "model": "ViT-B-32"}, "there is no file w.safetensors"),
        ({"pretrained": ".", "model": "ViT-B-32"}, "is a folder"),
        ({"pretrained": __file__, "model": "ViT-B-32"}, "give one of openai, siglip, mobileclip"),
        ({"pretrained": __file__, "model": "ViT-B-32", "preprocess": "openai"}, "is no safetensors file; convert it"),
    ],
)
def test_every_mistake_has_a_place_and_a_remedy(options, said):
    (mistake,) = Clip(**options).mistakes()
    assert said in mistake
    place, _, sentence = mistake.partition(": ")
    assert place in ("pretrained", "model", "preprocess")
    assert any(remedy in sentence for remedy in ("; ", "give "))


def test_mistakes_come_together(folder):
    (folder / "open_clip_config.json").unlink()
    (folder / "open_clip_model.safetensors").unlink()
    options = Clip(str(folder), preprocess="openai", template="a photo")
    assert [m.partition(":")[0] for m in options.mistakes()] == [
        "template",
        "preprocess",
        "pretrained",
        "pretrained",
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pretrained": "laion2b", "model": "ViT-B-32"}, "did you mean 'laion2b_"),
        ({"pretrained": "openai", "model": "ViT-B-32"}, "set model: ViT-B-32-quickgelu"),
    ],
)
def test_a_tag_is_checked_before_anything_is_fetched(options, said, monkeypatch):
    monkeypatch.setattr(open_clip, "create_model", partial(pytest.fail, "the network was built"))
    with pytest.raises(Refused, match=said):
        Clip(**options).open()


def test_a_weights_file_with_its_architecture_and_family(tiny_clip, monkeypatch):
    from open_clip import factory

    config = json.loads((tiny_clip / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny", config)
    monkeypatch.setattr(Tower, "_name_mistakes", lambda tower: [])
    weights = str(tiny_clip / "open_clip_model.safetensors")
    reward = Clip(weights, model="tiny", preprocess="siglip").open()
    assert reward.preprocess["mean"] == (0.5, 0.5, 0.5) and reward.preprocess["resize_mode"] == "squash"
    same = Clip(str(tiny_clip)).open()
    assert torch.equal(reward.text(["a dog"]), same.text(["a dog"]))
