"""The whole curve over lambda, and the optimum on it, from a lower solver that costs nothing to ask again.

    F(lambda) = E_lambda[r1],      g(lambda) = dF / dlog lambda

The curve is read at lambdas even in log lambda, from the upper bound down to where the samples cannot speak any more.
A maximum stands where g falls through 0 as lambda rises; a change of sign counts where both sides stand two standard
errors from 0. It is closed in on by bisection of log lambda, and its error bar is the root's own,

    se(log lambda*) = se(g) / |dg / dlog lambda|

Where there is no such change the optimum lies at a bound, or out of the samples' reach, and is named so. Where there
are several, the highest F has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Literal

from genbo.bilevel.evaluate import student_t
from genbo.bilevel.law import MANY_PROMPTS, VERDICTS, Law, Measured, Slope, Solve, Verdict

POINTS = 81
CLEAR = 2.0  # standard errors from which a sign is believed
TOLERANCE = 1e-4  # of log lambda
NEARBY = 0.05  # in log lambda: half the width of the difference that measures the slope of g
WIDER = {"reliable": 1.0, "doubtful": 2.0}  # by how much error bars are too short there, as measured

Kind = Literal["interior", "lower_bound", "upper_bound", "out_of_reach", "unclear"]


@dataclass(frozen=True)
class Point:
    """One lambda: its law, and the gradient there."""

    lam: float
    law: Law
    grad: Measured

    @property
    def sign(self) -> int:
        """Of the gradient, or 0 where noise may have made it."""
        g, se = self.grad.mean, self.grad.se
        return 0 if not math.isfinite(g) or abs(g) <= CLEAR * se else int(math.copysign(1, g))


@dataclass(frozen=True)
class Optimum:
    """Where F is highest. `lam` is the best lambda that samples can speak of, whatever the kind.

    `interval` is a 95 % interval of an interior optimum; `others` are lower maxima; `reason` says the kind in words.
    """

    kind: Kind
    lam: float
    r1: float
    verdict: Verdict
    reason: str
    log_se: float | None = None
    interval: tuple[float, float] | None = None
    others: tuple[float, ...] = ()
    evaluations: int = 0


# -- the curve ---------------------------------------------------------------------------------------------------------


def trace(solve: Solve, slope: Slope, bounds: tuple[float, float], points: int = POINTS) -> tuple[Point, ...]:
    """The curve at `points` lambdas within the bounds, the smallest first."""
    low, high = bounds
    inside = [low * (high / low) ** (i / (points - 1)) for i in range(1, points - 1)]
    return tuple(point(solve, slope, lam) for lam in (low, *inside, high))


def point(solve: Solve, slope: Slope, lam: float) -> Point:
    law = solve(lam)

    def remembered(lam: float, gamma: float | None = None) -> Law:
        return law if (lam, gamma) == (law.lam, None) else solve(lam, gamma)

    return Point(lam, law, slope(remembered, lam))


def within_reach(curve: Sequence[Point]) -> tuple[Point, ...]:
    """The part that the samples can speak of: from the largest lambda down to the first that they cannot."""
    refused = [i for i, p in enumerate(curve) if p.law.fit.verdict == "refuse"]
    return tuple(curve[refused[-1] + 1 :] if refused else curve)


# -- the optimum -------------------------------------------------------------------------------------------------------


def optimum(solve: Solve, slope: Slope, curve: Sequence[Point]) -> Optimum:
    """The highest point of a curve, its kind and its error bar."""
    reach = within_reach(curve)
    if not reach:
        top = curve[-1]
        said = "the samples cannot speak of any lambda within the bounds; draw more samples, or raise the upper bound"
        return _named("out_of_reach", top, said)
    clear = [p for p in reach if p.sign]
    if not clear:
        said = "nowhere within reach can the gradient be told from 0; draw more samples, or take other rewards"
        return _named("unclear", max(reach, key=lambda p: p.law.r1.mean), said)
    found = [_closed_in(solve, slope, a, b) for a, b in pairwise(clear) if a.sign > 0 > b.sign]
    found += _at_the_ends(reach, clear, whole=len(reach) == len(curve))
    best = max(found, key=lambda o: o.r1)
    others = tuple(o.lam for o in found if o is not best and o.kind == "interior")
    return Optimum(**{**vars(best), "others": others})


def _at_the_ends(reach: Sequence[Point], clear: Sequence[Point], *, whole: bool) -> list[Optimum]:
    """Maxima where the curve ends: it has one at each end towards which F still rises."""
    found = []
    first, last = reach[0], reach[-1]
    if clear[0].sign < 0 and not whole and not first.sign:
        top = max(reach, key=lambda p: p.law.r1.mean)
        said = f"r1 rises as lambda falls to {top.lam:.3g}, and the samples do not show whether it turns there"
        found.append(_named("out_of_reach", top, f"{said}; draw more samples"))
    elif clear[0].sign < 0 and not whole:
        said = f"r1 still rises where the samples fall silent, at lambda = {first.lam:.3g}: the optimum lies below"
        found.append(_named("out_of_reach", first, said))
    elif clear[0].sign < 0 and first.sign < 0:
        said = f"r1 never stops rising as lambda falls: the optimum is the lower bound {first.lam:g} itself"
        found.append(_named("lower_bound", first, said))
    elif clear[0].sign < 0:
        said = f"r1 rises towards the lower bound {first.lam:g}, and the samples do not show whether it turns before it"
        found.append(_named("unclear", first, f"{said}; draw more samples, or lower the bound"))
    if clear[-1].sign > 0:
        said = f"r1 only ever rises with lambda: the optimum is the upper bound {last.lam:g}, no tuning at all"
        found.append(_named("upper_bound", last, said))
    return found


def settled(curve: Sequence[Point], bounds: tuple[float, float]) -> Optimum:
    """The highest point as far as lambdas that were asked one by one tell it, without asking another.

    Between the last gradient that clearly rises and the first that clearly falls, a line through both has the root.
    """
    clear = [p for p in curve if p.sign and p.law.fit.verdict != "refuse"]
    if not clear:
        said = "at no lambda so far can the gradient be told from 0; draw more samples, or take other rewards"
        return _named("unclear", max(curve, key=lambda p: p.law.r1.mean), said)
    found = [_on_a_line(a, b, curve) for a, b in pairwise(clear) if a.sign > 0 > b.sign]
    first, last = clear[0], clear[-1]
    if first.sign < 0:
        at_bound = math.log(first.lam / bounds[0]) < NEARBY
        said = f"r1 still rises as lambda falls to {first.lam:.3g}"
        kind: Kind = "lower_bound" if at_bound else "out_of_reach"
        found.append(_named(kind, first, f"{said}, the lower bound" if at_bound else said))
    if last.sign > 0:
        at_bound = math.log(bounds[1] / last.lam) < NEARBY
        said = f"r1 still rises with lambda at {last.lam:.3g}"
        kind = "upper_bound" if at_bound else "out_of_reach"
        found.append(_named(kind, last, f"{said}, the upper bound" if at_bound else said))
    best = max(found, key=lambda o: o.r1)
    others = tuple(o.lam for o in found if o is not best and o.kind == "interior")
    return Optimum(**{**vars(best), "others": others})


def _on_a_line(a: Point, b: Point, curve: Sequence[Point]) -> Optimum:
    """The root between a, whose gradient is above 0, and b, whose gradient is below, and its error bar."""
    width, fall = math.log(b.lam / a.lam), a.grad.mean - b.grad.mean
    share = a.grad.mean / fall
    se = math.hypot((1 - share) * a.grad.se, share * b.grad.se) * width / fall
    lam = a.lam * math.exp(share * width)
    at = min(curve, key=lambda p: abs(math.log(p.law.lam / lam)))
    half = quantile(len(at.grad.value)) * se
    interval = (lam * math.exp(-half), lam * math.exp(half))
    said = f"r1 is highest at lambda = {lam:.4g}: below it r2 is over-optimised"
    verdict = max((p.law.fit.verdict for p in (a, b)), key=VERDICTS.index)
    return Optimum("interior", lam, at.law.r1.mean, verdict, said, se, interval, evaluations=len(curve))


def _named(kind: Kind, at: Point, reason: str) -> Optimum:
    return Optimum(kind, at.lam, at.law.r1.mean, at.law.fit.verdict, reason)


def _closed_in(solve: Solve, slope: Slope, a: Point, b: Point) -> Optimum:
    """The interior maximum between a, where F rises with lambda, and b, where it falls."""
    lam, evaluations = falling_root(lambda x: slope(solve, x).mean, a.lam, b.lam)
    at, factor = point(solve, slope, lam), math.exp(NEARBY)
    nearby = [point(solve, slope, x) for x in (lam / factor, lam * factor)]
    bend = (nearby[1].grad.mean - nearby[0].grad.mean) / (2 * NEARBY)
    verdict = max((p.law.fit.verdict for p in (at, *nearby)), key=VERDICTS.index)
    said = f"r1 is highest at lambda = {lam:.4g}: below it r2 is over-optimised"
    if bend >= 0 or verdict == "refuse":
        return Optimum("interior", lam, at.law.r1.mean, verdict, said, evaluations=evaluations)
    se = WIDER[verdict] * at.grad.se / -bend
    half = quantile(len(at.grad.value)) * se
    interval = (lam * math.exp(-half), lam * math.exp(half))
    return Optimum("interior", lam, at.law.r1.mean, verdict, said, se, interval, evaluations=evaluations)


def quantile(prompts: int, level: float = 0.95) -> float:
    """How many standard errors an interval reaches: Student's, where the error bar counts prompts."""
    p = (1 + level) / 2
    return student_t(p, prompts - 1) if prompts >= MANY_PROMPTS else NormalDist().inv_cdf(p)


def falling_root(g: Callable[[float], float], low: float, high: float) -> tuple[float, int]:
    """Where g falls through 0 between low and high, by bisection of the logarithm, and how often g was asked."""
    evaluations = 0
    while math.log(high / low) > TOLERANCE:
        middle, evaluations = math.sqrt(low * high), evaluations + 1
        low, high = (middle, high) if g(middle) > 0 else (low, middle)
    return math.sqrt(low * high), evaluations


def matched(solve: Solve, of: Callable[[Law], Measured], level: float, bounds: tuple[float, float]) -> float | None:
    """The lambda at which a number that falls as lambda rises, KL or E[r2], is `level`; None where it never is.

    Two ways of tilting meet at equal KL or E[r2], not at equal lambda; and a budget of KL is a lambda.
    """
    low, high = (of(solve(lam)).mean for lam in bounds)
    if not high <= level <= low:
        return None
    return falling_root(lambda lam: of(solve(lam)).mean - level, *bounds)[0]
