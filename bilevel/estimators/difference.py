"""The derivative in lambda as a difference of two solves, for any distribution that the lower level produces.

    dF / dlog lambda  ~  (E[r1] at lambda e^h - E[r1] at lambda e^-h) / (2 h)

Its error falls as h^2, and its noise stays where it is as h falls, for solves that share their samples or their noise.
It is for lower solvers that end elsewhere than in the tilt, guided sampling first of all: the covariance and the value
gap are gradients of the tilted law alone. Where the lower level is the tilt, `covariance` knows as much from one solve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Gt

from genbo.bilevel.protocols import Facts, Follows, GradientCost

if TYPE_CHECKING:
    from genbo.bilevel.measured import Measured
    from genbo.bilevel.regularization.tilted import SolveLaw


@dataclass(frozen=True)
class Difference:
    """`step` is h, in log lambda: 0.1 moves lambda by a tenth either way."""

    step: Annotated[float, Gt(0)] = 0.1

    follows: ClassVar[Follows] = "law"

    def why_not(self, facts: Facts) -> str | None:
        if not facts.tilted:
            return "difference is the gradient of tune: regularization only; use estimator: auto"
        return None

    def cost(self, parameters: int) -> GradientCost:
        """At lambda itself, which the curve wants, and at either side."""
        return GradientCost(laws=("y", "y", "y"))

    def __call__(self, solve: SolveLaw, lam: float, /) -> Measured:
        """The difference of each prompt, (C,), in units of r1; bias O(h^2), with the influences (C, n) of both solves.

        Raises:
            ValueError: by the lower solver, where lambda is not greater than 0.
        """
        up, down = (solve(lam * math.exp(h)).r1 for h in (self.step, -self.step))
        return (up - down) * (1 / (2 * self.step))
