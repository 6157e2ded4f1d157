"""Networks that turn images into features, for the distances between sets of images.

| `features`                  | what it is                                                    | `weights`             |
|-----------------------------|---------------------------------------------------------------|-----------------------|
| `pixels`                    | the numbers themselves                                        |                       |
| `inception`                 | InceptionV3 of 2015, behind published FID and KID values      | a file, or `download` |
| `timm:<architecture>`       | any network of timm's                                         | a file, or `download` |
| `clip:<architecture>`       | the image tower of any open_clip model, features of length 1  | a tag of open_clip's  |
| a bundled name, or a folder | a small classifier, or what timm or open_clip saved           |                       |

Files are safetensors; nothing is fetched unless `download`, a tag or `hf-hub:` asks for it. Every tensor must be there,
of the right shape and finite. Gradients reach the images.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genbo.rewards import Refused, bundled
from genbo.rewards._json import strict_mapping_in
from genbo.rewards._prepare import prepare, resize
from genbo.rewards._tower import CONFIG as CLIP_CONFIG
from genbo.rewards._tower import ImageTower, Tower
from genbo.rewards._weights import differences, file_mistake, read, shapes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genbo.rewards._convolutions import TwoConvolutions
    from genbo.rewards._inception import Inception

CONFIG, WEIGHTS = "config.json", "model.safetensors"
DOWNLOAD = "download"
SMALL = "two_convolutions"
MOST_CONFIG_BYTES = 1_000_000
ARCHITECTURE = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?")  # a name of timm's, and no address that it would fetch from


@dataclass(frozen=True)
class Extractor:
    """An opened network. `identity` names it and its weights, so that what it said of a data set can be kept."""

    identity: str
    network: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, D), each row by itself."""
        return self.network(images)


# -- what is wrong, without a heavy import ------------------------------------------------------------------


def mistakes(features: str, weights: str = "") -> list[str]:
    """What is wrong with the two options, a sentence each; looks at files and loads none."""
    kind, _, name = features.partition(":")
    if not features:
        return ["features: it is empty; write pixels, inception, a bundled name or a folder"]
    if features == "pixels":
        return _needless(features, weights)
    if features == "inception":
        return _file_mistakes("inception", weights)
    if kind in ("timm", "clip") and not name:
        return [f"features: {features} names no architecture; write {kind}:<name>"]
    if kind == "timm":
        return _file_mistakes(features, weights)
    if kind == "clip" and Path(weights).is_file():
        return [f"weights: {weights} does not say how it wants its images; put it into a folder with its {CLIP_CONFIG}"]
    if is_clip(features):
        extra = [] if kind == "clip" else _needless(features, weights)
        return extra + _renamed(_clip(features, weights).mistakes())
    return _needless(features, weights) + folder_mistakes(features)


def is_clip(features: str) -> bool:
    """Whether open_clip is to make the network."""
    kind = features.partition(":")[0]
    return kind in ("clip", "hf-hub", "local-dir") or (folder_of(features) / CLIP_CONFIG).is_file()


def folder_of(features: str) -> Path:
    """Where a bundled name or a folder lies."""
    own = bundled.HERE / features
    return own if features in bundled_names() else Path(features).expanduser()


def bundled_names() -> list[str]:
    """The feature networks that ship with genbo."""
    return sorted([*bundled.names(), *(file.parent.name for file in bundled.HERE.glob(f"*/{WEIGHTS}"))])


def folder_mistakes(features: str) -> list[str]:
    """Of a folder with a small classifier, or one that timm has saved."""
    folder = folder_of(features)
    if not folder.is_dir():
        known = ", ".join(["pixels", "inception", "timm:<name>", "clip:<name>", *bundled_names()])
        return [f"features: {features!r} is no folder, and none of {known}; correct it"]
    if not (folder / CONFIG).is_file():
        return [f"features: {folder} has no {CONFIG} and no {CLIP_CONFIG}; name a folder that holds a network"]
    found = []
    if wrong := _config_mistake(folder / CONFIG):
        found.append(wrong)
    if not (folder / WEIGHTS).is_file():
        found.append(f"features: {folder / WEIGHTS} is missing; put the weights there, as safetensors")
    return found


def _config_mistake(file: Path) -> str | None:
    try:
        config = read_config(file)
    except ValueError as error:
        return f"features: {file} cannot be read ({error}); write it again"
    if config.get("kind") == SMALL:
        wrong = [name for name, fits in SMALL_CONFIG.items() if not fits(config.get(name))]
        return f"features: {file} has no valid {wrong[0]}; write the network again" if wrong else None
    if ARCHITECTURE.fullmatch(str(config.get("architecture"))):
        return None
    return f"features: {file} names neither kind: {SMALL} nor an architecture of timm's; correct it"


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 4096


def _numbers(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)


SMALL_CONFIG: dict[str, Callable[[Any], bool]] = {
    "channels": _count,
    "size": _count,
    "features": _count,
    "width": _count,
    "strides": lambda value: isinstance(value, list) and len(value) == 2 and all(map(_count, value)),
    "classes": lambda value: isinstance(value, list) and 1 <= len(value) <= 4096,
    "mean": _numbers,
    "std": lambda value: _numbers(value) and all(v > 0 for v in value),
}


def read_config(file: Path) -> dict[str, Any]:
    """A config.json, of a size that a config has, its numbers finite; ValueError says what is wrong."""
    return strict_mapping_in(file, MOST_CONFIG_BYTES)


def _needless(features: str, weights: str) -> list[str]:
    return [f"weights: {features} needs none; leave it out"] if weights else []


def _file_mistakes(features: str, weights: str) -> list[str]:
    if not weights:
        return [f"weights: {features} needs a safetensors file, or `{DOWNLOAD}` to let it be fetched"]
    wrong = None if weights == DOWNLOAD else file_mistake(Path(weights).expanduser())
    return _renamed([wrong]) if wrong else []


def _clip(features: str, weights: str) -> Tower:
    kind, _, name = features.partition(":")
    if kind != "clip":
        return Tower(features, option="features")
    return Tower(weights, model=name)


def _renamed(sentences: list[str]) -> list[str]:
    """Sentences about the options of a single network, as sentences about these two."""
    names = {"pretrained": "weights", "model": "features", "preprocess": "weights"}
    parts = [sentence.partition(":") for sentence in sentences]
    return [f"{names.get(name, name)}:{said}" for name, _, said in parts]


# -- opening ------------------------------------------------------------------------------------------------


def open_extractor(features: str, weights: str = "", device: str | torch.device = "cpu") -> Extractor:
    """The network on its device, in evaluation mode. Raises `Refused` with a sentence for whatever is wrong."""
    if wrong := mistakes(features, weights):
        raise Refused("; ".join(wrong))
    kind = features.partition(":")[0]
    if features == "pixels":
        return Extractor("pixels", _pixels)
    if features == "inception":
        return _inception(weights, device)
    if kind == "timm":
        return _timm(features.partition(":")[2], weights, None, device)
    if is_clip(features):
        return _clip_tower(features, weights, device)
    folder = folder_of(features)
    config = read_config(folder / CONFIG)
    if config.get("kind") == SMALL:
        return _small(folder, config, device)
    return _timm(config["architecture"], str(folder / WEIGHTS), config, device)


def _pixels(images: Tensor) -> Tensor:
    return images.flatten(1)


def _small(folder: Path, config: Mapping[str, object], device: str | torch.device) -> Extractor:
    network, prepared = small_network(folder, config, device)
    identity = f"{SMALL} {_hash(folder / WEIGHTS)} {_hash(folder / CONFIG)}"
    return Extractor(identity, lambda images: network.features(prepared(images)))


def small_network(
    folder: Path, config: Mapping[str, Any], device: str | torch.device
) -> tuple[TwoConvolutions, Callable[[Tensor], Tensor]]:
    """A small classifier, and what brings images (B, C, H, W) in [0, 1] to the size and the channels it takes."""
    from genbo.rewards._convolutions import TwoConvolutions

    sizes = {name: config[name] for name in ("channels", "size", "mean", "std", "strides", "features", "width")}
    network: TwoConvolutions = _filled(TwoConvolutions(classes=len(config["classes"]), **sizes), folder / WEIGHTS).to(
        device
    )

    def prepared(images: Tensor) -> Tensor:
        x = with_channels(images.to(device).float(), config["channels"])
        return resize(x, (config["size"],) * 2, "bicubic")

    return network, prepared


def _inception(weights: str, device: str | torch.device) -> Extractor:
    from genbo.rewards._inception import URL

    network = inception_network(weights, device)
    identity = URL if weights == DOWNLOAD else _hash(Path(weights).expanduser())
    return Extractor(f"inception {identity}", lambda images: network(with_channels(images.to(device).float(), 3)))


def inception_network(weights: str, device: str | torch.device) -> Inception:
    """InceptionV3 of 2015 with the weights of a file, or of its publisher with `download`."""
    from genbo.rewards._inception import URL, Inception

    network = Inception()
    if weights == DOWNLOAD:
        network.network.load_state_dict(_fetched(URL))
    else:
        _filled(network.network, Path(weights).expanduser())
    return network.to(device).eval().requires_grad_(False)


def _timm(name: str, weights: str, config: Mapping[str, Any] | None, device: str | torch.device) -> Extractor:
    """`config` is that of a folder, which may prepare images in its own way and have its own classes."""
    import timm

    own = dict((config or {}).get("pretrained_cfg") or {})
    classes = {"num_classes": config["num_classes"]} if config and _count(config.get("num_classes")) else {}
    try:
        network: Any = timm.create_model(name, pretrained=weights == DOWNLOAD, **classes)
    except Exception as error:  # timm raises whatever the hub or the name gives it
        reason = str(error).strip().partition("\n")[0]
        raise Refused(f"features: timm cannot make {name} ({reason}); correct the name, or give weights") from error
    if weights == DOWNLOAD:
        network.eval().requires_grad_(False)
        identity = f"{name} {_hash_of(network.state_dict())}"
    else:
        _filled(network, Path(weights).expanduser())
        identity = f"{name} {_hash(Path(weights).expanduser())} {json.dumps(own, sort_keys=True, default=str)}"
    network.to(device)
    return Extractor(f"timm {identity}", _timm_features(network, own, device))


def _timm_features(network: Any, own: dict[str, Any], device: str | torch.device) -> Callable[[Tensor], Tensor]:
    from timm.data.config import resolve_data_config

    said: dict[str, Any] = resolve_data_config(  # type: ignore[no-untyped-call]
        pretrained_cfg={**network.pretrained_cfg, **own}, model=network
    )
    channels, height, width = said["input_size"]
    way = {"size": (height, width), "mean": said["mean"], "std": said["std"], "resize_mode": "squash"}
    kernel = "bilinear" if said["interpolation"] == "bilinear" else "bicubic"

    def forward(images: Tensor) -> Tensor:
        x = prepare(with_channels(images.to(device).float(), channels), interpolation=kernel, **way)
        found: Tensor = network.forward_head(network.forward_features(x), pre_logits=True)
        return found.flatten(1)

    return forward


def _clip_tower(features: str, weights: str, device: str | torch.device) -> Extractor:
    try:
        tower = ImageTower(_clip(features, weights).load(), device)
    except Refused as error:
        raise Refused("; ".join(_renamed([str(error)]))) from error
    prepared = json.dumps(tower.preprocess, default=str, sort_keys=True)
    identity = f"clip {_hash_of(tower.network.visual.state_dict())} {prepared}"
    return Extractor(identity, lambda images: tower.embed(with_channels(images, 3)))


# -- images and weights -------------------------------------------------------------------------------------


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Grey to colour by repetition, colour to grey by its luminance (ITU-R 601, as Pillow does it)."""
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1)
    if images.shape[1] == 3 and channels == 1:
        return (images * images.new_tensor([0.299, 0.587, 0.114]).reshape(-1, 1, 1)).sum(1, keepdim=True)
    raise Refused(f"features: the images have {images.shape[1]} channels, but the network takes {channels}")


def _filled(network: Any, file: Path) -> Any:
    """The network with the weights of a safetensors file, in evaluation mode, without gradients of its own."""
    wanted = _without_counts({name: tuple(value.shape) for name, value in network.state_dict().items()})
    try:
        if wrong := differences(file, _without_counts(shapes(file)), wanted, "this network"):
            raise Refused("; ".join(_renamed(wrong)))
        network.load_state_dict(read(file, wanted), strict=False)
    except Refused as error:
        raise Refused("; ".join(_renamed([str(error)]))) from error
    return network.eval().requires_grad_(False)


def _without_counts(shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Without the counts of batches seen, which inference never reads and not every file keeps."""
    return {name: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}


def _fetched(url: str) -> dict[str, Tensor]:
    """Weights that their publisher only pickled: the hash is checked, and torch's restricted reader runs no code."""
    from torch.hub import load_state_dict_from_url

    try:
        tensors: dict[str, Tensor] = load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise Refused(f"weights: {url} could not be fetched ({error}); give a safetensors file instead") from error
    return tensors


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _hash_of(tensors: Mapping[str, Tensor]) -> str:
    from safetensors.torch import save

    whole = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    return hashlib.blake2b(whole, digest_size=16).hexdigest()
