"""What is known of the tilted law: means, KL and covariance, each with what every sample did to it.

    p_lambda  proportional to  p0 exp(r2 / lambda)                 the lower level, for each prompt
    p_gamma   proportional to  p0 exp((r2 + r1 / gamma) / lambda)  the same with the upper reward let in

Each is a number with its influences (`bilevel.measured`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from genbo.bilevel.measured import Measured
from genbo.bilevel.protocols import Estimator

ALONE = 4.0  # effective samples a prompt, below which it hangs on one or two
MEANLESS = 0.99  # a tail so heavy that no number of samples is enough
EVEN = 2.0  # the largest weight, in units of the average: up to here the shape of the tail does not matter

Verdict = Literal["reliable", "doubtful", "refuse"]
VERDICTS: tuple[Verdict, ...] = ("reliable", "doubtful", "refuse")


@dataclass(frozen=True)
class Fit:
    """How well samples know a law: effective size, largest weight, tail of the weights, samples a prompt.

    Measured on exact worlds over a range of lambdas, where the first thresholds come from: 95 % intervals hold the
    truth in 0.93 of the cases where they are reliable, in 0.73 where they are doubtful and in 0.29 elsewhere. Beyond
    them the failure is silent: one weight stands for all, and the covariance and its error bar both go to 0. Towards
    the edge a bank that happens to miss the tail looks better than it is, so what rests on it wants fresh samples drawn
    nearer. With many prompts no weight is large, but each prompt's own group must still be large enough for the tail,
    or all of them lean the same way.
    """

    ess: float
    max_weight: float
    khat: float
    samples: float
    prompts: int = 1

    @property
    def tail(self) -> float:
        """k where it matters: it has no scale, and weights that are nearly even have tails of any shape."""
        return self.khat if self.max_weight * self.ess > EVEN else min(self.khat, 0.0)

    @property
    def enough(self) -> float:
        """Samples that a prompt needs at the very least where weights have this tail (Vehtari et al. 1507.02646)."""
        return 10 ** (1 / (1 - max(self.tail, 0.0))) if self.tail < MEANLESS else math.inf

    @property
    def verdict(self) -> Verdict:
        each = self.ess / self.prompts  # over many prompts no weight is large, and yet each may hang on one sample
        if self.max_weight <= 0.01 and self.tail <= 0.5 and self.samples >= 2 * self.enough and each >= 2 * ALONE:
            return "reliable"
        some = self.max_weight <= 0.05 and self.tail <= 0.7 and self.samples >= self.enough and each >= ALONE
        return "doubtful" if some else "refuse"


EXACT = Fit(ess=math.inf, max_weight=0.0, khat=-math.inf, samples=math.inf)


@dataclass(frozen=True)
class Law:
    """One law, as a lower solver knows it; with `gamma` it is p_gamma, without p_lambda.

    `covariance` is Cov(r1, r2) under the law, `kl` its KL divergence from the pretrained model in nats.
    """

    lam: float
    gamma: float | None
    r1: Measured
    r2: Measured
    kl: Measured
    covariance: Measured
    r1_sd: float
    fit: Fit


class SolveLaw(Protocol):
    """The lower level at any lambda, with the world or the samples that it is known by."""

    def __call__(self, lam: float, gamma: float | None = None) -> Law:
        """The law at lambda > 0, with the upper reward let in by 1 / gamma where gamma is given."""


LawEstimator: TypeAlias = Estimator[SolveLaw, float, Measured]  # lambda -> dF / dlog lambda, F the mean of r1 there
