"""Adaptive projected guidance (Sadat et al. 2410.02416, Alg. 1), applied to predictions of x_0.

The difference d = x_0(cond) - x_0(uncond), with a running average (`momentum`, usually negative) and its norm held
under `norm_threshold` (0: no limit), is split into a part along x_0(cond), which mostly adds saturation, and a part
across it; the first is scaled by `eta`:

    x_0 = x_0(cond) + (weight - 1) (d_across + eta d_along)

With momentum 0, norm_threshold 0 and eta 1 this is plain guidance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Ge, Interval

from genbo.diffusion.numbers import N
from genbo.diffusion.traits import GuidanceTraits

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.prediction import Prediction


@dataclass(frozen=True)
class Apg:
    """`weight` as in plain guidance; `eta` scales what lies along x_0(cond).

    `norm_threshold` >= 0 limits the length of the difference (0: no limit), `momentum` in (-1, 1) is that of its
    running average.
    """

    traits: ClassVar[GuidanceTraits] = GuidanceTraits(keeps_state=True)

    weight: float | list[float] = 5.0
    eta: float = 0.0
    norm_threshold: Annotated[float, Ge(0)] = 15.0
    momentum: Annotated[float, Interval(gt=-1, lt=1)] = -0.5

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
        """Algorithm 1, (B, *shape); the state is the running average of the differences, (B, *shape)."""
        x_cond = predict.x_0(cond)
        now = x_cond - predict.x_0(uncond)
        average = now if state is None else now + options["momentum"] * state
        axes = tuple(range(1, cond.ndim))
        norm = average.square().sum(axes, keepdim=True).clamp(min=1e-24).sqrt()
        threshold = options["norm_threshold"]
        shrink = (threshold / norm).clamp(max=1)
        difference = average * shrink.where(threshold > 0, shrink.new_ones(()))
        along_x = (difference * x_cond).sum(axes, keepdim=True) / x_cond.square().sum(axes, keepdim=True)
        along = along_x * x_cond
        guided = x_cond + (options["weight"] - 1) * (difference - along + options["eta"] * along)
        # a row without its unconditional half (weight 1) leaves the average as it is, as a step without any does
        left_out = now.detach().abs().amax(axes, keepdim=True) == 0
        return predict.output(guided), average if state is None else state.where(left_out, average)
