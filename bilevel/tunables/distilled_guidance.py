"""The distilled guidance of FLUX.1 dev, an input of the network, as a scalar, one value per step, or K knots.

True guidance combines two predictions and doubles the cost of a step; a distilled network gives in one call what it
learned that the combination would give. The link and the shapes are those of `guidance`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from genbo.bilevel.tunables._spread import OverSteps

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.process import Process

TOLD_AS = "guidance"


@dataclass(frozen=True)
class DistilledGuidance(OverSteps):
    """`start` is a number, or a list of one number a step (per_step) or a knot (knots)."""

    start: float | list[float] = 3.5
    bounds: tuple[float, float] = (1.0, 10.0)

    @property
    def name(self) -> str:
        return "distilled_guidance"

    def embed(self, process: Process, phi: Tensor) -> Process:
        return process.with_told(TOLD_AS, self.over_steps(phi, process.steps))
