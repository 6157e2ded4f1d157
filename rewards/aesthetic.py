"""Aesthetic score: a small head on CLIP features, one of LAION's predictors or your own.

    r(x) = h(f(prepare(x))),      |f| = 1

Three heads are known by the names of their tensors:

    weight, bias                one linear layer: LAION's first predictor (sa_0_4_vit_l_14_linear), and genbo's own
    layers.0, 2, 4, 6, 7        768-1024-128-64-16-1 with nothing between: LAION's second (sac+logos+ava1-l14-linearMSE)
    layers.0, 3, 6, 9, 11       the same with ReLUs between (ava+logos-l14-reluMSE)

It reads no prompt. Values: any number; LAION's were trained on ratings from 1 to 10, and most images get 4 to 7.
LAION's first predictor is under MIT, as is the CLIP that all of them read (OpenAI's); for the others see their
repository. genbo brings none of LAION's and fetches no head; the heads that it brings are its own, and their cards say
what they measure.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from genbo.rewards import Refused, bundled
from genbo.rewards._tower import Family, ImageTower, Tower
from genbo.rewards._weights import PICKLED, Shape, differences, file_mistake, read, shapes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WEIGHTS, CONFIG = "head.safetensors", "config.json"
LAION = Tower("openai", "ViT-L-14-quickgelu")  # what LAION's heads read
KEYS = ("clip", "model", "preprocess", "features")

LINEAR, RELU = (0, 2, 4, 6, 7), (0, 3, 6, 9, 11)  # where the layers stand among dropouts and activations
WIDTHS = (1024, 128, 64, 16, 1)


@dataclass(frozen=True)
class Aesthetic:
    """`pretrained` is the head: a bundled name, a safetensors file, or a folder with head.safetensors.

    `clip`, with `model` and `preprocess`, is the CLIP that the head was trained on, as `kind: clip` names it in
    `pretrained`. Left out, it is what the folder's config.json says, or else LAION's: OpenAI's ViT-L/14, which
    open_clip fetches. That config may also name a layer of the image tower in `features`: the head then reads the mean
    of its map in place of the embedding.
    """

    pretrained: str
    clip: str = ""
    model: str = ""
    preprocess: Family | None = None
    differentiable: ClassVar[bool] = True

    def mistakes(self) -> list[str]:
        """What is wrong with these options, a sentence each; reads configs and headers and loads nothing."""
        if wrong := self._file_mistake() or self._config_mistake():
            return [wrong]
        try:
            found, width = _head_mistakes(self.weights_file, shapes(self.weights_file))
        except Refused as error:
            return [str(error), *self.tower.mistakes()]
        found += self.tower.mistakes()
        sees = None if self.features or found else self.tower.width
        if sees is not None and sees != width:
            found.append(self._other_clip(width, sees))
        return found

    def open(self, device: str | torch.device = "cpu") -> _Score:
        """Load head and CLIP. Raises `Refused` with a sentence for whatever is wrong with them."""
        if wrong := self.mistakes():
            raise Refused("; ".join(wrong))
        layers = _layers(shapes(self.weights_file))
        weights = read(self.weights_file, [f"{layer}{part}" for layer in layers for part in ("weight", "bias")])
        score = _Score(self.tower.load(), weights, layers, self.features, device)
        score.file = self.weights_file
        width, sees = weights[f"{layers[0]}weight"].shape[1], score.width()
        if sees != width:
            raise Refused(self._other_clip(width, sees))
        return score

    @property
    def weights_file(self) -> Path:
        """Where the head's weights lie."""
        return self._place / WEIGHTS if self._place.is_dir() else self._place

    @property
    def tower(self) -> Tower:
        """The CLIP that the head reads."""
        if self.clip or self.model or self.preprocess:
            return Tower(self.clip, self.model, self.preprocess, option="clip")
        said = self._config()
        if "clip" not in said:
            return replace(LAION, option="clip")
        model, clip = said.get("model", ""), said["clip"]
        beside = self._place / clip
        path = str(beside) if beside.exists() and not bundled.folder(clip) else clip
        return Tower(path, model, said.get("preprocess"), option="clip")

    @property
    def features(self) -> str:
        """The layer of the image tower that the head reads, or nothing for the embedding."""
        layer: str = self._config().get("features", "")
        return layer

    @property
    def _place(self) -> Path:
        return bundled.folder(self.pretrained) or Path(self.pretrained).expanduser()

    def _config(self) -> dict[str, Any]:
        file = self._place / CONFIG
        if not file.is_file():
            return {}
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def _file_mistake(self) -> str | None:
        heads = ", ".join(bundled.heads())
        if not self.pretrained:
            return f"pretrained: it is empty; give a safetensors file, a folder, or a bundled head ({heads})"
        if self.pretrained in bundled.names():
            return f"pretrained: {self.pretrained} is a CLIP, not a head; set clip to it, and give a head ({heads})"
        if self._place.is_dir() and not self.weights_file.is_file():
            pickled = sorted(path.name for path in self._place.iterdir() if path.suffix in PICKLED)
            remedy = f"convert {pickled[0]}, which is pickled and can run code" if pickled else "put the head there"
            return f"pretrained: {self.weights_file} is missing; {remedy}"
        if not self._place.exists() and not self._place.suffix:
            return (
                f"pretrained: {self.pretrained!r} is neither a bundled head ({heads}), a file nor a folder; correct it"
            )
        return file_mistake(self.weights_file)

    def _config_mistake(self) -> str | None:
        """Of the folder's own config, which is data like any other."""
        file = self._place / CONFIG
        try:
            said = self._config()
        except (OSError, ValueError) as error:
            return f"pretrained: {file} cannot be read as JSON ({error}); write it again"
        if not isinstance(said, dict) or not set(said) <= set(KEYS):
            return f"pretrained: {file} must be a mapping of {', '.join(KEYS)}; write it again"
        preprocess = said.get("preprocess")
        words = [value for key, value in said.items() if key != "preprocess"]
        if not all(isinstance(word, str) for word in words) or preprocess not in (None, *get_args(Family)):
            return f"pretrained: {file}: {', '.join(KEYS)} must be names; write it again"
        return None

    def _other_clip(self, width: int, sees: int) -> str:
        what = f"{self.features} of the CLIP" if self.features else "the CLIP"
        name = f"{self.tower.pretrained} ({self.tower.model})" if self.tower.model else self.tower.pretrained
        return (
            f"clip: the head {self.weights_file} reads {width} numbers, but {what} {name} gives {sees}; "
            "set clip (and model) to the one that the head was trained on"
        )


# -- the head ----------------------------------------------------------------------------------------------------------


def _layers(held: dict[str, Shape]) -> list[str]:
    """The layers of the head that a file holds, as what stands before `weight` and `bias`."""
    if not any(name.startswith("layers.") for name in held):
        return [""]
    places = RELU if any(f"layers.{n}." in name for name in held for n in (3, 9, 11)) else LINEAR
    return [f"layers.{n}." for n in places]


def _head_mistakes(file: Path, held: dict[str, Shape]) -> tuple[list[str], int]:
    """What is wrong with the tensors of a head, and how many numbers it reads."""
    layers = _layers(held)
    width = next((shape[1] for shape in [held.get(f"{layers[0]}weight", ())] if len(shape) == 2), 0)
    outs = WIDTHS if len(layers) > 1 else (1,)
    wanted: dict[str, Shape] = {}
    for layer, before, out in zip(layers, (width, *outs), outs, strict=False):
        wanted |= {f"{layer}weight": (out, before), f"{layer}bias": (out,)}
    what = "LAION's second predictor" if len(layers) > 1 else "a linear head"
    return differences(file, held, wanted, what), width


class _Score(ImageTower):
    """The opened reward, in float32."""

    differentiable: bool = True
    file: Path | None = None

    def __init__(
        self,
        network: torch.nn.Module,
        weights: dict[str, Tensor],
        layers: Sequence[str],
        features: str,
        device: str | torch.device,
    ) -> None:
        super().__init__(network, device)
        self.layers = [(weights[f"{name}weight"].to(device), weights[f"{name}bias"].to(device)) for name in layers]
        self.relu, self.features = f"layers.{RELU[1]}." in layers, features

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        from torch.nn.functional import linear

        x = self.map_mean(images, self.features) if self.features else self.embed(images)
        for n, (weight, bias) in enumerate(self.layers):
            x = linear(x.relu() if n and self.relu else x, weight, bias)
        return x[:, 0]

    def width(self) -> int:
        """How many numbers the head is given."""
        import torch

        blank = torch.zeros(1, 3, 32, 32)
        with torch.no_grad():
            return (self.map_mean(blank, self.features) if self.features else self.embed(blank)).shape[1]
