"""Classifier-free guidance (Ho & Salimans 2207.12598): uncond + weight (cond - uncond).

Weight 1 is the conditional model itself, 0 the unconditional one. (diffusers switches guidance off at any weight <= 1.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.process import Prediction


@dataclass(frozen=True)
class Plain:
    weight: float | list[float] = 5.0

    def effective_weight(self, options: Mapping[str, Tensor]) -> Tensor:
        return options["weight"]

    def combine(
        self,
        cond: Tensor,
        uncond: Tensor,
        options: Mapping[str, Tensor],
        predict: Prediction,
        state: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        return uncond.lerp(cond, options["weight"]), state
