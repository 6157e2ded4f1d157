"""A classifier's belief against timm's own model and transform, and the names of its classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config

from genbo.rewards import Refused
from genbo.rewards.classifier import Classifier
from tests.rewards.test_clip import pictures


@pytest.fixture
def folder(tiny_timm, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_timm, tmp_path / "classifier"))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    """Weights of a network by themselves, with ImageNet's thousand classes."""
    file = tmp_path_factory.mktemp("imagenet") / "weights.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model("test_resnet.r160_in1k").eval()
    save_file(network.state_dict(), file)
    return file, network


def by_timm(images: torch.Tensor, network: torch.nn.Module, own: dict) -> torch.Tensor:
    said = resolve_data_config(pretrained_cfg={**network.pretrained_cfg, **own}, model=network)
    transform = create_transform(**said, is_training=False)
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return torch.stack([transform(Image.fromarray(p)) for p in pixels])


@pytest.mark.parametrize("way", [{}, {"crop_pct": 1.0, "crop_mode": "squash"}, {"interpolation": "bilinear"}], ids=str)
@pytest.mark.parametrize("shape", [(64, 64), (100, 100), (64, 101), (99, 80)])
def test_prepares_images_as_timm_does(folder, shape, way):
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= way
    (folder / "config.json").write_text(json.dumps(config))
    reward = Classifier(str(folder), label=0).open()
    images = pictures(2, *shape)
    theirs = by_timm(images, reward.network, config["pretrained_cfg"])
    std = torch.tensor(config["pretrained_cfg"]["std"]).reshape(-1, 1, 1)
    assert ((reward.prepare(images) - theirs) * std).abs().max() < 2.5 / 255


def test_is_the_softmax_of_timms_network(folder):
    network = timm.create_model("test_vit", num_classes=3, img_size=64)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    images = pictures(4, 64, 64)
    own = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    with torch.no_grad():
        expected = network.eval()(by_timm(images, network, own)).softmax(-1)
    beliefs = [Classifier(str(folder), label=n, score="probability").open()(images, [""] * 4) for n in range(3)]
    torch.testing.assert_close(torch.stack(beliefs, 1), expected, atol=0.02, rtol=0)
    torch.testing.assert_close(sum(beliefs), torch.ones(4))
    assert expected.std(0).min() > 0.05, "the network must tell these apart, or this test says nothing"
    logs = Classifier(str(folder), label=1).open()(images, [""] * 4)
    torch.testing.assert_close(logs.exp(), beliefs[1])


@pytest.mark.parametrize(("label", "number"), [("cat", 0), ("Tabby", 0), ("tabby cat", 0), ("hen", 2), (1, 1)])
def test_a_class_has_a_number_and_names(tiny_timm, label, number):
    assert Classifier(str(tiny_timm), label=label).open().number == number


@pytest.mark.parametrize(
    ("label", "number"), [("n02123045", 281), ("tabby", 281), ("Golden retriever", 207), ("Granny Smith", 948)]
)
def test_imagenets_names_are_known(imagenet, label, number):
    reward = Classifier(str(imagenet[0]), label=label, model="test_resnet").open()
    assert reward.number == number
    images = pictures(2, 160, 160)
    with torch.no_grad():
        expected = imagenet[1](reward.prepare(images)).log_softmax(-1)[:, number]
    torch.testing.assert_close(reward(images, ["", ""]), expected)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("tabbi", "no class is called 'tabbi'; did you mean 'tabby'"),
        ("crane", r"'crane' is the name of several classes \(134, 517\); give the number"),
        (1000, "there is no class 1000; the network has 1000, counted from 0"),
    ],
)
def test_a_class_that_is_not_there_is_a_sentence(imagenet, label, said):
    with pytest.raises(Refused, match=said):
        Classifier(str(imagenet[0]), label=label, model="test_resnet").open()


def test_classes_without_names_have_numbers(imagenet, tmp_path):
    """A file with another number of classes than timm's: its last layer says how many."""
    held = load_file(imagenet[0])
    held |= {"fc.weight": held["fc.weight"][:7].clone(), "fc.bias": held["fc.bias"][:7].clone()}
    save_file(held, tmp_path / "seven.safetensors")
    options = {"pretrained": str(tmp_path / "seven.safetensors"), "model": "test_resnet"}
    assert Classifier(label=6, **options).open()(pictures(1, 160, 160), [""]).item() < 0
    with pytest.raises(Refused, match="the classes of this network have no names; give a number from 0 to 6"):
        Classifier(label="dog", **options).open()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda held: held.pop("head.bias"), "has no head.bias, which timm's test_vit needs"),
        (lambda held: held["head.bias"].fill_(float("nan")), "head.bias in .* holds a NaN or an infinity"),
        (lambda held: held.update({"head.bias": torch.zeros(4)}), "head.bias is 4 in .*, but 3 in timm's test_vit"),
    ],
    ids=["missing", "NaN", "shape"],
)
def test_a_weight_that_is_missing_or_broken_is_named(folder, change, said):
    held = load_file(folder / "model.safetensors")
    change(held)
    save_file(held, folder / "model.safetensors")
    with pytest.raises(Refused, match=said):
        Classifier(str(folder), label=0).open()


def _config(**changes):
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return edit


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json cannot be read"),
        (_config(architecture="hf-hub:someone/network"), "names no architecture of timm's; correct it"),
        (_config(architecture=None), "names no architecture of timm's; correct it"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "convert pytorch_model.bin",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_before_anything_is_loaded(folder, change, said):
    change(folder)
    (mistake,) = Classifier(str(folder), label=0).mistakes()
    assert mistake.startswith("pretrained: ") and said in mistake


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pretrained": ""}, "pretrained: it is empty; give a folder"),
        ({"pretrained": "nowhere"}, "pretrained: nowhere is no folder; correct the path"),
        ({"pretrained": __file__}, "a file, which does not name its network; set model as well"),
        ({"pretrained": "nowhere", "model": "resnet18"}, "there is no file nowhere; correct the path"),
        ({"pretrained": "w.pth", "model": "resnet18"}, "w.pth is a pickled file, which can run code; convert it"),
        ({"pretrained": ".", "model": "resnet18"}, "is a folder, whose config names the architecture; leave model out"),
        ({"pretrained": "w.safetensors", "model": "hf-hub:a/b"}, "is no name of timm's; write one like resnet50"),
    ],
)
def test_every_mistake_has_a_place_and_a_remedy(options, said):
    (mistake,) = Classifier(label=0, **options).mistakes()
    assert said in mistake


def test_a_negative_class_is_a_mistake(tiny_timm):
    assert Classifier(str(tiny_timm), label=-1).mistakes() == ["label: -1 is no class; they are counted from 0"]


def test_an_architecture_that_timm_does_not_have_is_a_sentence(imagenet):
    with pytest.raises(Refused, match=r"timm cannot make resnet51 .*; did you mean 'resnet5"):
        Classifier(str(imagenet[0]), label=0, model="resnet51").open()


def test_options_of_a_folder_cannot_name_a_file_to_load(folder):
    """timm's `checkpoint_path` would unpickle; of a folder's options only its shape is taken."""
    (folder / "evil.pth").write_bytes(b"not to be read")
    _config(model_args={"checkpoint_path": str(folder / "evil.pth"), "img_size": 64})(folder)
    assert Classifier(str(folder), label=0).open()(pictures(1, 64, 64), [""]).isfinite().all()


def test_a_way_of_cropping_that_is_not_supported_is_a_sentence(folder):
    config = json.loads((folder / "config.json").read_text())
    _config(pretrained_cfg={**config["pretrained_cfg"], "crop_mode": "border"})(folder)
    with pytest.raises(Refused, match="crop_mode border are not supported; take a network"):
        Classifier(str(folder), label=0).open()
