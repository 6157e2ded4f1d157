"""Rungs that grow by a factor, and one of Optuna's pruners on them (Akiba et al. 1907.10902), in memory.

The study has the seed in its name, because Hyperband's brackets follow from the name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from genbo.diffusion.kinds import kind_of

FEWEST = 2  # samples of a rung

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.trial import Trial

    from genbo.diffusion.seed import Seed


def first_rung(samples: int, reduction: int, least: int | None) -> int:
    """`least`, or else so many that there are three rungs: 1 / reduction^2 of all samples, rounded up."""
    return least or max(FEWEST, -(-samples // reduction**2))


def rungs_from(least: int, reduction: int, samples: int) -> tuple[int, ...]:
    """`least`, `reduction` times as many, and so on, and then all samples."""
    found = []
    while least < samples:
        found.append(least)
        least *= reduction
    return (*found, samples)


def no_rung(kind: str, least: int, samples: int) -> str | None:
    """Why trials of so few samples cannot be cut short."""
    if least < samples:
        return None
    return f"{kind} looks at a candidate after {least} of its {samples} samples; raise budget.samples, or lower least"


class Halving:
    """What pruners have in common whose rungs grow by `reduction` from `least` samples on; both are options of each."""

    reduction: int
    least: int | None

    def why_not(self, samples: int) -> str | None:
        return no_rung(kind_of(self), self._least(samples), samples)

    def rungs(self, samples: int) -> tuple[int, ...]:
        return rungs_from(self._least(samples), self.reduction, samples)

    def _least(self, samples: int) -> int:
        return first_rung(samples, self.reduction, self.least)


class OptunaPruning:
    """A study of trials without parameters, whose reports are all that the pruner sees."""

    def __init__(self, pruner: BasePruner, seed: Seed) -> None:
        import optuna
        from optuna.samplers import RandomSampler

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._study = optuna.create_study(
            study_name=f"rungs-{seed.child('pruner').value}",
            direction="maximize",
            sampler=RandomSampler(seed=0),
            pruner=pruner,
        )
        self._trial: Trial | None = None

    def stops(self, value: float, samples: int) -> bool:
        under_way = self._under_way()
        under_way.report(value, samples)
        return bool(under_way.should_prune())

    def ended(self) -> None:
        """As pruned, since the value of a whole trial is not compared with any other."""
        from optuna.trial import TrialState

        under_way, self._trial = self._under_way(), None
        self._study.tell(under_way, state=TrialState.PRUNED)

    def _under_way(self) -> Trial:
        """One that fails before its first rung is a trial too, so that numbers are those of the search."""
        if self._trial is None:
            self._trial = self._study.ask()
        return self._trial
