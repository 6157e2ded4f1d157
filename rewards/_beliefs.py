"""Classifiers whose class probabilities are wanted: the networks of `_extractors.py` with their last layer.

| `features`                  | log p(y | x)                                                               |
|-----------------------------|----------------------------------------------------------------------------|
| `inception`                 | InceptionV3 of 2015, 1,008 classes, without the bias, as published          |
| `timm:<architecture>`       | any classifier of timm's                                                   |
| a bundled name, or a folder | a small classifier, or what timm saved                                     |
| a CLIP                      | of the `classes`, by its logit scale times the cosine of image and text    |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from genbo.rewards import Refused
from genbo.rewards._extractors import (
    CONFIG,
    DOWNLOAD,
    SMALL,
    Extractor,
    folder_of,
    inception_network,
    is_clip,
    read_config,
    small_network,
    with_channels,
)
from genbo.rewards._extractors import mistakes as network_mistakes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LEAST_CLASSES = 2


def mistakes(features: str, weights: str, classes: Sequence[str]) -> list[str]:
    """What is wrong with the options, a sentence each; looks at files and loads none."""
    if features == "pixels":
        return ["features: pixels have no classes; name a classifier, like inception or a bundled one"]
    if wrong := network_mistakes(features, weights):
        return wrong
    if is_clip(features):
        few = len(set(classes)) < LEAST_CLASSES
        return [f"classes: a CLIP needs at least {LEAST_CLASSES} texts to choose from; list them"] if few else []
    if classes:
        return [f"classes: {features} has classes of its own; leave them out"]
    if features.startswith("timm:") and weights == DOWNLOAD:
        return [f"weights: classes of {features} are not downloaded; give a safetensors file"]
    return []


def open_classifier(
    features: str, weights: str, classes: Sequence[str], device: str | torch.device = "cpu"
) -> Extractor:
    """(B, C, H, W) in [0, 1] -> log-probabilities (B, K). Raises `Refused` with a sentence for what is wrong."""
    if wrong := mistakes(features, weights, classes):
        raise Refused("; ".join(wrong))
    logits = _logits(features, weights, classes, device)
    return Extractor(f"classes of {features} {weights}", lambda images: logits(images).log_softmax(-1))


def _logits(
    features: str, weights: str, classes: Sequence[str], device: str | torch.device
) -> Callable[[Tensor], Tensor]:
    if features == "inception":
        inception = inception_network(weights, device)
        return lambda images: inception.logits(with_channels(images.to(device).float(), 3))
    if is_clip(features):
        return _clip(features, weights, classes, device)
    if features.startswith("timm:"):
        return _timm(str(Path(weights).expanduser()), features.partition(":")[2], device)
    folder = folder_of(features)
    config = read_config(folder / CONFIG)
    if config.get("kind") != SMALL:
        return _timm(str(folder), "", device)
    small, prepared = small_network(folder, config, device)
    return lambda images: small(prepared(images))


def _timm(pretrained: str, model: str, device: str | torch.device) -> Callable[[Tensor], Tensor]:
    from genbo.rewards.classifier import Classifier

    opened = Classifier(pretrained, label=0, model=model).open(device)

    def logits(images: Tensor) -> Tensor:
        found: Tensor = opened.network(opened.prepare(images))
        return found

    return logits


def _clip(
    features: str, weights: str, classes: Sequence[str], device: str | torch.device
) -> Callable[[Tensor], Tensor]:
    from genbo.rewards.clip import Clip

    kind, _, name = features.partition(":")
    opened = (Clip(weights, model=name) if kind == "clip" else Clip(features)).open(device)
    texts = opened.text(list(dict.fromkeys(classes)))
    scale: Tensor = opened.network.logit_scale.detach().exp().float()

    def logits(images: Tensor) -> Tensor:
        found: Tensor = scale * opened.embed(with_channels(images, 3)) @ texts.T
        return found

    return logits
