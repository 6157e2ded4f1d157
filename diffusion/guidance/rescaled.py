"""Rescaled guidance (Lin et al. 2305.08891, eq. 15-16): the result gets the standard deviation of cond again.

guided = uncond + weight (cond - uncond),    out = rescale guided sd(cond) / sd(guided) + (1 - rescale) guided
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Interval

from genbo.diffusion.numbers import N
from genbo.diffusion.traits import GuidanceTraits

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.prediction import Prediction


@dataclass(frozen=True)
class Rescaled:
    """`weight` as in plain guidance; `rescale` in [0, 1] is the share of the rescaled result: 0 is plain guidance.

    Lin et al. take 0.7 with a weight of 7.5.
    """

    traits: ClassVar[GuidanceTraits] = GuidanceTraits(in_diffusers=True)

    weight: float | list[float] = 5.0
    rescale: Annotated[float, Interval(ge=0, le=1)] = 0.7

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
        """Eq. 15 and 16, (B, *shape); standard deviations are over all numbers of a sample."""
        guided = uncond + options["weight"] * (cond - uncond)
        axes = tuple(range(1, cond.ndim))
        matched = guided * (cond.std(axes, keepdim=True) / guided.std(axes, keepdim=True))
        return options["rescale"] * matched + (1 - options["rescale"]) * guided, state
