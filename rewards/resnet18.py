"""The synthetic reward of the method's papers: an ImageNet ResNet-18 with a random scalar head.

    r(x) = w . f(prepare(x)) + b,      w, b ~ U(-1 / sqrt(512), 1 / sqrt(512))

A reward that means nothing and is smooth, and so tests a method instead of a taste (Yuan et al. 2307.07055, Guo et al.
2404.14743; Xiao et al. 2502.08808 tune lambda with it). It reads no prompt.

Values: any number, of the order of 1 with ImageNet's weights. Those are torchvision's own (BSD-3-Clause; ImageNet's
terms hold for what was learned from it); genbo brings none and fetches none.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from genbo.rewards import Refused
from genbo.rewards._prepare import centre, normalise, resize, resized
from genbo.rewards._tower import FAMILIES
from genbo.rewards._weights import Shape, differences, file_mistake, read, shapes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FEATURES = 512
CHANNELS = (64, 128, 256, 512)  # of the four layers, of two blocks each
CROP = 224

# torchvision's for ImageNet; and what the papers' released code does, which trains on no crop and CLIP's colours
PREPARE: dict[str, dict[str, Any]] = {
    "imagenet": {"shortest": 256, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "released": {"shortest": CROP, "mean": FAMILIES["openai"]["mean"], "std": FAMILIES["openai"]["std"]},
}

REMEDY = "save_file(resnet18(weights='IMAGENET1K_V1').state_dict(), 'resnet18.safetensors')"


@dataclass(frozen=True)
class Resnet18:
    """`pretrained` is a safetensors file of torchvision's ResNet-18.

    timm's `resnet18.tv_in1k` has the same names; with torchvision,

        save_file(resnet18(weights='IMAGENET1K_V1').state_dict(), 'resnet18.safetensors')

    Where its `fc.weight` is 1 x 512, that is the head. Else the head is drawn from `seed`, the same on every machine.
    `preprocess` is torchvision's for ImageNet, or that of the papers' released code.
    """

    pretrained: str
    seed: Annotated[int, Ge(0)] = 0
    preprocess: Literal["imagenet", "released"] = "imagenet"
    differentiable: ClassVar[bool] = True

    def mistakes(self) -> list[str]:
        """What is wrong with these options, a sentence each; reads the file's header alone."""
        found = [] if self.seed >= 0 else [f"seed: must be 0 or greater, not {self.seed}"]
        if self.preprocess not in PREPARE:
            found.append(f"preprocess: {self.preprocess!r} is not one of {', '.join(PREPARE)}")
        if not self.pretrained:
            return [*found, f"pretrained: it is empty; give a file that you made with {REMEDY}"]
        if wrong := file_mistake(self.weights_file):
            return [*found, f"{wrong}, or make the file with {REMEDY}" if "no file" in wrong else wrong]
        try:
            held = shapes(self.weights_file)
        except Refused as error:
            return [*found, str(error)]
        return found + differences(self.weights_file, _named(held), _wanted(held), "a ResNet-18")

    def open(self, device: str | torch.device = "cpu") -> _Resnet:
        """Load the weights. Raises `Refused` with a sentence for whatever is wrong with them."""
        if wrong := self.mistakes():
            raise Refused("; ".join(wrong))
        held = shapes(self.weights_file)
        names = [name for name in _wanted(held) if _has_head(held) or not name.startswith("fc.")]
        weights = read(self.weights_file, names)
        if not _has_head(held):
            weights |= random_head(self.seed)
        return _Resnet(self.weights_file, weights, PREPARE[self.preprocess], device)

    @property
    def weights_file(self) -> Path:
        return Path(self.pretrained).expanduser()


class _Resnet:
    """The opened reward, in float32."""

    differentiable: bool = True

    def __init__(
        self, file: Path, weights: dict[str, Tensor], preparation: dict[str, Any], device: str | torch.device
    ) -> None:
        import torch
        from torchvision.models import resnet18

        with torch.random.fork_rng(devices=[]):  # it is born with random weights, which are nobody's business
            network = resnet18(num_classes=1)
        network.load_state_dict(weights, strict=False)  # all but the counts of batches, which evaluation ignores
        self.network: Any = network.to(device).eval().requires_grad_(False)
        self.file, self.preparation, self.device = file, preparation, device

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        score: Tensor = self.network(self.prepare(images))
        return score[:, 0]

    def prepare(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, 224, 224)."""
        x, side = images.to(self.device).float(), self.preparation["shortest"]
        x = resize(x, resized(x.shape[-2], x.shape[-1], side, side, "shortest"), "bilinear")
        return normalise(centre(x, CROP, CROP), self.preparation["mean"], self.preparation["std"])


def random_head(seed: int) -> dict[str, Tensor]:
    """`fc.weight` (1, 512) and `fc.bias` (1,) as torch would begin them, from Python's generator.

    Its numbers are promised to stay what they are; torch promises that for no two versions or machines.
    """
    import torch

    generator = random.Random(f"resnet18 head {seed}")
    bound = FEATURES**-0.5
    numbers = [generator.random() * 2 * bound - bound for _ in range(FEATURES + 1)]
    return {"fc.weight": torch.tensor([numbers[:FEATURES]]), "fc.bias": torch.tensor(numbers[FEATURES:])}


# -- what the file must hold -------------------------------------------------------------------------------------------


def _has_head(held: dict[str, Shape]) -> bool:
    return held.get("fc.weight") == (1, FEATURES)


def _named(held: dict[str, Shape]) -> dict[str, Shape]:
    """Without what evaluation never reads."""
    return {name: shape for name, shape in held.items() if not name.endswith("num_batches_tracked")}


def _wanted(held: dict[str, Shape]) -> dict[str, Shape]:
    """Every tensor of torchvision's ResNet-18; a classifier's last layer may be there, of any number of classes."""
    wanted = {"conv1.weight": (64, 3, 7, 7), **_norm("bn1", 64)}
    for layer, width in enumerate(CHANNELS, start=1):
        for block in (0, 1):
            before = CHANNELS[max(layer - 2, 0)] if block == 0 else width
            wanted |= _block(f"layer{layer}.{block}", before, width)
    if "fc.weight" in held or "fc.bias" in held:
        classes = (held.get("fc.weight") or held.get("fc.bias") or (1,))[0]
        wanted |= {"fc.weight": (classes, FEATURES), "fc.bias": (classes,)}
    return wanted


def _block(name: str, before: int, width: int) -> dict[str, Shape]:
    found = {f"{name}.conv1.weight": (width, before, 3, 3), **_norm(f"{name}.bn1", width)}
    found |= {f"{name}.conv2.weight": (width, width, 3, 3), **_norm(f"{name}.bn2", width)}
    if before != width:
        found |= {f"{name}.downsample.0.weight": (width, before, 1, 1), **_norm(f"{name}.downsample.1", width)}
    return found


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
