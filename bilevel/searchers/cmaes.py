"""CMA-ES: generations of trials from a normal law whose mean and covariance follow the best of each (Hansen 2016).

Optuna's CmaEsSampler, of the cmaes package. It searches over numbers only, from the middle of the space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Interval

if TYPE_CHECKING:
    from genbo.bilevel.trials import Search, Space
    from genbo.diffusion.seed import Seed

FEW = 3  # generations that it needs at least


@dataclass(frozen=True)
class Cmaes:
    """`sigma` is the first standard deviation, a share of each range; `population` the trials of a generation."""

    sigma: Annotated[float, Interval(gt=0, le=1)] = 0.25
    population: Annotated[int, Interval(ge=4)] | None = None

    def why_not(self, space: Space, trials: int) -> str | None:
        if space.choices:
            return f"cmaes searches over numbers only, not over {', '.join(space.choices)}; take tpe, or leave that out"
        if len(space.numbers) < 2:
            return "cmaes needs two numbers at least; take gp or tpe"
        least = FEW * self._population(space)
        if trials < least:
            return f"cmaes needs {least} trials at least, {FEW} generations; raise the budget, or take gp"
        return None

    def _population(self, space: Space) -> int:
        import math

        return self.population or 4 + math.floor(3 * math.log(max(1, len(space.numbers))))

    def open(self, space: Space, trials: int, seed: Seed) -> Search:
        from optuna.samplers import CmaEsSampler

        from genbo.bilevel.searchers._optuna import OptunaSearch

        return OptunaSearch(
            space,
            seed,
            lambda n: CmaEsSampler(
                seed=n, x0=dict.fromkeys(space.numbers, 0.5), sigma0=self.sigma, popsize=self._population(space)
            ),
        )
