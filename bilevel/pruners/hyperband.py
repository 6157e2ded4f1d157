"""Hyperband: successive halving with several first rungs, for when few samples may mislead.

Li et al. 1603.06560; Optuna's HyperbandPruner. Each candidate belongs to a bracket, which follows from its number and
the seed. Those of the first bracket are compared at every rung, those of the next from the second rung on, and so on;
candidates are compared within their bracket alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Interval

from genbo.bilevel.pruners._optuna import first_rung, no_rung, rungs_from

if TYPE_CHECKING:
    from genbo.bilevel.trials import Pruning
    from genbo.diffusion.seed import Seed


@dataclass(frozen=True)
class Hyperband:
    """`least` samples at the first rung, by default 1 / reduction^2 of all, and `reduction` times more at each next."""

    reduction: Annotated[int, Interval(ge=2)] = 3
    least: Annotated[int, Interval(ge=2)] | None = None

    def why_not(self, samples: int) -> str | None:
        return no_rung("hyperband", self._least(samples), samples)

    def rungs(self, samples: int) -> tuple[int, ...]:
        return rungs_from(self._least(samples), self.reduction, samples)

    def _least(self, samples: int) -> int:
        return first_rung(samples, self.reduction, self.least)

    def open(self, samples: int, seed: Seed) -> Pruning:
        from optuna.pruners import HyperbandPruner

        from genbo.bilevel.pruners._optuna import OptunaPruning

        return OptunaPruning(
            HyperbandPruner(min_resource=self._least(samples), max_resource=samples, reduction_factor=self.reduction),
            seed,
        )
