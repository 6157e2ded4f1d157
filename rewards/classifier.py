"""Probability or log-probability of a class, from any timm classifier.

    r(x) = log p(label | prepare(x)),      or the probability itself

It reads no prompt. Values: (-inf, 0] of `log_probability`, whose gradient does not die where the class is far, and
[0, 1] of `probability`. The weights are the user's own, under their publisher's licence (timm's code is under
Apache-2.0; many of its weights learned from ImageNet, whose terms hold for them); genbo fetches none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from genbo.rewards import Refused
from genbo.rewards._extractors import ARCHITECTURE, CONFIG, WEIGHTS, read_config, with_channels
from genbo.rewards._prepare import centre, normalise, resize, resized
from genbo.rewards._weights import PICKLED, Shape, file_mistake, filled, shapes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

OWN_SHAPE = ("img_size", "global_pool")  # of a folder's `model_args`, what changes the network and nothing else


@dataclass(frozen=True)
class Classifier:
    """`pretrained` is a folder that timm saved, or beside `model`, a name of timm's, a safetensors file.

    `label` is the class: its number, or its name as the folder or ImageNet has it ("tabby", or "n02123045").
    """

    pretrained: str
    label: int | str
    model: str = ""
    score: Literal["log_probability", "probability"] = "log_probability"
    differentiable: ClassVar[bool] = True

    def mistakes(self) -> list[str]:
        """What is wrong with these options, a sentence each; reads configs and headers and loads nothing."""
        if not self.pretrained:
            return ["pretrained: it is empty; give a folder that timm saved, or model and a safetensors file"]
        found = self._model_mistakes() if self.model else self._folder_mistakes()
        if isinstance(self.label, int) and self.label < 0:
            found.append(f"label: {self.label} is no class; they are counted from 0")
        return found

    def open(self, device: str | torch.device = "cpu") -> _Belief:
        """Load the weights. Raises `Refused` with a sentence for whatever is wrong with them."""
        if wrong := self.mistakes():
            raise Refused("; ".join(wrong))
        said = {} if self.model else read_config(self.place / CONFIG)
        network = _network(self.model or said["architecture"], said, self.weights_file)
        number = _number(self.label, names_of(said, network), network.num_classes)
        return _Belief(network, _preparation(network, said), number, self.score == "probability", self, device)

    @property
    def place(self) -> Path:
        return Path(self.pretrained).expanduser()

    @property
    def weights_file(self) -> Path:
        return self.place if self.model else self.place / WEIGHTS

    @property
    def folder(self) -> Path | None:
        """Where the weights lie, when `pretrained` is a folder."""
        return None if self.model else self.place

    def _model_mistakes(self) -> list[str]:
        if not ARCHITECTURE.fullmatch(self.model):
            return [f"model: {self.model!r} is no name of timm's; write one like resnet50"]
        if self.place.is_dir():
            return [f"model: {self.place} is a folder, whose config names the architecture; leave model out"]
        wrong = file_mistake(self.place)
        return [wrong] if wrong else []

    def _folder_mistakes(self) -> list[str]:
        if not self.place.is_dir():
            what = "a file, which does not name its network; set model as well" if self.place.is_file() else "no folder"
            return [f"pretrained: {self.place} is {what}" + ("" if self.place.is_file() else "; correct the path")]
        try:
            said = read_config(self.place / CONFIG)
        except (OSError, ValueError) as error:
            return [f"pretrained: {self.place / CONFIG} cannot be read ({error}); give a folder that timm saved"]
        found = []
        if not ARCHITECTURE.fullmatch(str(said.get("architecture"))):
            found.append(f"pretrained: {self.place / CONFIG} names no architecture of timm's; correct it")
        if not self.weights_file.is_file():
            pickled = sorted(path.name for path in self.place.iterdir() if path.suffix in PICKLED)
            put = f"convert {pickled[0]}, which is pickled and can run code" if pickled else "put the weights there"
            found.append(f"pretrained: {self.weights_file} is missing; {put}")
        return found


class _Belief:
    """The opened reward, in float32."""

    differentiable: bool = True

    def __init__(
        self,
        network: Any,
        preparation: dict[str, Any],
        number: int,
        probability: bool,
        options: Classifier,
        device: str | torch.device,
    ) -> None:
        self.network, self.preparation, self.number = network.to(device), preparation, number
        self.probability, self.device = probability, device
        self.file, self.folder = options.weights_file, options.folder

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        score: Tensor = self.network(self.prepare(images)).log_softmax(-1)[:, self.number]
        return score.exp() if self.probability else score

    def prepare(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> what the network takes: timm's own transform for evaluation."""
        way = self.preparation
        x = with_channels(images.to(self.device).float(), way["channels"])
        (height, width), (tall, wide) = way["size"], way["scaled"]
        x = resize(x, resized(x.shape[-2], x.shape[-1], tall, wide, way["resize_mode"]), way["interpolation"])
        return normalise(centre(x, height, width), way["mean"], way["std"])


def _network(name: str, said: Mapping[str, Any], file: Path) -> Any:
    """timm's network with the weights of the file."""
    import timm
    import torch

    own = {key: value for key, value in (said.get("model_args") or {}).items() if key in OWN_SHAPE}
    try:
        with torch.random.fork_rng(devices=[]):  # it is born with random weights, which are nobody's business
            network: Any = timm.create_model(name, pretrained=False, num_classes=_classes(name, said, file), **own)
    except Refused:
        raise
    except Exception as error:  # timm raises whatever the name or an option gives it
        near = get_close_matches(name.partition(".")[0], timm.list_models(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "correct the name"
        reason = " ".join(str(error).split())[:200]
        raise Refused(f"model: timm cannot make {name} ({reason}); {hint}") from error
    network = filled(network, file, f"timm's {name}")
    if not network.num_classes:
        raise Refused(f"model: {name} has no classes, so it can believe in none; take a classifier")
    return network


def _classes(name: str, said: Mapping[str, Any], file: Path) -> int | None:
    """How many classes the weights are for, by the last layer in the file; None where timm's own number must do."""
    from timm.models import get_pretrained_cfg

    if isinstance(said.get("num_classes"), int):
        return int(said["num_classes"])
    known = get_pretrained_cfg(name)
    last = getattr(known, "classifier", None)
    shape: Shape = shapes(file).get(f"{last}.weight", ()) if isinstance(last, str) else ()
    return shape[0] if shape else None


def _preparation(network: Any, said: Mapping[str, Any]) -> dict[str, Any]:
    """What timm's `create_transform` would do for evaluation, as numbers."""
    from timm.data.config import resolve_data_config

    own = dict(said.get("pretrained_cfg") or {})
    way: dict[str, Any] = resolve_data_config(  # type: ignore[no-untyped-call]
        pretrained_cfg={**network.pretrained_cfg, **own}, model=network
    )
    channels, height, width = way["input_size"]
    scaled = tuple(math.floor(side / way["crop_pct"]) for side in (height, width))
    squashed = way["crop_mode"] == "squash"
    if way["crop_mode"] not in ("center", "squash") or (height != width and not squashed):
        raise Refused(
            f"pretrained: images of {height} x {width} prepared by crop_mode {way['crop_mode']} are not supported; "
            "take a network whose crop_mode is center and whose images are square, or squash"
        )
    return {
        "channels": channels,
        "size": (height, width),
        "scaled": scaled,
        "mean": way["mean"],
        "std": way["std"],
        "resize_mode": "squash" if squashed else "shortest",
        "interpolation": "bilinear" if way["interpolation"] == "bilinear" else "bicubic",
    }


# -- the class ---------------------------------------------------------------------------------------------------------


def names_of(said: Mapping[str, Any], network: Any) -> list[tuple[str, ...]]:
    """The names of each class: the folder's own, or ImageNet's where the network has as many classes."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    own = said.get("label_names") or (said.get("pretrained_cfg") or {}).get("label_names")
    described = said.get("label_descriptions")
    if isinstance(own, list) and len(own) == network.num_classes:
        more = described if isinstance(described, dict) else {}
        return [(str(name), *_words(more.get(name, ""))) for name in own]
    subset = infer_imagenet_subset({"num_classes": network.num_classes})
    if subset is None:
        return []
    known: Any = ImageNetInfo(subset)
    lemmas = zip(known.label_names(), known.label_descriptions(), strict=True)
    return [(name, *_words(lemma)) for name, lemma in lemmas]


def _words(description: object) -> list[str]:
    """`tabby, tabby cat` as a whole and in parts."""
    text = str(description)
    return [text, *(part.strip() for part in text.split(","))]


def _number(label: int | str, names: Sequence[tuple[str, ...]], classes: int) -> int:
    """The number of a class. Raises `Refused` where there is none, or where a name is of several."""
    if isinstance(label, int):
        if label >= classes:
            raise Refused(f"label: there is no class {label}; the network has {classes}, counted from 0")
        return label
    wanted = label.strip().casefold()
    found = [n for n, own in enumerate(names) if wanted in (name.casefold() for name in own)]
    if len(found) == 1:
        return found[0]
    if found:
        numbers = ", ".join(map(str, found))
        raise Refused(f"label: {label!r} is the name of several classes ({numbers}); give the number of one")
    if not names:
        raise Refused(f"label: the classes of this network have no names; give a number from 0 to {classes - 1}")
    near = get_close_matches(wanted, [name for own in names for name in own], n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"give its number, from 0 to {classes - 1}"
    raise Refused(f"label: no class is called {label!r}; {hint}")
