"""Random search: each trial is drawn evenly from the whole space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genbo.bilevel.trials import Search, Space
    from genbo.diffusion.seed import Seed


@dataclass(frozen=True)
class Random:
    """It has no options."""

    def why_not(self, space: Space, trials: int) -> str | None:
        return None

    def open(self, space: Space, trials: int, seed: Seed) -> Search:
        from optuna.samplers import RandomSampler

        from genbo.bilevel.searchers._optuna import OptunaSearch

        return OptunaSearch(space, seed, lambda n: RandomSampler(seed=n))
