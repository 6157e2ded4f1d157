"""A linear reward: the sum of the sample's values, with a factor for each channel.

The reward whose tilt is known on paper in every exact world. It reads no prompt and carries no weights, so no licence
of its own. Values: any number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Linear:
    """`direction` is one number for all, or a list of one number a channel (a coordinate, in an exact world)."""

    direction: float | list[float] = 1.0
    differentiable: ClassVar[bool] = True

    def mistakes(self) -> list[str]:
        """What is wrong with these options, a sentence each."""
        numbers = self.direction if isinstance(self.direction, list) else [self.direction]
        if not numbers:
            return ["direction: the list is empty; give one number, or one number a channel"]
        if not all(math.isfinite(number) for number in numbers):
            return ["direction: every number must be finite; write the factor of each channel"]
        if not any(numbers):
            return ["direction: every number is 0, so all samples score the same; give one another factor"]
        return []

    def open(self, device: str | torch.device = "cpu") -> _Along:
        return _Along(self.direction)


class _Along:
    """The opened reward; it follows the device and the precision of its samples."""

    differentiable: bool = True

    def __init__(self, direction: float | list[float]) -> None:
        self.direction = direction

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        import torch

        x = images if images.dtype == torch.float64 else images.float()
        direction = torch.as_tensor(self.direction, dtype=x.dtype, device=x.device)
        if direction.ndim and len(direction) != x.shape[1]:
            raise ValueError(
                f"direction: {len(direction)} numbers, but the samples have {x.shape[1]} channels; "
                "give one number, or one number a channel"
            )
        return (x * direction.reshape(1, -1, *(1,) * (x.ndim - 2))).flatten(1).sum(1)
