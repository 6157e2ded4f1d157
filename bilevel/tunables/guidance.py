"""The guidance weight, or another option of the guidance rule, as a scalar, one value per step, or K knots.

    phi = low + (high - low) sigmoid(u)

so that phi stays inside (low, high) whatever the optimiser does (`_spread` has the link and the shapes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from genbo.bilevel.tunables._spread import EDGE, NUDGED, Knots, OverSteps

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.process import Process

__all__ = ["EDGE", "NUDGED", "Guidance", "Knots"]


@dataclass(frozen=True)
class Guidance(OverSteps):
    """`start` is a number, or a list of one number a step (per_step) or a knot (knots)."""

    option: str = "weight"

    @property
    def name(self) -> str:
        return "guidance" if self.option == "weight" else f"guidance.{self.option}"

    @property
    def rule_option(self) -> str:
        return self.option

    def embed(self, process: Process, phi: Tensor) -> Process:
        return process.with_option(self.option, self.over_steps(phi, process.steps))
