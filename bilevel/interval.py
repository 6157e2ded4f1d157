"""Intervals that hold where what is summed has a long tail on one side.

The weights of a law may look harmless while w (r1 - E[r1]) (r2 - E[r2]) has a tail: a sample then mostly misses it, the
mean *and* its standard error se come out small together, and two standard errors do not hold the truth. Two remedies:

    skewness    h(t) = t + g/6 + g t^2 / 3 + g^2 t^3 / 27,    t = (estimate - truth) / se,   g = skewness / sqrt(n)
    parts       h of a quarter of the samples against the whole, two hundred times: how far h really goes

h is nearer to normal than t (Hall 1992, J. R. Stat. Soc. B 54, 221), monotone, and has an inverse. A part is as far
from the whole as the whole is from the truth, and farther where tails are long: what is seen at a quarter errs on the
safe side (subsampling; Politis, Romano and Wolf 1999). No interval is shorter than the normal or Student's one.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import torch
from scipy.special import stdtrit
from torch import Tensor

from genbo.bilevel.measured import MANY_PROMPTS, Measured, Relative

LEVEL = 0.95
PART = 4  # the whole is so many times as large as a part
TRIALS = 200
OTHERS = 37  # trials from one prompt's part to the next one's
NORMAL = NormalDist().inv_cdf((1 + LEVEL) / 2)
LEAST_PART = 4  # samples a prompt in a part, below which parts are not asked


def quantile(prompts: int, level: float = LEVEL) -> float:
    """How many standard errors an interval reaches: Student's, where the error bar counts prompts."""
    p = (1 + level) / 2
    return student_t(p, prompts - 1) if prompts >= MANY_PROMPTS else NormalDist().inv_cdf(p)


def student_t(p: float, degrees: float) -> float:
    """Student's quantile."""
    return float(stdtrit(degrees, p))


def interval(found: Measured, wider: float = 1.0) -> tuple[float, float]:
    """A 95 % interval of the mean over prompts; `wider` multiplies both sides."""
    mean, se = found.mean, found.se
    if not se > 0 or not math.isfinite(mean):
        return mean, mean
    below, above = reach(found)
    return mean - wider * below * se, mean + wider * above * se


def reach(found: Measured) -> tuple[float, float]:
    """How far below and above the estimate the truth may lie, both > 0, in standard errors."""
    skew, parts = _skewness(found), _of_parts(found)
    low, high = (-NORMAL, NORMAL) if parts is None else _tails(to_hall(*parts))
    below, above = max(from_hall(high, skew), NORMAL), max(-from_hall(low, skew), NORMAL)
    return _among_prompts(found, below), _among_prompts(found, above)


def stretch(found: Measured) -> float:
    """By how much a standard error is too short, 1 or more: how far parts lie from the whole in theirs."""
    parts = _of_parts(found)
    if parts is None:
        return 1.0
    low, high = _tails(parts[0])
    return _among_prompts(found, max(-low, high)) / quantile(len(found.value))


def error(found: Measured) -> float:
    """The error bar of a number, three of which hold the truth: its standard error, widened where it is a KL.

    A KL is summed from few samples where the tilt is strong, and small where it is weak: three bars reach as far as any
    part of the samples lies from the whole, and the bar is one of its logarithm.
    """
    if not isinstance(found, Relative) or not found.se > 0:
        return found.se
    relative = min(found.se / found.mean, 1.0) if found.mean > 0 else 1.0
    return found.se * max(stretch(found), _farthest(found) / 3) * math.expm1(3 * relative) / (3 * relative)


def _farthest(found: Measured) -> float:
    """Of all parts the one farthest from the whole, in standard errors of samples; 0 where there are no parts."""
    parts = _of_parts(found) if len(found.value) < MANY_PROMPTS else None
    return 0.0 if parts is None else parts[0].abs().max().item()


def _among_prompts(found: Measured, far: float) -> float:
    """What is `far` among samples, in standard errors that may count prompts: these vary in more than their samples."""
    prompts = len(found.value)
    if prompts < MANY_PROMPTS:
        return far
    share = found.influence.square().sum().item() / prompts**2 / found.se**2  # of the variance, by samples alone
    return math.sqrt(quantile(prompts) ** 2 + (far**2 - NORMAL**2) * min(share, 1.0))


def of_difference(start: Measured, tuned: Measured, *, shared: bool) -> tuple[float, float]:
    """A 95 % interval of tuned - start; `shared` where both were measured on the same samples."""
    if shared:
        return interval(tuned - start)
    mean = tuned.mean - start.mean
    (low, high), (start_low, start_high) = interval(tuned), interval(start)
    return (
        mean - math.hypot(tuned.mean - low, start_high - start.mean),
        mean + math.hypot(high - tuned.mean, start.mean - start_low),
    )


def over_prompts(gaps: Tensor) -> tuple[float, float]:
    """Student's 95 % interval of the mean of what each prompt gained, (C,), for prompts like these."""
    mean = gaps.mean().item()
    half = student_t((1 + LEVEL) / 2, len(gaps) - 1) * gaps.std().item() / math.sqrt(len(gaps))
    return mean - half, mean + half


# -- skewness ----------------------------------------------------------------------------------------------------------


def to_hall(t: Tensor, skew: Tensor) -> Tensor:
    """h(t); `skew` is that of the mean, g: of the summands over sqrt(n)."""
    return t + skew / 6 + skew * t**2 / 3 + skew**2 * t**3 / 27


def from_hall(h: float, skew: float) -> float:
    """The t that has this h."""
    if abs(skew) < 1e-6:
        return h
    cube = 1 + skew * (h - skew / 6)
    return 3 / skew * (math.copysign(abs(cube) ** (1 / 3), cube) - 1)


def _skewness(found: Measured) -> float:
    """Of the mean over prompts, by its samples."""
    x = _summands(found)
    spread = x.square().sum().sqrt().item()
    return (x**3).sum().item() / spread**3 if spread > 0 else 0.0


# -- parts -------------------------------------------------------------------------------------------------------------


def _of_parts(found: Measured) -> tuple[Tensor, Tensor] | None:
    """t of each part against the whole and its skewness, (TRIALS,), or None where a part would be too small."""
    prompts, n = found.influence.shape
    m = n // PART
    if m < LEAST_PART:
        return None
    x, taken = _summands(found), chosen(n, m)
    first, second, third = (x**k @ taken for k in (1, 2, 3))  # (C, TRIALS)
    own = (torch.arange(TRIALS) + OTHERS * torch.arange(prompts)[:, None]) % TRIALS  # each prompt has its own parts
    t, skew = _studentised(first.gather(1, own), second.gather(1, own), third.gather(1, own), m)
    return t / math.sqrt(1 - m / n), skew  # a part is a part of the whole


def _tails(of_parts: Tensor) -> tuple[float, float]:
    """Where 95 % of the parts lie, and no nearer to 0 than those of a normal law."""
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=of_parts.dtype)
    low, high = of_parts.quantile(ends).tolist()
    return min(low, -NORMAL), max(high, NORMAL)


def _summands(found: Measured) -> Tensor:
    """(C, n) of mean 0 in each prompt, whose mean is what the samples made wrong."""
    x = found.influence * found.influence.shape[1]
    return x - x.mean(1, keepdim=True)


def _studentised(first: Tensor, second: Tensor, third: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """From sums of m summands, their squares and their cubes, (C, T) each: the sum over prompts of their means over its
    standard error, and its skewness, (T,). 0 where no sample differs from another.
    """
    mean = first / m
    total = mean.sum(0)
    square = (second - m * mean**2).sum(0) / m**2
    cube = (third - 3 * mean * second + 2 * m * mean**3).sum(0) / m**3
    some = square > 0
    sure = square.where(some, torch.ones_like(square))
    return (total / sure.sqrt()).where(some, 0.0), (cube / sure**1.5).where(some, 0.0)


@lru_cache(maxsize=2)
def chosen(n: int, m: int) -> Tensor:
    """m of n samples, TRIALS times: (n, TRIALS), 1 for those that are in. The same n has the same parts."""
    generator = torch.Generator().manual_seed(n)
    order = torch.rand(n, TRIALS, generator=generator).argsort(0)
    return (order < m).double()
