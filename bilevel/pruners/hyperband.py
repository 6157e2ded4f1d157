"""Hyperband: successive halving with several first rungs, for when few samples may mislead.

Li et al. 1603.06560; Optuna's HyperbandPruner. Each candidate belongs to a bracket, which follows from its number and
the seed. Those of the first bracket are compared at every rung, those of the next from the second rung on, and so on;
candidates are compared within their bracket alone.
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
class Hyperband(Halving):
    """`least` samples at the first rung, by default 1 / reduction^2 of all, and `reduction` times more at each next."""

    reduction: Annotated[int, Interval(ge=2)] = 3
    least: Annotated[int, Interval(ge=2)] | None = None

    def open(self, samples: int, seed: Seed) -> Pruning:
        from optuna.pruners import HyperbandPruner

        from genbo.bilevel.pruners._optuna import OptunaPruning

        return OptunaPruning(
            HyperbandPruner(min_resource=self._least(samples), max_resource=samples, reduction_factor=self.reduction),
            seed,
        )
