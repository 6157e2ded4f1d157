"""The derivative in lambda as a difference of two solves, for any distribution that the lower level produces.

    dF / dlog lambda  ~  (E[r1] at lambda e^h - E[r1] at lambda e^-h) / (2 h)

Its error falls as h^2, and its noise stays where it is as h falls, for solves that share their samples or their noise.
It is for lower solvers that end elsewhere than in the tilt, guided sampling first of all: the covariance and the value
gap are gradients of the tilted law alone. Where the lower level is the tilt, `covariance` knows as much from one solve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt

from genbo.bilevel.problem import Facts

if TYPE_CHECKING:
    from genbo.bilevel.regularization.tilted import Measured, Solve


@dataclass(frozen=True)
class Difference:
    """`step` is h, in log lambda: 0.1 moves lambda by a tenth either way."""

    step: Annotated[float, Gt(0)] = 0.1

    def why_not(self, facts: Facts) -> str | None:
        if not facts.tilted:
            return "difference is the gradient of tune: regularization only; use estimator: auto"
        return None

    def __call__(self, solve: Solve, lam: float) -> Measured:
        up, down = (solve(lam * math.exp(h)).r1 for h in (self.step, -self.step))
        return (up - down) * (1 / (2 * self.step))
