"""Heads over CLIP features, against the same heads built of torch.nn and open_clip's own features."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from genbo.rewards import Refused, bundled
from genbo.rewards.aesthetic import LAION, Aesthetic

WIDTH = 32  # of the tiny CLIP's embedding


def linear() -> nn.Module:
    return nn.Linear(WIDTH, 1)


def mlp() -> nn.Module:
    """LAION's second predictor, as its authors wrote it down."""
    layers = [nn.Linear(WIDTH, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64)]
    return nn.ModuleDict({"layers": nn.Sequential(*layers, nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1))})


def mlp_with_relu() -> nn.Module:
    layers = [nn.Linear(WIDTH, 1024), nn.ReLU(), nn.Dropout(0.2), nn.Linear(1024, 128), nn.ReLU(), nn.Dropout(0.2)]
    layers += [nn.Linear(128, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 1)]
    return nn.ModuleDict({"layers": nn.Sequential(*layers)})


def made(build) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        head = build().eval()
    with torch.no_grad():
        for p in head.parameters():
            p *= 2 if p.ndim > 1 else 1  # torch's first weights would let little of the image through five layers
    return head.requires_grad_(False)


def pictures(count: int) -> torch.Tensor:
    x = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return (nn.functional.interpolate(x, 48, mode="nearest") * 255).round() / 255


@pytest.fixture
def saved(tmp_path):
    """A head in a file of its own."""

    def save(build=linear, name: str = "head.safetensors", **changes: torch.Tensor | None) -> str:
        tensors = {**made(build).state_dict(), **changes}
        save_file({k: v.contiguous() for k, v in tensors.items() if v is not None}, tmp_path / name)
        return str(tmp_path / name)

    return save


@pytest.mark.parametrize("build", [linear, mlp, mlp_with_relu])
def test_is_the_head_of_the_normalised_embedding(saved, tiny_clip, build):
    network, transform = open_clip.create_model_from_pretrained(f"local-dir:{tiny_clip}")
    images, head = pictures(4), made(build)
    pixels = (images * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    with torch.no_grad():
        seen = network.encode_image(torch.stack([transform(Image.fromarray(p)) for p in pixels]))
        seen = seen / seen.norm(dim=-1, keepdim=True)
        expected = (head if build is linear else head["layers"])(seen)[:, 0]
    score = Aesthetic(saved(build), clip=str(tiny_clip)).open()
    torch.testing.assert_close(score(images, [""] * 4), expected, atol=0.05 * expected.std().item(), rtol=0)
    assert expected.std() > 0.003, "the head must tell these images apart, or this test says nothing"
    same = (head if build is linear else head["layers"])(score.embed(images))[:, 0]  # exactly, at the same features
    torch.testing.assert_close(score(images, [""] * 4), same, atol=1e-5, rtol=1e-5)


def test_the_relus_matter(saved, tiny_clip):
    """The same weights under both sets of names: only the names tell which head they are."""
    tensors = made(mlp_with_relu).state_dict()
    places = {"0": "0", "3": "2", "6": "4", "9": "6", "11": "7"}
    plain = {f"layers.{places[k.split('.')[1]]}.{k.split('.')[2]}": v for k, v in tensors.items()}
    path = Path(saved(mlp_with_relu))
    save_file(plain, path.with_name("plain.safetensors"))
    a, b = (Aesthetic(str(p), clip=str(tiny_clip)).open() for p in (path, path.with_name("plain.safetensors")))
    assert (a(pictures(2), ["", ""]) - b(pictures(2), ["", ""])).abs().min() > 1e-4


def test_half_precision_weights_are_taken_in_single(saved, tiny_clip):
    tensors = {k: v.half() for k, v in made(linear).state_dict().items()}
    half = Aesthetic(saved(**tensors), clip=str(tiny_clip)).open()(pictures(2), ["", ""])
    assert half.dtype == torch.float32
    torch.testing.assert_close(
        half, Aesthetic(saved(), clip=str(tiny_clip)).open()(pictures(2), ["", ""]), atol=1e-3, rtol=0
    )


# -- which CLIP --------------------------------------------------------------------------------------------------------


def folder_of(tmp_path: Path, config: object, width: int = WIDTH) -> Path:
    folder = tmp_path / "style"
    folder.mkdir()
    save_file({"weight": torch.ones(1, width) / width, "bias": torch.zeros(1)}, folder / "head.safetensors")
    if config is not None:
        (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


def test_a_folder_names_its_clip_beside_it(tmp_path, tiny_clip):
    folder = folder_of(tmp_path, {"clip": "tower"})
    shutil.copytree(tiny_clip, folder / "tower")
    score = Aesthetic(str(folder)).open()
    expected = score.embed(pictures(2)).mean(1)
    torch.testing.assert_close(score(pictures(2), ["", ""]), expected, atol=1e-6, rtol=0)


def test_the_job_overrules_the_folder(tmp_path, tiny_clip):
    folder = folder_of(tmp_path, {"clip": "emoji-clip"})
    assert "reads 32 numbers, but the CLIP emoji-clip gives 128" in Aesthetic(str(folder)).mistakes()[0]
    assert Aesthetic(str(folder), clip=str(tiny_clip)).mistakes() == []


def test_without_a_word_the_clip_is_laions(saved):
    options = Aesthetic(saved(weight=torch.zeros(1, 768)))
    assert options.mistakes() == []
    assert (options.tower.pretrained, options.tower.model) == (LAION.pretrained, LAION.model)
    published = open_clip.get_pretrained_cfg(LAION.model, LAION.pretrained)
    assert published["quick_gelu"] and open_clip.get_model_config(LAION.model)["embed_dim"] == 768


def test_a_layers_map_in_place_of_the_embedding(tmp_path):
    folder = folder_of(tmp_path, {"clip": "emoji-clip", "features": "layer1"}, width=112)
    score = Aesthetic(str(folder)).open()
    images, kept = pictures(2), []
    handle = score.network.visual.layer1.register_forward_hook(lambda m, x, y: kept.append(y))
    values = score(images, ["", ""])
    handle.remove()
    torch.testing.assert_close(values, kept[0].mean((1, 2, 3)), atol=1e-6, rtol=1e-5)
    assert not score.network.visual.layer1._forward_hooks, "listening must leave nothing behind"


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ("layer9", "no layer 'layer9'"),
        ("attnpool", "'attnpool', which the head reads, gives no map"),
        ("layer2", "224"),
    ],
)
def test_a_layer_that_is_no_map_of_that_width_is_refused(tmp_path, layer, said):
    folder = folder_of(tmp_path, {"clip": "emoji-clip", "features": layer}, width=112)
    assert Aesthetic(str(folder)).mistakes() == []
    with pytest.raises(Refused, match=said):
        Aesthetic(str(folder)).open()


def test_a_width_that_only_the_loaded_clip_can_tell(saved, tiny_clip, monkeypatch):
    monkeypatch.setattr("genbo.rewards._tower.Tower.width", None)
    options = Aesthetic(saved(weight=torch.zeros(1, 48)), clip=str(tiny_clip))
    with pytest.raises(Refused, match=r"reads 48 numbers, but the CLIP .+ gives 32; set clip"):
        options.open()


# -- what genbo brings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", bundled.heads())
def test_bundled_heads_are_whole_and_have_a_card(name):
    folder = bundled.folder(name)
    assert Aesthetic(name).mistakes() == []
    card = (folder / "README.md").read_text()
    assert "held out" in card.lower().replace("-", " ") and "Apache-2.0" in card
    assert name not in bundled.names(), "a head is no CLIP"


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "changes", "said"),
    [
        (linear, {"bias": None}, "has no bias, which a linear head needs"),
        (linear, {"weight": None}, "has no weight, which a linear head needs"),
        (linear, {"more": torch.zeros(2)}, "has more, which a linear head has no place for"),
        (linear, {"bias": torch.zeros(3)}, "bias is 3 in"),
        (linear, {"weight": torch.zeros(WIDTH)}, "weight is 32 in"),
        (mlp, {"layers.4.weight": None}, "has no layers.4.weight, which LAION's second predictor needs"),
        (mlp, {"layers.6.bias": torch.zeros(8)}, "layers.6.bias is 8 in"),
        (mlp_with_relu, {"layers.11.bias": None}, "has no layers.11.bias"),
    ],
)
def test_tensors_that_are_not_a_heads_are_named(saved, tiny_clip, build, changes, said):
    (mistake,) = Aesthetic(saved(build, **changes), clip=str(tiny_clip)).mistakes()
    assert mistake.startswith("pretrained: ") and said in mistake and "; " in mistake


def test_a_nan_is_named(saved, tiny_clip):
    path = saved(bias=torch.tensor([torch.nan]))
    with pytest.raises(Refused, match=r"bias in .+ holds a NaN or an infinity; fetch or save it again"):
        Aesthetic(path, clip=str(tiny_clip)).open()


@pytest.mark.parametrize("left", [0, 5, 40, -8])
def test_a_file_cut_short_is_a_sentence(saved, tiny_clip, left):
    path = Path(saved())
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(Refused, match="is not a safetensors file, or is damaged"):
        Aesthetic(str(path), clip=str(tiny_clip)).open()


def test_a_pickled_head_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "sac+logos+ava1-l14-linearMSE.pth").write_bytes(b"never read")
    (mistake,) = Aesthetic(str(tmp_path / "sac+logos+ava1-l14-linearMSE.pth")).mistakes()
    assert "can run code; convert it to safetensors" in mistake and "weights_only=True" in mistake
    (mistake,) = Aesthetic(str(tmp_path)).mistakes()
    assert "head.safetensors is missing; convert sac+logos+ava1-l14-linearMSE.pth" in mistake


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pretrained": ""}, "pretrained: it is empty"),
        ({"pretrained": "emoji-stile"}, "'emoji-stile' is neither a bundled head"),
        ({"pretrained": "head.safetensors"}, "there is no file head.safetensors"),
        ({"pretrained": "emoji-clip"}, "emoji-clip is a CLIP, not a head"),
    ],
)
def test_every_mistake_has_a_place_and_a_remedy(options, said):
    (mistake,) = Aesthetic(**options).mistakes()
    assert said in mistake and mistake.startswith("pretrained: ")


@pytest.mark.parametrize(
    "config", ["{", "[]", '{"tower": "emoji-clip"}', '{"clip": 3}', '{"clip": "x", "preprocess": "no"}']
)
def test_a_broken_config_is_a_sentence(tmp_path, config):
    (mistake,) = Aesthetic(str(folder_of(tmp_path, config))).mistakes()
    assert "config.json" in mistake and mistake.endswith("write it again")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clip": "emoji-klip"}, "clip: 'emoji-klip' is neither a bundled name"),
        ({"clip": "weights.pth", "model": "ViT-B-32"}, "clip: weights.pth is a pickled file"),
        ({"model": "ViT-B-32"}, "clip: give the weights for ViT-B-32"),
        (
            {"clip": "laion2b_s34b_b79k", "model": "ViT-B-32"},
            "reads 32 numbers, but the CLIP laion2b_s34b_b79k (ViT-B-32) gives 512",
        ),
        ({"clip": "emoji-style"}, "clip: emoji-style is a head, for kind: aesthetic"),
    ],
)
def test_mistakes_of_the_clip_stand_at_its_own_option(saved, options, said):
    (mistake,) = Aesthetic(saved(), **options).mistakes()
    assert said in mistake and mistake.startswith("clip: ")


def test_the_file_is_read_by_safetensors_own_header(saved):
    from genbo.rewards._weights import shapes

    path = Path(saved(mlp))
    assert shapes(path) == {name: tuple(t.shape) for name, t in load_file(path).items()}
