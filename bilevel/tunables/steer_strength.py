"""The strength of `model.steer`, written `steer.strength`, as a scalar, one value per step, or K knots.

How strongly samples climb the steering reward: 1 / lambda for the rule `tilt`. The link and the shapes are those of
`guidance`; its unit is one over the reward's, so give bounds that suit the reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from genbo.bilevel.tunables._spread import OverSteps

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.process import Process


@dataclass(frozen=True)
class SteerStrength(OverSteps):
    """`start` is a number, or a list of one number a step (per_step) or a knot (knots)."""

    start: float | list[float] = 1.0
    bounds: tuple[float, float] = (0.0, 10.0)

    @property
    def name(self) -> str:
        return "steer.strength"

    def of(self, process: Process) -> SteerStrength:
        if process.steer is None:
            raise ValueError("nothing is steered; add model.steer: {reward: ..., strength: 1.0}, or delete this")
        return self

    def embed(self, process: Process, phi: Tensor) -> Process:
        return process.with_strength(self.over_steps(phi, process.steps))
