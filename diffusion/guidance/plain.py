"""Classifier-free guidance (Ho & Salimans 2207.12598): uncond + weight (cond - uncond).

Weight 1 is the conditional model itself, 0 the unconditional one. (diffusers switches guidance off at any weight <= 1.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from genbo.diffusion.numbers import N
from genbo.diffusion.traits import GuidanceTraits

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.prediction import Prediction


@dataclass(frozen=True)
class Plain:
    """`weight` is one number, or a list of one for each step."""

    traits: ClassVar[GuidanceTraits] = GuidanceTraits(in_diffusers=True)

    weight: float | list[float] = 5.0

    def effective_weight(self, options: Mapping[str, N], step: int, steps: int) -> N:
        """`weight` itself, at every step."""
        return options["weight"]

    def combine(
        self,
        cond: Tensor,
        uncond: Tensor,
        options: Mapping[str, Tensor],
        predict: Prediction,
        state: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """uncond + weight (cond - uncond), (B, *shape)."""
        return uncond.lerp(cond, options["weight"]), state
