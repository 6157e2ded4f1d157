"""Weighted sums of both rewards: what is tuned where nobody chooses between a reward to raise and one to keep.

    p_w  proportional to  p0 exp((r1 + w r2) / tau)            w >= 0, and tau the strength of the KL term

The penalised law of `bilevel.regularization.tilted` at gamma = w and lambda = tau / w. Laws are compared at equal
KL: tau is the one at which KL(p_w || p0) has the level that is given. As w grows p_w becomes the tilt by r2 of that KL.
At one KL no law has a higher E[r1] + w E[r2] than p_w: the weights draw the best trade between both, and each w is
another choice of it. The weight is given in units of sd(r1) / sd(r2), so that 1 counts both rewards the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from genbo.bilevel.regularization.bank import Bank
from genbo.bilevel.regularization.curve import matched
from genbo.bilevel.regularization.tilted import Law, SolveLaw

WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0)  # in units of sd(r1) / sd(r2)
NOTHING = 1e-6  # of the lower reward's spread: a sum that varies less is the same for every sample
FAR = 2.0**8  # how far from where it begins a strength is looked for


@dataclass(frozen=True)
class WeightedSum:
    """The law of r1 + w r2: `weight` is w in the rewards' own units, `strength` is tau."""

    weight: float
    strength: float
    law: Law


def at_kl(solve: SolveLaw, bank: Bank, kl: float) -> tuple[WeightedSum, ...]:
    """The law of every weight at this KL > 0, in nats; without those of which the samples tell too little.

    `bank` holds samples of the pretrained model, whose spreads are the units of weights and strengths.
    """
    r1, r2 = (_spread(r) for r in (bank.r1, bank.r2))
    found = []
    for weight in (share * r1 / r2 for share in WEIGHTS):
        spread = _spread(bank.r2 + bank.r1 / weight)
        if spread < NOTHING * r2:
            continue
        begin = spread / math.sqrt(2 * kl)  # where both rewards are linear and p0 normal
        lam = matched(partial(_with, solve, weight), lambda law: law.kl, kl, (begin / FAR, begin * FAR))
        law = None if lam is None else solve(lam, weight)
        if lam is not None and law is not None and law.fit.verdict != "refuse":
            found.append(WeightedSum(weight, lam * weight, law))
    return tuple(found)


def _with(solve: SolveLaw, weight: float, lam: float, gamma: float | None = None) -> Law:
    return solve(lam, weight)


def _spread(r: Tensor) -> float:
    """The standard deviation within prompts of r (C, n)."""
    return r.var(1).mean().sqrt().item()
