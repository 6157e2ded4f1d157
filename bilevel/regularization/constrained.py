"""The best lambda where other rewards must not fall below a level: a root on the same curve.

    maximise F(lambda)    where    gap_k(lambda) = E_lambda[r_k] - level_k >= 0    for every constraint k

A level is a number, or relative to E[r_k] at the lambda of the start, which the same samples give. The samples of a
bank bring every r_k along, so a gap costs no network call. Where the optimum of F keeps every level it is the answer.
Otherwise the answer is on the edge of what keeps them, or on a lower maximum inside: each edge is closed in on by
bisection of log lambda, and the one with the highest F is taken. At an edge the interval of lambda is

    all lambda around it at which the 95 % interval of the binding gap holds 0

as for the root of a gradient (`bilevel.regularization.curve`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from genbo.bilevel.interval import quantile
from genbo.bilevel.measured import Measured
from genbo.bilevel.regularization.context import LawContext
from genbo.bilevel.regularization.curve import (
    EXACTLY,
    TOLERANCE,
    Optimum,
    Point,
    falling_root,
    inverted,
    of_an_interval,
    within_reach,
    worst,
)
from genbo.bilevel.regularization.tilted import VERDICTS, SolveLaw

if TYPE_CHECKING:
    from genbo.bilevel.problem import Constraint
    from genbo.bilevel.regularization.bank import Bank
    from genbo.bilevel.regularization.context import LawSolver


@dataclass(frozen=True, eq=False)
class Gap:
    """How far a reward is above its level at any lambda; `laws` have it in r1's place, one of them for each bank.

    `start` is the lambda at which the level is relative, or None where the level is `at_least` itself.
    """

    name: str
    at_least: float
    start: float | None
    laws: tuple[SolveLaw, ...]
    known: dict[float, Point] = field(default_factory=dict)  # what has been asked

    def at(self, lam: float) -> Point:
        """The gap in the gradient's place, by the bank that knows best what it needs."""
        if lam not in self.known:
            self.known[lam] = min((self._by(solve, lam) for solve in self.laws), key=_doubt)
        return self.known[lam]

    def _by(self, solve: SolveLaw, lam: float) -> Point:
        law = solve(lam)
        if self.start is None:
            return Point(lam, law, Measured(law.r1.value - self.at_least, law.r1.influence))
        start = solve(self.start)
        gap = law.r1 - start.r1
        fit = max((law.fit, start.fit), key=lambda fit: (VERDICTS.index(fit.verdict), -fit.ess))
        return Point(lam, replace(law, fit=fit), Measured(gap.value - self.at_least, gap.influence))


def _doubt(point: Point) -> tuple[int, float]:
    return VERDICTS.index(point.law.fit.verdict), -point.law.fit.ess


def gaps_of(
    lower: LawSolver, constraints: Sequence[Constraint], banks: Sequence[Bank], start: float
) -> tuple[Gap, ...]:
    """Of banks that hold the constraints' rewards; `start` is the lambda that levels are relative to."""
    found = []
    for k, constraint in enumerate(constraints):
        laws = tuple(lower.begin(LawContext(banks=[in_place_of_r1(bank, k)])) for bank in banks)
        found.append(Gap(constraint.name, constraint.at_least, start if constraint.relative_to_start else None, laws))
    return tuple(found)


def in_place_of_r1(bank: Bank, k: int) -> Bank:
    """The bank with the reward of constraint k as its upper one."""
    if bank.kept is None:
        raise ValueError("this bank does not hold the rewards that must be kept")
    return replace(bank, r1=bank.kept[..., k])


def constrained(best: Optimum, solve: SolveLaw, curve: Sequence[Point], gaps: Sequence[Gap]) -> Optimum:
    """The best lambda that keeps every level, where `best` is the best of all."""
    reach = [p for p in within_reach(curve) if all(gap.at(p.lam).law.fit.verdict != "refuse" for gap in gaps)]
    if not gaps or best.verdict == "refuse":
        return best
    if not reach:
        reason = f"the samples are too few to tell whether {_names(gaps)} is kept, at every lambda; draw more samples"
        return _unknown(best, reason)
    if _least(gaps, best.lam)[0] >= 0:
        return best
    edges = [
        _edge(solve, gaps, reach, a, b) for a, b in pairwise(reach) if (_keeps(gaps, a.lam) != _keeps(gaps, b.lam))
    ]
    inside = [_inside(p) for p in reach if _keeps(gaps, p.lam)]
    found = max((*edges, *inside), key=lambda o: o.r1, default=None)
    if found is not None:
        return found
    nearest = max(reach, key=lambda p: _least(gaps, p.lam)[0])
    short = [gap.name for gap in gaps if gap.at(nearest.lam).grad.mean < 0]
    reason = f"no lambda within reach keeps {' and '.join(short)} at its level; lambda = {nearest.lam:.4g} is nearest"
    return replace(_inside(nearest), kind="infeasible", reason=f"{reason}; lower the level, or take another reward")


def _unknown(best: Optimum, reason: str) -> Optimum:
    return Optimum("infeasible", best.lam, best.r1, "refuse", reason)


def _inside(p: Point) -> Optimum:
    reason = f"r1 is highest at lambda = {p.lam:.4g}, of all that keep every level"
    return Optimum("constrained", p.lam, p.law.r1.mean, p.law.fit.verdict, reason)


def _least(gaps: Sequence[Gap], lam: float) -> tuple[float, Gap]:
    """The smallest gap at lambda in standard deviations of its reward, and whose it is."""
    each = [(gap.at(lam), gap) for gap in gaps]
    return min(((p.grad.mean / (p.law.r1_sd or 1.0), gap) for p, gap in each), key=lambda pair: pair[0])


def _keeps(gaps: Sequence[Gap], lam: float) -> bool:
    return _least(gaps, lam)[0] >= 0


def _names(gaps: Sequence[Gap]) -> str:
    return " and ".join(gap.name for gap in gaps)


def _edge(solve: SolveLaw, gaps: Sequence[Gap], reach: Sequence[Point], a: Point, b: Point) -> Optimum:
    """The lambda between a and b at which the first level is no longer kept, and its interval."""
    side = 1.0 if _keeps(gaps, a.lam) else -1.0  # the gap falls, or else it rises, as lambda rises
    tolerance = EXACTLY if math.isinf(a.law.fit.samples) else TOLERANCE
    lam, evaluations = falling_root(lambda x: side * _least(gaps, x)[0], a.lam, b.lam, tolerance)
    gap, law = _least(gaps, lam)[1], solve(lam)

    def point(x: float) -> Point:
        found = gap.at(x)
        return Point(x, found.law, found.grad * side)

    at = point(lam)
    walked = [point(p.lam) for p in reach]
    ends = inverted(point, walked, at, at.law.fit.verdict)
    asked = [at, Point(lam, law, at.grad)]
    if ends is not None:
        asked += [point(x) for x in ends]
        if worst(asked) != at.law.fit.verdict:
            ends = inverted(point, walked, at, worst(asked))
    verdict = of_an_interval(worst(asked), asked)
    kept, beyond = ("down", "below") if side < 0 else ("up", "above")
    reason = f"{gap.name} is kept {kept} to lambda = {lam:.4g}"
    if _rises(solve, lam, side):
        reason = f"{reason}; {beyond} it r1 would be higher"
    r1 = law.r1.mean
    if ends is None or verdict == "refuse":
        return Optimum("constrained", lam, r1, verdict, reason, evaluations=evaluations)
    log_se = math.log(ends[1] / ends[0]) / 2 / quantile(len(at.grad.value))
    return Optimum("constrained", lam, r1, verdict, reason, log_se, ends, evaluations=evaluations)


def _rises(solve: SolveLaw, lam: float, side: float) -> bool:
    """Whether r1 is higher a little beyond the edge."""
    return solve(lam * math.exp(0.02 * side)).r1.mean > solve(lam).r1.mean
