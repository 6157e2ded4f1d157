"""Feature networks: against the libraries that they come from, and what is said of networks that will not do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from genbo.diffusion.data import Data
from genbo.rewards import Refused
from genbo.rewards._extractors import DOWNLOAD, bundled_names, folder_of, mistakes, open_extractor, with_channels


@pytest.fixture
def images() -> torch.Tensor:
    bytes_ = torch.randint(0, 256, (3, 3, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return bytes_.float() / 255


@pytest.fixture
def digits(tmp_path) -> Path:
    """A copy of a bundled network, to spoil."""
    return Path(shutil.copytree(folder_of("digits-features"), tmp_path / "digits"))


@pytest.fixture(scope="session")
def timm_folder(tmp_path_factory) -> Path:
    """As timm's `save_for_hf` writes it: a small network with its own way of preparing images."""
    import timm

    folder = tmp_path_factory.mktemp("timm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model("test_resnet", num_classes=5)
    save_file(network.state_dict(), folder / "model.safetensors")
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 24, 24]}
    config = {"architecture": "test_resnet", "num_classes": 5, "pretrained_cfg": own}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


# -- the same as elsewhere ------------------------------------------------------------------------------------


def test_pixels_are_the_numbers_themselves(images):
    assert torch.equal(open_extractor("pixels")(images), images.flatten(1))


def test_a_timm_folder_gives_what_timm_gives(timm_folder, images):
    import timm

    network = timm.create_model("test_resnet", num_classes=5).eval()
    network.load_state_dict(load_file(timm_folder / "model.safetensors"))
    config = json.loads((timm_folder / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
    mean, std = (torch.tensor(config[name]).reshape(-1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        expected = network.forward_head(network.forward_features((images - mean) / std), pre_logits=True)
        found = open_extractor(str(timm_folder))(images)
    assert found.shape == (3, network.num_features)
    torch.testing.assert_close(found, expected.flatten(1))


def test_a_timm_file_beside_its_architecture(tmp_path, images):
    import timm

    network = timm.create_model("test_resnet")
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    found = open_extractor("timm:test_resnet", str(tmp_path / "weights.safetensors"))(images)
    assert found.shape == (3, network.num_features)


def test_a_clip_folder_gives_the_embedding(tiny_clip, images):
    import open_clip

    network, _ = open_clip.create_model_from_pretrained(f"local-dir:{tiny_clip}")
    extractor = open_extractor(str(tiny_clip))
    with torch.no_grad():
        found = extractor(images)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    assert found.shape == (3, network.visual.output_dim)


def test_inception_gives_what_torchmetrics_gives(tmp_path, images):
    """With random weights: the published ones are 96 MB. Batch statistics are random too, or depth hides them."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    from genbo.rewards._inception import Inception

    torch.manual_seed(0)
    network = Inception().network
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    theirs = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(tmp_path / "weights.pth"))
    with torch.no_grad():
        expected = theirs((images * 255).round().to(torch.uint8))
        found = open_extractor("inception", str(tmp_path / "weights.safetensors"))(images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


class Recorder(torch.nn.Module):
    """In place of a network: its one block keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return x


def given_to_inception(images):
    from genbo.rewards._inception import Inception

    with torch.device("meta"):
        whole = Inception()
    recorder = Recorder()
    whole.network = torch.nn.Sequential(recorder)
    whole(images)
    return recorder.seen[0]


def test_inception_is_given_bytes_as_tensorflows_graph_scales_them():
    """(byte - 128) / 128 at 299 x 299 pixels, by hand: 0 is -1, 64 is -1/2, 128 is 0 and 255 is 127/128."""
    shades = torch.tensor([0, 64, 128, 255]).reshape(4, 1, 1, 1)
    found = given_to_inception((shades / 255).expand(4, 3, 24, 24))
    wanted = torch.tensor([-1.0, -0.5, 0.0, 127 / 128]).reshape(4, 1, 1, 1)
    torch.testing.assert_close(found, wanted.expand(4, 3, 299, 299), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(24, 40), (640, 500)])
def test_inception_is_given_what_pillow_resizes(size):
    """Bilinear, up and down with antialiasing, channel by channel; Pillow's numbers are not genbo's or torch's."""
    from PIL import Image

    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    planes = [
        Image.fromarray((255 * plane).numpy()).resize((299, 299), Image.Resampling.BILINEAR) for plane in image[0]
    ]
    wanted = torch.stack([(torch.from_numpy(np.array(plane)) - 128) / 128 for plane in planes])
    torch.testing.assert_close(given_to_inception(image)[0], wanted, atol=1e-4, rtol=0)


def test_inception_has_the_tensors_of_the_published_file():
    """Names and number of tensors of `weights-inception-2015-12-05`, without its counts of batches."""
    from genbo.rewards._inception import FEATURES, Inception

    with torch.device("meta"):
        state = Inception().network.state_dict()
    names = [name for name in state if not name.endswith("num_batches_tracked")]
    assert len(names) == 94 * 5 + 2
    assert state["fc.weight"].shape == (1008, FEATURES)
    assert "Mixed_7c.branch3x3dbl_3b.conv.weight" in names


# -- the bundled ones -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", bundled_names())
def test_bundled_networks_open(name):
    assert mistakes(name) == []
    found = open_extractor(name)(torch.rand(2, 3, 20, 20))
    assert found.ndim == 2 and found.isfinite().all()


def test_the_digits_network_knows_digits():
    folder = folder_of("digits-features")
    from genbo.rewards._convolutions import TwoConvolutions

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    network = TwoConvolutions(1, 8, len(config["classes"]), config["mean"], config["std"], config["strides"])
    network.load_state_dict(load_file(folder / "model.safetensors"))
    test = Data("digits").open().test
    assert (network(test.unit()).argmax(1) == test.labels).double().mean() > 0.97
    torch.testing.assert_close(open_extractor("digits-features")(test.unit()), network.features(test.unit()))


def test_each_image_by_itself_and_with_gradients(images):
    extractor = open_extractor("digits-features")
    live = images.clone().requires_grad_()
    found = extractor(live)
    torch.testing.assert_close(found[1:2], extractor(images[1:2]), rtol=1e-4, atol=1e-6)
    (grad,) = torch.autograd.grad(found[1].sum(), live)
    assert grad[1].any() and not grad[0].any()


def test_colour_and_grey():
    from PIL import Image

    colour = torch.randint(0, 256, (1, 3, 5, 5), dtype=torch.uint8)
    pillow = Image.fromarray(colour[0].permute(1, 2, 0).numpy()).convert("L")
    grey = with_channels(colour.float(), 1)[0, 0]
    assert (grey - torch.tensor(list(pillow.getdata())).reshape(5, 5)).abs().max() <= 1
    assert torch.equal(with_channels(grey[None, None], 3)[0, 2], grey)
    with pytest.raises(Refused, match="4 channels"):
        with_channels(torch.rand(1, 4, 5, 5), 3)


def test_weights_have_their_own_identity(digits):
    before = open_extractor(str(digits)).identity
    assert before == open_extractor("digits-features").identity
    tensors = load_file(digits / "model.safetensors")
    tensors["head.bias"][0] += 1
    save_file(tensors, digits / "model.safetensors")
    assert open_extractor(str(digits)).identity != before


# -- what will not do -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "weights", "said"),
    [
        ("", "", "features: it is empty"),
        ("pixls", "", "features: 'pixls' is no folder"),
        ("pixels", "x", "weights: pixels needs none"),
        ("inception", "", "weights: inception needs a safetensors file"),
        ("inception", "nowhere.safetensors", "weights: there is no file nowhere.safetensors"),
        ("inception", "inception.pth", "weights: inception.pth is a pickled file"),
        ("timm:", "", "features: timm: names no architecture"),
        ("timm:resnet18", "", "weights: timm:resnet18 needs a safetensors file"),
        ("clip:", "openai", "features: clip: names no architecture"),
        ("clip:ViT-B-23", "openai", "features: open_clip has no architecture"),
        ("clip:ViT-B-32", "", "weights: give the weights for ViT-B-32"),
    ],
)
def test_mistakes(features, weights, said):
    found = mistakes(features, weights)
    assert len(found) == 1 and found[0].startswith(said)
    with pytest.raises(Refused):
        open_extractor(features, weights)


def test_what_is_to_be_fetched_is_no_mistake():
    assert mistakes("inception", DOWNLOAD) == mistakes("timm:resnet18", DOWNLOAD) == []


def test_a_clip_file_does_not_say_how_images_are_prepared(tiny_clip):
    file = tiny_clip / "open_clip_model.safetensors"
    (said,) = mistakes("clip:ViT-B-32", str(file))
    assert "put it into a folder" in said


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("not json", "cannot be read"),
        ("[1]", "no mapping"),
        ("[" * 100_000, "nested"),
        ("{}", "names neither"),
        ('{"architecture": "hf-hub:someone/network"}', "names neither"),
        ('{"kind": "two_convolutions", "channels": -1}', "no valid channels"),
    ],
)
def test_a_config_that_makes_no_network(digits, config, said):
    (digits / "config.json").write_text(config, encoding="utf-8")
    (found,) = mistakes(str(digits))
    assert said in found


def test_a_huge_network_is_not_built(digits):
    config = json.loads((digits / "config.json").read_text(encoding="utf-8"))
    (digits / "config.json").write_text(json.dumps({**config, "features": 10**9}), encoding="utf-8")
    assert "no valid features" in mistakes(str(digits))[0]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda t: t.pop("second.bias"), "second.bias"),
        (lambda t: t.update(more=torch.ones(1)), "more"),
        (lambda t: t.update({"head.bias": torch.ones(3)}), "head.bias"),
        (lambda t: t["head.bias"].fill_(float("nan")), "NaN"),
    ],
)
def test_weights_that_do_not_fit(digits, spoil, said):
    tensors = load_file(digits / "model.safetensors")
    spoil(tensors)
    save_file(tensors, digits / "model.safetensors")
    with pytest.raises(Refused, match=said) as refused:
        open_extractor(str(digits))
    assert str(refused.value).startswith("weights:")


def test_weights_that_are_cut_or_missing(digits):
    file = digits / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(Refused, match="damaged"):
        open_extractor(str(digits))
    file.unlink()
    assert "is missing" in mistakes(str(digits))[0]


def test_a_folder_without_a_network(tmp_path):
    assert "no config.json" in mistakes(str(tmp_path))[0]


def test_an_architecture_that_timm_lacks(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(Refused, match="timm cannot make resnet19"):
        open_extractor("timm:resnet19", str(tmp_path / "w.safetensors"))
