"""The ResNet-18 reward, against torchvision's own network and its own transforms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision import transforms
from torchvision.models import ResNet18_Weights, resnet18

from genbo.rewards import Refused
from genbo.rewards.resnet18 import PREPARE, Resnet18, random_head


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    x = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(x, (height, width), mode="nearest") * 255).round() / 255


def pil(images: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(x) for x in (images * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()]


@pytest.fixture
def changed(random_resnet18, tmp_path):
    """The random network's file with some tensors replaced, or left out where None."""

    def change(**tensors: torch.Tensor | None) -> str:
        held = {**load_file(random_resnet18), **tensors}
        save_file({k: v for k, v in held.items() if v is not None}, tmp_path / "changed.safetensors")
        return str(tmp_path / "changed.safetensors")

    return change


def by_torchvision(path: str | Path, head: dict[str, torch.Tensor]) -> torch.nn.Module:
    network = resnet18()
    network.fc = torch.nn.Linear(512, 1)
    network.load_state_dict({**load_file(path), **head})
    return network.eval()


@pytest.mark.parametrize("size", [(64, 64), (97, 97), (70, 120), (300, 280)])
def test_is_torchvisions_network_on_torchvisions_images(random_resnet18, size):
    images, transform = pictures(2, *size), ResNet18_Weights.IMAGENET1K_V1.transforms(antialias=True)
    reward = Resnet18(str(random_resnet18), seed=5).open()
    prepared = torch.stack([transform(image) for image in pil(images)])
    std = torch.tensor(PREPARE["imagenet"]["std"]).reshape(-1, 1, 1)
    assert ((reward.prepare(images) - prepared) * std).abs().max() * 255 <= 2
    with torch.no_grad():
        expected = by_torchvision(random_resnet18, random_head(5))(prepared)[:, 0]
    assert expected.std() > 1e-3, "the network must tell these images apart, or this test says nothing"
    torch.testing.assert_close(reward(images, ["", ""]), expected, atol=2e-2 * expected.abs().max().item(), rtol=0)


def test_prepared_as_the_papers_released_code_does(random_resnet18):
    reward = Resnet18(str(random_resnet18), preprocess="released").open()
    images = pictures(2, 64, 64)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    theirs = transforms.Compose([transforms.Resize(224, antialias=True), transforms.Normalize(mean, std)])
    torch.testing.assert_close(reward.prepare(images), theirs(images), atol=1e-4, rtol=0)
    other = Resnet18(str(random_resnet18)).open()
    assert (reward(images, ["", ""]) - other(images, ["", ""])).abs().min() > 1e-4


def test_a_head_of_one_number_in_the_file_is_the_head(changed, random_resnet18):
    head = {"fc.weight": torch.full((1, 512), 0.01), "fc.bias": torch.tensor([3.0])}
    path = changed(**head)
    images = pictures(2, 64, 64)
    reward = Resnet18(path, seed=1).open()
    with torch.no_grad():
        expected = by_torchvision(path, head)(reward.prepare(images))[:, 0]
    torch.testing.assert_close(reward(images, ["", ""]), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(reward(images, ["", ""]), Resnet18(path, seed=2).open()(images, ["", ""]))


def test_the_random_head_is_the_seeds_alone(random_resnet18):
    images = pictures(2, 64, 64)

    def scores(seed: int) -> torch.Tensor:
        return Resnet18(str(random_resnet18), seed=seed).open()(images, ["", ""])

    before = torch.random.get_rng_state()
    first = scores(0)
    torch.rand(3)
    assert torch.equal(first, scores(0))
    assert not torch.allclose(first, scores(1))
    torch.random.set_rng_state(before)


def test_opening_leaves_torchs_generator_alone(random_resnet18):
    before = torch.random.get_rng_state()
    Resnet18(str(random_resnet18)).open()
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_head_is_torchs_first_guess_of_a_linear_layer_and_stays_what_it_is():
    heads = [random_head(seed) for seed in range(40)]
    weights = torch.cat([head["fc.weight"].flatten() for head in heads]) * 512**0.5
    assert weights.abs().max() <= 1
    assert weights.square().mean().item() == pytest.approx(1 / 3, abs=0.01)  # U(-1, 1)
    assert weights.mean().item() == pytest.approx(0, abs=0.02)
    assert heads[0]["fc.weight"].shape == (1, 512) and heads[0]["fc.bias"].shape == (1,)
    pinned = torch.tensor([-0.02929204970117741, -0.028164201283638553, 0.0010337245619468985])
    assert torch.equal(heads[0]["fc.weight"][0, :3], pinned)


def test_without_a_last_layer_the_file_serves_too(changed, random_resnet18):
    path = changed(**{"fc.weight": None, "fc.bias": None})
    images = pictures(2, 64, 64)
    a, b = (Resnet18(str(p)).open()(images, ["", ""]) for p in (path, random_resnet18))
    assert torch.equal(a, b), "the classes of ImageNet have no say"


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"layer3.1.bn2.running_var": None}, "has no layer3.1.bn2.running_var, which a ResNet-18 needs"),
        ({"conv1.weight": None, "bn1.bias": None}, "has no conv1.weight (and 1 more)"),
        ({"layer1.2.conv1.weight": torch.zeros(1)}, "has layer1.2.conv1.weight, which a ResNet-18 has no place for"),
        ({"conv1.weight": torch.zeros(64, 3, 3, 3)}, "conv1.weight is 64 x 3 x 3 x 3 in"),
        ({"fc.bias": None}, "has no fc.bias"),
        ({"fc.weight": torch.zeros(1, 64)}, "fc.weight is 1 x 64 in"),
    ],
)
def test_tensors_that_are_not_its_own_are_named(changed, tensors, said):
    mistakes = Resnet18(changed(**tensors)).mistakes()
    assert any(said in mistake for mistake in mistakes)
    assert all(mistake.startswith("pretrained: ") and "; " in mistake for mistake in mistakes)


def test_a_nan_is_named(changed):
    path = changed(**{"layer2.0.bn1.weight": torch.full((128,), torch.inf)})
    with pytest.raises(Refused, match=r"layer2\.0\.bn1\.weight in .+ holds a NaN or an infinity"):
        Resnet18(path).open()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pretrained": ""}, "pretrained: it is empty; give a file that you made with save_file("),
        ({"pretrained": "resnet18.safetensors"}, "there is no file resnet18.safetensors; correct the path, or make"),
        ({"pretrained": "reward_model.pth"}, "can run code; convert it to safetensors"),
        ({"pretrained": "resnet18.safetensors", "seed": -1}, "seed: must be 0 or greater"),
        ({"pretrained": "resnet18.safetensors", "preprocess": "none"}, "is not one of imagenet, released"),
    ],
)
def test_every_mistake_has_a_place_and_a_remedy(options, said):
    assert any(said in mistake for mistake in Resnet18(**options).mistakes())


def test_a_damaged_file_is_a_sentence(tmp_path):
    (tmp_path / "r.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not json at all.")
    with pytest.raises(Refused, match="is not a safetensors file, or is damaged"):
        Resnet18(str(tmp_path / "r.safetensors")).open()
