"""Guidance in an interval of the sampling (Kynkäänniemi et al. 2404.07724); the weight is 1 outside.

`start` and `stop` are fractions of the steps, 0 at pure noise and 1 at the sample. A step of which only a part lies
inside gets that part of the guidance, so that both ends can be tuned by gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Interval as Between

from genbo.diffusion.numbers import N, clamped, greatest, least
from genbo.diffusion.traits import GuidanceTraits

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.prediction import Prediction


@dataclass(frozen=True)
class Interval:
    """`weight` holds from `start` to `stop`, shares of the steps in [0, 1]; outside the weight is 1."""

    traits: ClassVar[GuidanceTraits] = GuidanceTraits(switches=("start", "stop"))

    weight: float | list[float] = 5.0
    start: Annotated[float, Between(ge=0, le=1)] = 0.2
    stop: Annotated[float, Between(ge=0, le=1)] = 0.8

    def effective_weight(self, options: Mapping[str, N], step: int, steps: int) -> N:
        """`weight` in the share of this step that lies inside the interval, and 1 in the rest of it."""
        ends = least(options["stop"], (step + 1) / steps)
        begins = greatest(options["start"], step / steps)
        return 1 + (options["weight"] - 1) * clamped((ends - begins) * steps, 0, 1)

    def combine(
        self,
        cond: Tensor,
        uncond: Tensor,
        options: Mapping[str, Tensor],
        predict: Prediction,
        state: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The same as plain guidance, at the weight in effect: (B, *shape)."""
        return uncond.lerp(cond, options["weight"]), state
