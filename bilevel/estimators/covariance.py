"""The derivative in lambda as a covariance of the two rewards: the limit of the value gap for infinite gamma.

    dF / dlog lambda = -Cov_lambda(r1, r2) / lambda,      F(lambda) = E_lambda[r1]

Larger lambda means less of r2; where the two rewards still rise together, that is less of r1. No gamma, no second lower
solve, no bias but the lower solver's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from genbo.bilevel.protocols import Facts, Follows, GradientCost

if TYPE_CHECKING:
    from genbo.bilevel.measured import Measured
    from genbo.bilevel.regularization.tilted import SolveLaw


@dataclass(frozen=True)
class Covariance:
    """It takes no options."""

    follows: ClassVar[Follows] = "law"

    def why_not(self, facts: Facts) -> str | None:
        if not facts.tilted:
            return "covariance is the gradient of tune: regularization only; use estimator: auto"
        return None

    def cost(self, parameters: int) -> GradientCost:
        return GradientCost(laws=("y",))

    def __call__(self, solve: SolveLaw, lam: float, /) -> Measured:
        """-Cov(r1, r2) / lambda of each prompt, (C,), in units of r1, with its influences (C, n).

        Raises:
            ValueError: by the lower solver, where lambda is not greater than 0.
        """
        return solve(lam).covariance * (-1 / lam)
