"""A small classifier of small images, whose 64 features say more of such images than a large network's.

    image -> convolution, ReLU -> convolution, ReLU -> a weighted sum over each plane, ReLU: 64 features -> class scores

Its folder holds `config.json` and `model.safetensors`, and what made it stands in its README.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

KIND = "two_convolutions"


class TwoConvolutions(nn.Module):
    """(B, channels, size, size) in [0, 1] -> (B, classes)."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        channels: int,
        size: int,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        strides: Sequence[int] = (2, 2),
        features: int = 64,
        width: int = 32,
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 5, strides[0], padding=2)
        self.second = nn.Conv2d(width, features, 3, strides[1], padding=1)
        side = math.ceil(math.ceil(size / strides[0]) / strides[1])
        self.plane = nn.Conv2d(features, features, side, groups=features)
        self.head = nn.Linear(features, classes)
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """(B, features), none below 0."""
        x = self.first((images - self.mean) / self.std).relu()
        found: Tensor = self.plane(self.second(x).relu()).relu().flatten(1)
        return found

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits
