"""Images in memory, with their labels, and in three shares: to train on, to steer by, and for the report alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genbo.diffusion.seed import Seed

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
LEAST = 2  # images: fewer have no spread
MOST_BYTES = 2**31  # of decoded images: an idx file's claim, or a whole folder

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Images:
    """N images in bytes, (N, C, H, W), and, where there are any, their labels (N,) as numbers of `classes`."""

    pixels: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def unit(self) -> Tensor:
        """In [0, 1], float32: what rewards and feature networks take."""
        return self.pixels.float() / 255

    def signed(self) -> Tensor:
        """In [-1, 1], float32: what diffusion models learn."""
        return self.unit() * 2 - 1

    def rows(self, numbers: Tensor | slice) -> Images:
        return Images(self.pixels[numbers], None if self.labels is None else self.labels[numbers], self.classes)

    def to(self, device: str | torch.device) -> Images:
        return Images(self.pixels.to(device), None if self.labels is None else self.labels.to(device), self.classes)

    def batches(self, size: int) -> Iterator[Images]:
        """All of them, in order."""
        for at in range(0, len(self), size):
            yield self.rows(slice(at, at + size))

    def draw(self, samples: int, seed: Seed) -> Images:
        """`samples` at random, none twice unless there are fewer; the same ones for the same seed, on any device."""
        import torch

        generator, picked = seed.generator(), []
        for _ in range(math.ceil(samples / len(self))):
            picked.append(torch.randperm(len(self), generator=generator))
        return self.rows(torch.cat(picked)[:samples].to(self.pixels.device))


@dataclass(frozen=True)
class Splits:
    """Images to train on, images to steer by, and images for the report alone."""

    train: Images
    validation: Images
    test: Images
