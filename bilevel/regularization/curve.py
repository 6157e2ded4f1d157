"""The whole curve over lambda, and the optimum on it, from a lower solver that costs nothing to ask again.

    F(lambda) = E_lambda[r1],      g(lambda) = dF / dlog lambda

The curve is read at lambdas even in log lambda, from the upper bound down to where too few effective samples remain.
A maximum stands where g falls through 0 as lambda rises; a change of sign counts where both sides stand two standard
errors from 0 and its interval does not hold it (`bilevel.interval`). It is closed in on by bisection of log lambda;

    the interval of lambda*  =  all lambda around it at which the interval of g holds 0

so nothing bent is taken for straight; where g is straight this is se(log lambda*) = se(g) / |dg / dlog lambda|.
Where there is no such change the optimum lies at a bound, or out of the samples' reach, and is named so. Where there
are several, the highest F has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

from genbo.bilevel.interval import interval, quantile, stretch
from genbo.bilevel.measured import Measured
from genbo.bilevel.regularization.tilted import VERDICTS, Law, LawEstimator, SolveLaw, Verdict

POINTS = 81
CLEAR = 2.0  # standard errors from which a sign is believed
TOLERANCE = 1e-4  # of log lambda
EXACTLY = 1e-13  # the same, where the law is known on paper
NEARBY = 0.05  # in log lambda: half the width of the difference that measures the slope of g
WIDER = {"reliable": 1.0, "doubtful": 2.0, "refuse": math.inf}  # by how much error bars are too short there
LEAST = 1000  # samples in all, below which no interval is called reliable: fewer have not met the tail of what they sum
HEAVY = 0.2  # tail of the weights from which the square of the summand hardly has a variance, and so its error bar
LEAST_HEAVY = 5000  # the same where the tail is that heavy

Kind = Literal["interior", "lower_bound", "upper_bound", "out_of_reach", "unclear", "constrained", "infeasible"]


@dataclass(frozen=True)
class Point:
    """One lambda: its law, and the gradient there."""

    lam: float
    law: Law
    grad: Measured

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Of the gradient, 95 %, as wide as the samples' verdict asks for."""
        return interval(self.grad, WIDER[self.law.fit.verdict])

    @cached_property
    def sign(self) -> int:
        """Of the gradient, or 0 where noise may have made it."""
        g, se = self.grad.mean, self.grad.se
        if not math.isfinite(g) or abs(g) <= CLEAR * se:
            return 0
        low, high = self.interval
        return 1 if low > 0 else -1 if high < 0 else 0


@dataclass(frozen=True)
class Optimum:
    """Where F is highest. `lam` is the best lambda that has enough samples, whatever the kind.

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


def trace(solve: SolveLaw, slope: LawEstimator, bounds: tuple[float, float], points: int = POINTS) -> tuple[Point, ...]:
    """The curve at `points` lambdas within the bounds, the smallest first."""
    low, high = bounds
    inside = [low * (high / low) ** (i / (points - 1)) for i in range(1, points - 1)]
    return tuple(point(solve, slope, lam) for lam in (low, *inside, high))


def point(solve: SolveLaw, slope: LawEstimator, lam: float) -> Point:
    law = solve(lam)

    def remembered(lam: float, gamma: float | None = None) -> Law:
        return law if (lam, gamma) == (law.lam, None) else solve(lam, gamma)

    return Point(lam, law, slope(remembered, lam))


def within_reach(curve: Sequence[Point]) -> tuple[Point, ...]:
    """The part with enough effective samples: from the largest lambda down to the first that has too few."""
    refused = [i for i, p in enumerate(curve) if p.law.fit.verdict == "refuse"]
    return tuple(curve[refused[-1] + 1 :] if refused else curve)


# -- the optimum -------------------------------------------------------------------------------------------------------


def optimum(solve: SolveLaw, slope: LawEstimator, curve: Sequence[Point]) -> Optimum:
    """The highest point of a curve, its kind and its error bar."""
    reach = within_reach(curve)
    if not reach:
        top = curve[-1]
        reason = "no lambda within the bounds has enough effective samples; draw more samples, or raise the upper bound"
        return _named("out_of_reach", top, reason)
    clear = [p for p in reach if p.sign]
    if not clear:
        reason = "the gradient is within its noise of 0 at every lambda; draw more samples, or take other rewards"
        return _named("unclear", max(reach, key=lambda p: p.law.r1.mean), reason)
    found = [_closed_in(solve, slope, reach, a, b) for a, b in pairwise(clear) if a.sign > 0 > b.sign]
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
        reason = f"r1 rises as lambda falls to {top.lam:.3g}, and the samples do not show whether it turns there"
        found.append(_named("out_of_reach", top, f"{reason}; draw more samples"))
    elif clear[0].sign < 0 and not whole:
        reason = (
            f"r1 still rises at lambda = {first.lam:.3g}, below which there are too few samples: the optimum lies below"
        )
        found.append(_named("out_of_reach", first, reason))
    elif clear[0].sign < 0 and first.sign < 0:
        reason = f"r1 never stops rising as lambda falls: the optimum is the lower bound {first.lam:g} itself"
        found.append(_named("lower_bound", first, reason))
    elif clear[0].sign < 0:
        reason = (
            f"r1 rises towards the lower bound {first.lam:g}, and the samples do not show whether it turns before it"
        )
        found.append(_named("unclear", first, f"{reason}; draw more samples, or lower the bound"))
    if clear[-1].sign > 0 and last.sign > 0:
        reason = f"r1 only ever rises with lambda: the optimum is the upper bound {last.lam:g}, no tuning at all"
        found.append(_named("upper_bound", last, reason))
    elif clear[-1].sign > 0:
        reason = (
            f"r1 rises towards the upper bound {last.lam:g}, and the samples do not show whether it falls before it"
        )
        found.append(_named("unclear", last, f"{reason}; draw more samples, or take other rewards"))
    return found


def settled(curve: Sequence[Point], bounds: tuple[float, float]) -> Optimum:
    """The highest point as far as lambdas that were asked one by one tell it, without asking another.

    Between the last gradient that clearly rises and the first that clearly falls, a line through both has the root.
    """
    clear = [p for p in curve if p.sign and p.law.fit.verdict != "refuse"]
    if not clear:
        reason = (
            "the gradient is within its noise of 0 at every lambda so far; draw more samples, or take other rewards"
        )
        return _named("unclear", max(curve, key=lambda p: p.law.r1.mean), reason)
    found = [_on_a_line(a, b, curve) for a, b in pairwise(clear) if a.sign > 0 > b.sign]
    first, last = clear[0], clear[-1]
    if first.sign < 0:
        at_bound = math.log(first.lam / bounds[0]) < NEARBY
        reason = f"r1 still rises as lambda falls to {first.lam:.3g}"
        kind: Kind = "lower_bound" if at_bound else "out_of_reach"
        found.append(_named(kind, first, f"{reason}, the lower bound" if at_bound else reason))
    if last.sign > 0:
        at_bound = math.log(bounds[1] / last.lam) < NEARBY
        reason = f"r1 still rises with lambda at {last.lam:.3g}"
        kind = "upper_bound" if at_bound else "out_of_reach"
        found.append(_named(kind, last, f"{reason}, the upper bound" if at_bound else reason))
    best = max(found, key=lambda o: o.r1)
    others = tuple(o.lam for o in found if o is not best and o.kind == "interior")
    return Optimum(**{**vars(best), "others": others})


def _on_a_line(a: Point, b: Point, curve: Sequence[Point]) -> Optimum:
    """The root between a, whose gradient is above 0, and b, whose gradient is below, and its error bar."""
    width, fall = math.log(b.lam / a.lam), a.grad.mean - b.grad.mean
    share = a.grad.mean / fall
    verdict = worst((a, b))
    far = max(stretch(p.grad) for p in (a, b)) * WIDER[verdict]
    se = far * math.hypot((1 - share) * a.grad.se, share * b.grad.se) * width / fall
    lam = a.lam * math.exp(share * width)
    at = min(curve, key=lambda p: abs(math.log(p.law.lam / lam)))
    half = quantile(len(at.grad.value)) * se
    interval = (lam * math.exp(-half), lam * math.exp(half))
    reason = f"r1 is highest at lambda = {lam:.4g}: below it r2 is over-optimised"
    named = of_an_interval(verdict, (a, b))
    return Optimum("interior", lam, at.law.r1.mean, named, reason, se, interval, evaluations=len(curve))


def _named(kind: Kind, at: Point, reason: str) -> Optimum:
    return Optimum(kind, at.lam, at.law.r1.mean, at.law.fit.verdict, reason)


def _closed_in(solve: SolveLaw, slope: LawEstimator, reach: Sequence[Point], a: Point, b: Point) -> Optimum:
    """The interior maximum between a, where F rises with lambda, and b, where it falls."""
    exact = math.isinf(a.law.fit.samples)
    lam, evaluations = falling_root(lambda x: slope(solve, x).mean, a.lam, b.lam, EXACTLY if exact else TOLERANCE)

    def here(x: float) -> Point:
        return point(solve, slope, x)

    at, factor = here(lam), math.exp(NEARBY)
    nearby = [here(x) for x in (lam / factor, lam * factor)]
    bend = (nearby[1].grad.mean - nearby[0].grad.mean) / (2 * NEARBY)
    reason = f"r1 is highest at lambda = {lam:.4g}: below it r2 is over-optimised"
    asked = (at, *nearby)
    ends = None if bend >= 0 else inverted(here, reach, at, worst(asked))
    if ends is not None:
        asked = (*asked, *(here(x) for x in ends))
        if worst(asked) != worst(asked[:3]):  # what holds at one end holds for the interval
            ends = inverted(here, reach, at, worst(asked))
    verdict = of_an_interval(worst(asked), asked)
    if ends is None or verdict == "refuse":
        return Optimum("interior", lam, at.law.r1.mean, verdict, reason, evaluations=evaluations)
    slack = EXACTLY + 2 * abs(at.law.covariance.mean / lam / bend) if exact else 0.0
    ends = (ends[0] * math.exp(-slack), ends[1] * math.exp(slack))
    log_se = math.log(ends[1] / ends[0]) / 2 / quantile(len(at.grad.value))
    return Optimum("interior", lam, at.law.r1.mean, verdict, reason, log_se, ends, evaluations=evaluations)


def inverted(
    here: Callable[[float], Point], reach: Sequence[Point], at: Point, verdict: Verdict
) -> tuple[float, float] | None:
    """The lambdas around a root at which the interval of the gradient holds 0; None where they have no end in reach.

    Each is as wide as `verdict` asks for, or as its own law does.
    """
    if not at.grad.se:
        return at.lam, at.lam

    def ends(p: Point) -> tuple[float, float]:
        return interval(p.grad, max(WIDER[verdict], WIDER[p.law.fit.verdict]))

    rising = next((p.lam for p in reversed(reach) if p.lam < at.lam and p.sign > 0 and ends(p)[0] > 0), None)
    falling = next((p.lam for p in reach if p.lam > at.lam and p.sign < 0 and ends(p)[1] < 0), None)
    if rising is None or falling is None:
        return None
    low, _ = falling_root(lambda x: ends(here(x))[0], rising, at.lam)
    high, _ = falling_root(lambda x: ends(here(x))[1], at.lam, falling)
    return low, high


def worst(points: Sequence[Point]) -> Verdict:
    return max((p.law.fit.verdict for p in points), key=VERDICTS.index)


def of_an_interval(verdict: Verdict, on: Sequence[Point]) -> Verdict:
    """What an interval is called that rests on laws with this verdict."""
    heavy = max(p.law.fit.tail for p in on) > HEAVY
    few = min(p.law.fit.samples * p.law.fit.prompts for p in on) < (LEAST_HEAVY if heavy else LEAST)
    return "doubtful" if few and verdict == "reliable" else verdict


def falling_root(
    g: Callable[[float], float], low: float, high: float, tolerance: float = TOLERANCE
) -> tuple[float, int]:
    """Where g falls through 0 between low and high, and how often g was asked.

    In the logarithm, by interpolation that is truncated and projected (Oliveira & Takahashi 2020,
    doi:10.1145/3423597), until both ends are within the tolerance, and on a line through g there. A smooth g is asked
    a few times, and no g much oftener than by bisection.
    """
    a, b = math.log(low), math.log(high)
    first, at = b - a, dict[float, float]()
    most = math.ceil(math.log2(max(first / tolerance, 1.0))) + 1
    while b - a > tolerance:
        x = middle = (a + b) / 2
        if (line := _on_the_line(at, a, b)) is not None:
            away = math.copysign(1.0, middle - line)
            shift = max(0.2 / first * (b - a) ** 2, tolerance / 2)  # past the root, so that the other end moves too
            x = line + away * shift if shift <= abs(middle - line) else middle
            slack = tolerance * 2.0 ** (most - len(at) - 1) - (b - a) / 2
            x = x if abs(x - middle) <= slack else middle - away * slack
        at[x] = g(math.exp(x))
        a, b = (x, b) if at[x] > 0 else (a, x)
    line = _on_the_line(at, a, b)
    return math.exp((a + b) / 2 if line is None else line), len(at)


def _on_the_line(at: Mapping[float, float], a: float, b: float) -> float | None:
    """Where the line through the values at both ends is 0; None where one of them is not known."""
    if a not in at or b not in at or not math.isfinite(at[a] - at[b]):
        return None
    return a + (b - a) * at[a] / (at[a] - at[b])


def matched(solve: SolveLaw, of: Callable[[Law], Measured], level: float, bounds: tuple[float, float]) -> float | None:
    """The lambda at which a number that falls as lambda rises, KL or E[r2], is `level`; None where it never is.

    Two ways of tilting meet at equal KL or E[r2], not at equal lambda; and a budget of KL is a lambda.
    """
    low, high = (of(solve(lam)).mean for lam in bounds)
    if not high <= level <= low:
        return None
    return falling_root(lambda lam: of(solve(lam)).mean - level, *bounds)[0]
