"""The quadratic target (Guo et al. 2404.14743): every sample's reward is drawn towards one value, from either side.

    maximise -strength (y - r)^2 / 2          pull = (y - r) / (1 / strength + v)

That is the score of y = r(x_0) + noise of variance 1 / strength, where r is linear near x_0 and x_0 given x_t has the
variance v along it. By Tweedie's formula v = sigma_t^2 / alpha_t g . (d x_0 / d x_t) g with g = dr / dx_0, which one
backward pass gives beside the pull. So for a Gaussian p0 and a linear r every prediction is the one that belongs to
p0 exp(-strength (y - r)^2 / 2). `variance: false` is the form with a constant weight, pull = strength (y - r).

Linearised passes, as the algorithm has them: samples are drawn without steering; r is replaced by its tangent at each
sample, r(x) + g . (x_0 - x); the samples are drawn again from the same noise, steered by that; and so on. A pass needs
decoder and reward once a sample, and not at every step. The tangent is taken in the sample itself, before it is
decoded, and is each sample's own, so no sample knows its neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Target:
    """`value` is y, in the reward's own units. With `passes` > 0 the reward is linearised, anew in each of them.

    `most` is the longest move of a step, where the noise in x_t is 1; null, as theory has it, suits the exact worlds.
    """

    value: float
    passes: Annotated[int, Ge(0), Le(100)] = 0
    variance: bool = True
    most: Annotated[float, Gt(0)] | None = 0.3
    example: ClassVar[dict[str, Any]] = {"value": 1.0}

    def mistakes(self) -> list[str]:
        return [] if math.isfinite(self.value) else ["value: must be a finite number; give the reward to reach"]

    def pull(self, reward: Tensor, variance: Tensor, strength: Tensor) -> Tensor:
        """strength (value - reward) / (1 + strength variance), (B,); without `variance`, that is 0."""
        away = strength * (self.value - reward)
        return away / (1 + strength * variance.clamp(min=0)) if self.variance else away
