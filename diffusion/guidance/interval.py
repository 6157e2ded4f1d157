"""Guidance in an interval of the sampling (Kynkäänniemi et al. 2404.07724); the weight is 1 outside.

`start` and `stop` are fractions of the steps, 0 at pure noise and 1 at the sample. A step of which only a part lies
inside gets that part of the guidance, so that both ends can be tuned by gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Interval as Between

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.process import Prediction


@dataclass(frozen=True)
class Interval:
    weight: float | list[float] = 5.0
    start: Annotated[float, Between(ge=0, le=1)] = 0.2
    stop: Annotated[float, Between(ge=0, le=1)] = 0.8

    def effective_weight(self, options: Mapping[str, Tensor]) -> Tensor:
        import torch

        weight, start, stop = torch.broadcast_tensors(options["weight"], options["start"], options["stop"])
        steps = weight.shape[1]
        left = torch.arange(steps, dtype=weight.dtype) / steps
        inside = torch.minimum(stop, left + 1 / steps) - torch.maximum(start, left)
        effective: Tensor = 1 + (weight - 1) * (inside.clamp(min=0) * steps).clamp(max=1)
        return effective

    def effective_at(self, step: int, steps: int, options: Mapping[str, float]) -> float:
        """`effective_weight` at one step without torch, for the plan."""
        inside = min(options["stop"], (step + 1) / steps) - max(options["start"], step / steps)
        return 1 + (options["weight"] - 1) * min(max(inside * steps, 0.0), 1.0)

    def combine(
        self,
        cond: Tensor,
        uncond: Tensor,
        options: Mapping[str, Tensor],
        predict: Prediction,
        state: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        return uncond.lerp(cond, options["weight"]), state
