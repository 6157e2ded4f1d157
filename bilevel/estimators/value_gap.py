"""The derivative in lambda as a gap between two lower solves, one with a small part of the upper reward added.

    y = argmin -E[r2] + lambda KL,      z = argmin -E[r2] - E[r1] / gamma + lambda KL
    dF / dlog lambda  ~  -lambda gamma [KL(z || p0) - KL(y || p0)]

The derivative, for every gamma exactly, of gamma times the gap of the two minima. It leans from dF / dlog lambda by

    -(lambda / 2 gamma) [Var(r1) / lambda^2 + k3(r1, r1, r2) / lambda^3] + O(gamma^-2),      moments under p_lambda

so gamma is chosen in units of sd(r1) / lambda, in which the lean is free of units. y and z come from the same samples,
and the noise they share cancels; the noise of separate samples would be multiplied by gamma.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Gt

from genbo.bilevel.protocols import Facts, Follows, GradientCost
from genbo.bilevel.value_gap import value_gap

if TYPE_CHECKING:
    from genbo.bilevel.measured import Measured
    from genbo.bilevel.regularization.tilted import SolveLaw

UNITS = 1000.0  # gamma in units of sd(r1) / lambda: the upper reward tilts by a thousandth of its spread


@dataclass(frozen=True)
class ValueGap:
    """`gamma` weighs the lower level against the upper; by default 1000 sd(r1) / lambda."""

    gamma: Annotated[float, Gt(0)] | None = None

    follows: ClassVar[Follows] = "law"

    def why_not(self, facts: Facts) -> str | None:
        if not facts.tilted:
            return "value_gap is the gradient of a tuned lower level, as in tune: regularization; use estimator: auto"
        return None

    def cost(self, parameters: int) -> GradientCost:
        return GradientCost(laws=("y", "z"))

    def __call__(self, solve: SolveLaw, lam: float, /) -> Measured:
        """The gap of each prompt, (C,), in units of r1; bias O(1 / gamma), with the influences (C, n) of both solves.

        Raises:
            ValueError: by the lower solver, where lambda is not greater than 0.
        """
        y = solve(lam)
        gamma = self.gamma or UNITS * y.r1_sd / lam or 1.0  # any gamma will do for a reward without spread
        z = solve(lam, gamma)
        return value_gap(z.kl, y.kl, gamma) * -lam
