"""The strength lambda of the KL regularization towards the pretrained model.

    log lambda = log low + (log high - log low) sigmoid(u)

so that lambda stays inside its bounds, and a step of u is a factor of lambda. It has no place in the sampler: lambda
acts through the law that the lower level ends in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt

from genbo.bilevel.tunables._defaults import TunableDefaults
from genbo.schedules.link import Bounded

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.process import Process

EDGE = 1e-4  # of the range of log lambda: a start on a bound begins this far inside, where the link still moves


@dataclass(frozen=True)
class Regularization(TunableDefaults):
    """`start` is the lambda to compare with; the search looks over all of `bounds`."""

    start: Annotated[float, Gt(0)] = 1.0
    bounds: tuple[float, float] = (0.01, 100.0)

    @property
    def name(self) -> str:
        return "regularization"

    def mistakes(self, steps: int) -> list[str]:
        """What is wrong with these options, a sentence each."""
        low, high = self.bounds
        if not low > 0:
            return [f"bounds: lambda must be greater than 0, and the lower bound is {low:g}; 0.01 is usual"]
        if not low < high < math.inf:
            return [f"bounds: the lower bound {low:g} must be less than the upper bound {high:g}, and both finite"]
        if not low <= self.start <= high:
            return [f"start: {self.start:g} is outside the bounds [{low:g}, {high:g}]; move it or widen them"]
        return []

    def size(self, steps: int) -> int:
        return 1

    def numbers(self, steps: int) -> list[float]:
        return [self.start]

    def bounds_of(self, steps: int) -> list[tuple[float, float] | None]:
        return [self.bounds]

    @property
    def _link(self) -> Bounded:
        return Bounded(*self.bounds, log=True, edge=EDGE)

    def coordinates(self, phi: Tensor) -> Tensor:
        return self._link.coordinates(phi)

    def value(self, u: Tensor) -> Tensor:
        return self._link.value(u)

    def embed(self, process: Process, phi: Tensor) -> Process:
        """The process as it is."""
        return process

    def spoken(self, phi: Tensor) -> float:
        return float(phi[0])
