"""Tree-structured Parzen estimator: densities of good and of bad trials, and the next trial where their ratio is best.

Bergstra et al. 2011; Optuna's TPESampler, its default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt

if TYPE_CHECKING:
    from genbo.bilevel.trials import Search, Space
    from genbo.diffusion.seed import Seed


@dataclass(frozen=True)
class Tpe:
    """`startup` trials are random; `multivariate` has one density for all numbers instead of one for each."""

    startup: Annotated[int, Gt(0)] = 10
    multivariate: bool = True

    def why_not(self, space: Space, trials: int) -> str | None:
        return None

    def open(self, space: Space, trials: int, seed: Seed) -> Search:
        from optuna.samplers import TPESampler

        from genbo.bilevel.searchers._optuna import OptunaSearch

        return OptunaSearch(
            space,
            seed,
            lambda n: TPESampler(seed=n, n_startup_trials=self.startup, multivariate=self.multivariate),
            prunes=True,
        )
