"""Best-of-n: of n samples of the pretrained model the one with the highest lower reward r2. It needs no training.

From m samples of a prompt in the order of r2, the sample of rank k is the best of n of them in C(k-1, n-1) of the
C(m, n) ways to choose n, whatever its reward r:

    w_k = C(k-1, n-1) / C(m, n) = [C(k, n) - C(k-1, n)] / C(m, n),        E[r] = sum_k w_k r_k

Equal samples share the mean weight of their ranks: which of them is taken, is drawn at random. E[r] is the mean over
all choices of n samples (a U-statistic, Hoeffding 1948), so it has no bias at any n <= m. With theta_i the mean over
the choices that contain sample i, leaving i out moves it by n / (m - n) (theta_i - E[r]): by the jackknife

    psi_i = (m - 1) / m  n / (m - n)  (theta_i - E[r])

With F the distribution function of r2 the law has the density n F^(n-1) with respect to the pretrained model's, so

    KL = log n - (n - 1) / n                                           r2 continuous: exact, for every r1 and r2
    KL = sum_g W_g log(W_g / p_g),  W_g = F_g^n - (F_g - p_g)^n        r2 with values g of probability p_g

which is smaller: among equal samples nothing is chosen. What was drawn once counts as continuous, so where a discrete
r2 has values that were drawn once, the KL errs on the large side. Prompts count the same, as on the curve over lambda.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genbo.bilevel.measured import Measured, Relative
from genbo.bilevel.regularization.bank import Bank

NUMBERS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64)
SAMPLES_EACH = 8  # of a prompt for each of the n; 95 % intervals then hold 0.94 to 0.99, or 0.89 of 64 samples in all


@dataclass(frozen=True)
class BestOfN:
    """Both rewards of the best of n samples by r2, and the KL divergence of that law from the pretrained model."""

    n: int
    r1: Measured
    r2: Measured
    kl: Relative


def numbers(samples: int) -> tuple[int, ...]:
    """The n that so many samples a prompt are enough for."""
    return tuple(n for n in NUMBERS if n * SAMPLES_EACH <= samples)


def line(bank: Bank) -> tuple[BestOfN, ...]:
    """Best-of-n at every n of `numbers`."""
    return tuple(best_of_n(bank, n) for n in numbers(bank.samples))


def at_most(found: Sequence[BestOfN], kl: float) -> BestOfN | None:
    """Of those with no more KL than this the one with the highest r1; None where even the smallest n has more."""
    return max((one for one in found if one.kl.mean <= kl), key=lambda one: one.r1.mean, default=None)


def best_of_n(bank: Bank, n: int) -> BestOfN:
    """The best of n >= 1 samples of each prompt, from a bank (C, m) with m > n.

    Raises:
        ValueError: where the bank is too small, or its noise was shifted: ranks are those of the pretrained model.
    """
    if not 1 <= n < bank.samples:
        raise ValueError(f"best-of-{n} cannot be computed from {bank.samples} samples a prompt; draw more than n")
    if bank.log_ratio.any():
        raise ValueError("best-of-n takes samples of the pretrained model itself, and this bank has shifted noise")
    order = _Order(bank.r2, n)
    return BestOfN(n, order.mean(bank.r1), order.mean(bank.r2), order.divergence())


class _Order:
    """Samples (C, m) in the order of r2; equal ones are a group, from rank `below` + 1 to rank `upto`."""

    def __init__(self, r2: Tensor, n: int) -> None:
        self.n, self.m = n, r2.shape[1]
        self.order = r2.argsort(dim=1, stable=True)
        ranked, rank = r2.gather(1, self.order), torch.arange(self.m).expand_as(r2)
        first = torch.ones_like(ranked, dtype=torch.bool)
        first[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
        last = torch.ones_like(first)
        last[:, :-1] = first[:, 1:]
        self.below = rank.where(first, 0).cummax(1).values  # (C, m)
        self.upto = (rank + 1).where(last, self.m).flip(1).cummin(1).values.flip(1)
        self.size = (self.upto - self.below).double()
        self.chances = _chances(self.m, n)  # (m,)
        self.share = self._in_groups(self.chances.expand_as(ranked)) / self.size  # that a sample is the best of its n

    def mean(self, r: Tensor) -> Measured:
        """E[r] and the influences, in the order of the bank."""
        r = r.gather(1, self.order)
        mean = self.n / self.m * (self.share * r).sum(1)
        with_it = self._mean_with(r)
        scale = (self.m - 1) / self.m * self.n / (self.m - self.n)
        influence = torch.zeros_like(r).scatter(1, self.order, scale * (with_it - mean[:, None]))
        return Measured(mean, influence)

    def _mean_with(self, r: Tensor) -> Tensor:
        """theta_i: it is the best itself, or another of its group is, or one above."""
        total = self._in_groups(r)
        others = (total - r) / (self.size - 1).clamp(min=1)
        within = self.chances[self.upto - 1]  # that the best is of its group
        steps = self.chances.diff(prepend=self.chances.new_zeros(1))
        upwards = (total / self.size * steps).flip(1).cumsum(1).flip(1)
        above = torch.cat([upwards, upwards.new_zeros(len(r), 1)], dim=1).gather(1, self.upto)
        return self.share * r + (within - self.share) * others + above

    def _in_groups(self, x: Tensor) -> Tensor:
        """Sums over each sample's group, (C, m)."""
        sums = torch.cat([x.new_zeros(len(x), 1), x.cumsum(1)], dim=1)
        return sums.gather(1, self.upto) - sums.gather(1, self.below)

    def divergence(self) -> Relative:
        """KL, and its influences, which are 0 where no sample equals another."""
        n, low, high = self.n, self.below.double() / self.m, self.upto.double() / self.m
        p, alone = self.size / self.m, self.size == 1
        taken = high**n - low**n
        each = torch.special.xlogy(taken, taken / p).where(~alone, _continuous(high, n) - _continuous(low, n))
        # dKL / dF at the upper and the lower end of each group, as seen from each of its samples
        log_ratio, ratio = (taken / p).log(), taken / p
        up = (n * high ** (n - 1) * (log_ratio + 1) - ratio).where(~alone, _slope(high, n))
        down = (ratio - n * low ** (n - 1) * (log_ratio + 1)).where(~alone, -_slope(low, n))
        # a sample raises F at both ends of the groups above its own, and at the upper end of its own
        ends = (up + down) / self.size
        above = torch.cat([ends.flip(1).cumsum(1).flip(1), ends.new_zeros(len(ends), 1)], dim=1).gather(1, self.upto)
        moved = above + up
        influence = torch.zeros_like(p).scatter(1, self.order, (moved - moved.mean(1, keepdim=True)) / self.m)
        kl = (each / self.size).sum(1)
        return Relative(kl, influence if not alone.all() else influence[:, :0])  # else it is exact, but for rounding


def _chances(m: int, n: int) -> Tensor:
    """C(k-1, n-1) / C(m-1, n-1) for k = 1 ... m: that n - 1 others are all below rank k."""
    k = torch.arange(1, m + 1, dtype=torch.float64)
    factors = [((k - j) / (m - j)).clamp(min=0) for j in range(1, n)]
    return torch.stack(factors).prod(0) if factors else torch.ones_like(k)


def _continuous(u: Tensor, n: int) -> Tensor:
    """The integral of n u^(n-1) log(n u^(n-1)) from 0 to u."""
    rest: Tensor = torch.special.xlogy(u**n, u)
    return u**n * (math.log(n) - (n - 1) / n) + (n - 1) * rest


def _slope(u: Tensor, n: int) -> Tensor:
    """n u^(n-1) log(n u^(n-1))."""
    density = n * u ** (n - 1)
    slope: Tensor = torch.special.xlogy(density, density)
    return slope
