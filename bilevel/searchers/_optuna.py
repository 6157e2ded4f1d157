"""A search by one of Optuna's samplers (Akiba et al. 1907.10902), in memory: the trials are kept by who asks.

A sampler is seeded anew before each trial, by the number of the trial. So the next point follows from the seed and the
trials so far, and not from how often the search was stopped.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from genbo.bilevel.trials import Candidate, Space

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial

    from genbo.diffusion.seed import Seed


WHOLE = 1_000_000  # Optuna's step of a whole trial: it ranks stopped trials by how far they came


class OptunaSearch:
    """`sampler` makes one from a seed of 31 bits.

    `prunes` says whether this sampler learns from trials that were stopped early as such; another one is told of them
    as of whole trials, whose values are noisier.
    """

    def __init__(
        self, space: Space, seed: Seed, sampler: Callable[[int], BaseSampler], *, prunes: bool = False
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space, self._seed, self._sampler, self._prunes = space, seed, sampler, prunes
        self._study = optuna.create_study(direction="maximize", sampler=self._sampler_of(0))
        self._asked: Trial | None = None
        if space.first is not None:
            numbers = dict(zip(space.numbers, space.first.shares, strict=True))
            self._study.enqueue_trial({**numbers, **space.first.words})

    def ask(self) -> Candidate:
        if self._asked is None:
            self._study.sampler = self._sampler_of(len(self._study.trials))
            self._asked = self._study.ask(distributions(self._space))
        asked: dict[str, Any] = self._asked.params
        shares = tuple(float(asked[name]) for name in self._space.numbers)
        return Candidate(shares, {name: str(asked[name]) for name in self._space.choices})

    def tell(self, value: float, share: float = 1.0) -> None:
        from optuna.trial import TrialState

        if self._asked is None:
            raise ValueError("nothing was asked for")
        asked, self._asked = self._asked, None
        if math.isfinite(value) and share < 1 and self._prunes:
            asked.report(value, round(share * WHOLE))
            self._study.tell(asked, state=TrialState.PRUNED)
        elif math.isfinite(value):
            self._study.tell(asked, value)
        else:
            self._study.tell(asked, state=TrialState.FAIL)

    def _sampler_of(self, trial: int) -> BaseSampler:
        """A sampler for this trial; which of them or of their options Optuna may change is no news to the user."""
        import warnings

        from optuna.exceptions import ExperimentalWarning

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            warnings.simplefilter("ignore", FutureWarning)
            return self._sampler(self._seed.child("trial", trial).value % 2**31)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Of each number and choice, as Optuna names them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    found: dict[str, BaseDistribution] = {name: FloatDistribution(0.0, 1.0) for name in space.numbers}
    return found | {name: CategoricalDistribution(words) for name, words in space.choices.items()}
