"""A quadratic reward: -scale * the sum of (x - target)^2 over the sample's values.

Its optimum and every gradient are known on paper: the reward of the exact worlds and of the tests. It reads
no prompt and carries no weights, so no licence of its own. Values: (-inf, 0], and 0 on the target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Gt

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Quadratic:
    """`target` is one number for all, or a list of one number a channel (a coordinate, in an exact world)."""

    target: float | list[float] = 0.0
    scale: Annotated[float, Gt(0)] = 1.0
    differentiable: ClassVar[bool] = True

    def mistakes(self) -> list[str]:
        """What is wrong with these options, a sentence each."""
        numbers = self.target if isinstance(self.target, list) else [self.target]
        found = []
        if not numbers:
            found.append("target: the list is empty; give one number, or one number a channel")
        if not all(math.isfinite(number) for number in numbers):
            found.append("target: every number must be finite; write the value that the samples should reach")
        return found

    def open(self, device: str | torch.device = "cpu") -> _Distance:
        return _Distance(self.target, self.scale)


class _Distance:
    """The opened reward; it follows the device and the precision of its samples."""

    differentiable: bool = True

    def __init__(self, target: float | list[float], scale: float) -> None:
        self.target, self.scale = target, scale

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        import torch

        x = images if images.dtype == torch.float64 else images.float()
        target = torch.as_tensor(self.target, dtype=x.dtype, device=x.device)
        if target.ndim and len(target) != x.shape[1]:
            raise ValueError(
                f"target: {len(target)} numbers, but the samples have {x.shape[1]} channels; "
                "give one number, or one number a channel"
            )
        away = x - target.reshape(1, -1, *(1,) * (x.ndim - 2))
        return -self.scale * away.square().flatten(1).sum(1)
