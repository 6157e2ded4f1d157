"""Bayesian optimization: a Gaussian process of the value, and the next trial where its expected improvement is highest.

Optuna's GPSampler: a Matern kernel with a length a number, the noise fitted, log expected improvement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt

if TYPE_CHECKING:
    from genbo.bilevel.trials import Search, Space
    from genbo.diffusion.seed import Seed


@dataclass(frozen=True)
class Gp:
    """`startup` trials are random; `noisy` values have a noise that is fitted."""

    startup: Annotated[int, Gt(0)] = 6
    noisy: bool = True

    def why_not(self, space: Space, trials: int) -> str | None:
        return None

    def open(self, space: Space, trials: int, seed: Seed) -> Search:
        from optuna.samplers import GPSampler

        from genbo.bilevel.searchers._optuna import OptunaSearch

        return OptunaSearch(
            space,
            seed,
            lambda n: GPSampler(seed=n, n_startup_trials=self.startup, deterministic_objective=not self.noisy),
        )
