"""The search for lambda: draw a bank, read the curve, and draw again only where there are too few samples.

    bank -> curve -> optimum -> at a bound, or seen reliably on samples drawn near it?   done
                             -> else                samples shifted towards it, or more of the same, and again

An optimum that plain samples show is looked at again on samples shifted towards it: they are fresh, and the luck by
which a bank without a tail looks reliable is gone. Every bank stays in use: at each lambda the one is used that
knows it best. Rounds are yielded as they end, and the banks are all the state: given back they are not drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from genbo.bilevel.problem import Constraint
from genbo.bilevel.protocols import Optimizer
from genbo.bilevel.regularization.bank import Bank, joined, mistakes
from genbo.bilevel.regularization.constrained import constrained, gaps_of
from genbo.bilevel.regularization.context import LawContext, LawSolver, Source
from genbo.bilevel.regularization.curve import Optimum, Point, optimum, point, settled, trace, within_reach
from genbo.bilevel.regularization.rounds import pilot_samples
from genbo.bilevel.regularization.tilted import LawEstimator, SolveLaw

FARTHER = 2.0  # a lambda this many times smaller is looked at next, where the optimum lies out of reach
SHORT = 0.02  # of log lambda: a walk whose steps are shorter has arrived

After = Literal["done", "bridge", "more", "spent", "unusable"]

INSIDE = ("interior", "constrained")  # kinds of an optimum that has an interval


@dataclass(frozen=True)
class Keep:
    """What must not fall below a level; `start` is the lambda that levels are relative to."""

    constraints: Sequence[Constraint] = ()
    start: float = 1.0

    def best(
        self, best: Optimum, lower: LawSolver, solve: SolveLaw, curve: Sequence[Point], banks: Sequence[Bank]
    ) -> Optimum:
        """The best lambda that keeps every level, where `best` is the best of all."""
        return constrained(best, solve, curve, gaps_of(lower, self.constraints, banks, self.start))


class LambdaTunable(Protocol):
    """The tunable lambda: `bilevel/tunables/regularization.py`."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Of lambda."""

    def first(self, steps: int) -> Tensor:
        """lambda at the start, (1,)."""

    def coordinates(self, phi: Tensor) -> Tensor:
        """lambda -> u."""

    def value(self, u: Tensor) -> Tensor:
        """u -> lambda."""


@dataclass(frozen=True)
class SearchBudget:
    """`samples` a prompt in the first round; each round of the same kind doubles them.

    `precision` is the standard error of log lambda at which a reliable optimum is good enough. With a `ratio` it is
    good enough where both ends of its 95 % interval are within this factor of it.
    """

    samples: int = 1024
    rounds: int = 4
    precision: float = 0.1
    ratio: float | None = None

    def is_met(self, best: Optimum) -> bool:
        """Whether an optimum is known precisely enough."""
        if self.ratio is not None and best.interval is not None:
            low, high = best.interval
            return max(high / best.lam, best.lam / low) <= self.ratio
        return self.ratio is None and best.log_se is not None and best.log_se <= self.precision


@dataclass(frozen=True)
class Round:
    """What is known after a round, and what follows; `target` is the lambda that shifted samples are drawn for."""

    banks: tuple[Bank, ...]
    curve: tuple[Point, ...]
    optimum: Optimum | None
    after: After
    reason: str
    target: float | None = None


def search(
    source: Source,
    lower: LawSolver,
    slope: LawEstimator,
    bounds: tuple[float, float],
    budget: SearchBudget,
    banks: Sequence[Bank] = (),
    keep: Keep | None = None,
) -> Iterator[Round]:
    """Rounds until the optimum is known or the budget is spent; `banks` are those of an earlier search's last round."""
    held = tuple(banks) or (source.draw(0, budget.samples, None),)
    while True:
        now = _round(source, lower, slope, bounds, held, budget, keep or Keep())
        yield now
        if now.after not in ("bridge", "more"):
            return
        held = (*held, _fresh(source, now, budget))


def walk(
    solve: SolveLaw,
    slope: LawEstimator,
    tunable: LambdaTunable,
    optimizer: Optimizer,
    steps: int,
    banks: Sequence[Bank] = (),
) -> Iterator[Round]:
    """Where each lower solve costs network calls: an optimizer's step a round, from where lambda starts.

    It ends when the step has become shorter than the error bar of the root, or than `SHORT`.
    """
    u, state = tunable.coordinates(tunable.first(1)), dict[str, Tensor]()
    curve: tuple[Point, ...] = ()
    for k in range(steps):
        here = point(solve, slope, float(tunable.value(u)[0]))
        if not math.isfinite(here.grad.mean):
            reason = f"the gradient is not a finite number at lambda = {here.lam:.3g}; narrow the bounds"
            yield Round(tuple(banks), curve, None, "unusable", reason)
            return
        curve = tuple(sorted((*curve, here), key=lambda p: p.lam))
        best = settled(curve, tunable.bounds)
        silent = here.law.fit.verdict == "refuse"  # what is learned from samples goes no farther than they do
        u, state = optimizer.step(u, (1.0 if silent else here.grad.mean) * torch.ones_like(u), state, k / steps)
        target = float(tunable.value(u)[0])
        stride = abs(math.log(target / here.lam))
        ended = best.kind.endswith("bound") or (best.kind == "interior" and stride < max(best.log_se or 0.0, SHORT))
        after: After = "done" if ended else "spent" if k + 1 == steps else "more"
        reason = best.reason if after != "more" else f"{best.reason}; asking at lambda = {target:.3g}"
        yield Round(tuple(banks), curve, best, after, reason, target if after == "more" else None)
        if ended:
            return


def _round(
    source: Source,
    lower: LawSolver,
    slope: LawEstimator,
    bounds: tuple[float, float],
    banks: tuple[Bank, ...],
    budget: SearchBudget,
    keep: Keep,
) -> Round:
    if wrong := mistakes(banks[-1], source.prompts):
        return Round(banks, (), None, "unusable", "; ".join(wrong))
    solve = lower.begin(LawContext(banks=banks))
    curve = trace(solve, slope, bounds)
    best = keep.best(optimum(solve, slope, curve), lower, solve, curve, banks)
    if best.kind.endswith("bound") or _is_settled(best, banks, source.shiftable, budget):
        return Round(banks, curve, best, "done", best.reason)
    if len(banks) >= budget.rounds:
        return Round(banks, curve, best, "spent", best.reason)
    silent = solve(best.lam).fit.verdict != "reliable"
    in_vain = silent and _shifting_was_in_vain(lower, slope, bounds, banks, curve)
    if not source.shiftable or best.kind == "unclear" or in_vain:
        return Round(banks, curve, best, "more", f"{best.reason}; drawing more samples")
    known = best.kind in INSIDE or best.verdict == "refuse"
    target = best.lam if known else max(best.lam / FARTHER, bounds[0])
    return Round(banks, curve, best, "bridge", f"{best.reason}; drawing nearer to lambda = {target:.3g}", target)


def _is_settled(best: Optimum, banks: Sequence[Bank], shiftable: bool, budget: SearchBudget) -> bool:
    """Whether an interior optimum is reliable and precise, on shifted samples where there can be any."""
    if best.kind not in INSIDE or best.verdict != "reliable" or not budget.is_met(best):
        return False
    return not shiftable or any(is_shifted(bank) for bank in banks)


def _shifting_was_in_vain(
    lower: LawSolver, slope: LawEstimator, bounds: tuple[float, float], banks: tuple[Bank, ...], curve: Sequence[Point]
) -> bool:
    """Whether the last bank was shifted, and lets no smaller lambda be spoken of than the others do."""
    if len(banks) == 1 or not is_shifted(banks[-1]):
        return False
    before = trace(lower.begin(LawContext(banks=banks[:-1])), slope, bounds, len(curve))
    return len(within_reach(before)) >= len(within_reach(curve))


def _fresh(source: Source, now: Round, budget: SearchBudget) -> Bank:
    """The next bank: under shifted noise where there is a target, else the plain samples doubled."""
    index = len(now.banks)
    if now.target is not None:
        samples = budget.samples * 2 ** sum(map(is_shifted, now.banks))
        return source.draw(index, samples, source.shifts(index, pilot_samples(samples), now.target))
    plain = [bank for bank in now.banks if not is_shifted(bank)][-1]
    return joined(plain, source.draw(index, plain.samples, None))


def is_shifted(bank: Bank) -> bool:
    return bool(bank.log_ratio.any())
