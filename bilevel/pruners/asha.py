"""Successive halving without waiting (ASHA): at each rung one candidate in `reduction` goes on to more samples.

Li et al. 1810.05934; Optuna's SuccessiveHalvingPruner. Candidates come one after the other, so each is compared with
those that have reached its rung before; until there are `reduction` of them, the best so far goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Interval

from genbo.bilevel.pruners._optuna import Halving

if TYPE_CHECKING:
    from genbo.bilevel.trials import Pruning
    from genbo.diffusion.seed import Seed


@dataclass(frozen=True)
class Asha(Halving):
    """`least` samples at the first rung, by default 1 / reduction^2 of all, and `reduction` times more at each next."""

    reduction: Annotated[int, Interval(ge=2)] = 4
    least: Annotated[int, Interval(ge=2)] | None = None

    def open(self, samples: int, seed: Seed) -> Pruning:
        from optuna.pruners import SuccessiveHalvingPruner

        from genbo.bilevel.pruners._optuna import OptunaPruning

        return OptunaPruning(
            SuccessiveHalvingPruner(min_resource=self._least(samples), reduction_factor=self.reduction), seed
        )
