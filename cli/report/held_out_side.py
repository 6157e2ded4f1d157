"""Held-out samples of one side, start or tuned, and which of them the report shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PICTURES = 12  # images kept of each side, the first of each prompt
POINTS = 400  # samples kept of a world without images


@dataclass(frozen=True)
class Side:
    """Scores (K, N) of every sample, what the report shows of them, and what it cost."""

    scores: Tensor
    shown: Tensor  # (n, C, H, W) bytes for images, (n, d) numbers in a world without
    cost: dict[str, int]
    elapsed_s: float


def shown_samples(prompts: Sequence[str], limit: int = PICTURES) -> list[int]:
    """The samples that are shown: the first of every prompt, then the second, ...; none by its looks."""
    turn: dict[str, int] = {}
    order = []
    for index, prompt in enumerate(prompts):
        turn[prompt] = turn.get(prompt, -1) + 1
        order.append((turn[prompt], index))
    return [index for _, index in sorted(order)[:limit]]


def is_picture(images: Tensor) -> bool:
    return images.ndim == 4 and images.shape[1] in (1, 3) and min(images.shape[2:]) > 1


def shown(images: Tensor, prompts: Sequence[str], at: int = 0) -> Tensor:
    """What the report shows of images that are samples `at`, `at` + 1, ... of these prompts."""
    import torch

    picture = is_picture(images)
    kept = shown_samples(prompts, PICTURES) if picture else range(POINTS)
    rows = [index - at for index in sorted(kept) if at <= index < at + len(images)]
    if picture:
        return (images[rows].clamp(0, 1) * 255).round().to(torch.uint8)
    return images[rows].flatten(1).float()
