"""The derivative in lambda as a covariance of the two rewards: the limit of the value gap for infinite gamma.

    dF / dlog lambda = -Cov_lambda(r1, r2) / lambda,      F(lambda) = E_lambda[r1]

Larger lambda means less of r2; where the two rewards still rise together, that is less of r1. No gamma, no second lower
solve, no bias but the lower solver's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from genbo.bilevel.problem import Facts

if TYPE_CHECKING:
    from genbo.bilevel.regularization.tilted import Measured, Solve


@dataclass(frozen=True)
class Covariance:
    """It takes no options."""

    def why_not(self, facts: Facts) -> str | None:
        if not facts.tilted:
            return "covariance is the gradient of tune: regularization only; use estimator: auto"
        return None

    def __call__(self, solve: Solve, lam: float) -> Measured:
        return solve(lam).covariance * (-1 / lam)
