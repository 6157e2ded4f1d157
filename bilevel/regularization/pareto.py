"""The tail of importance weights: its Pareto shape, and weights smoothed by it.

The largest M = min(n / 5, 3 sqrt(n)) weights are fitted by a generalised Pareto law (Zhang & Stephens 2009, with the
weak prior of Vehtari et al. 1507.02646) and replaced by its expected order statistics. The shape k says what a weighted
mean can promise: with k < 1/2 weights have a variance; with k > 0.7 the samples that would matter are not there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST_TAIL = 5  # weights that a tail needs to have a shape


def tail_length(n: int) -> int:
    """How many of n weights are the tail."""
    return math.ceil(min(0.2 * n, 3 * math.sqrt(n)))


def smoothed(logw: Tensor) -> tuple[Tensor, Tensor]:
    """Log-weights (C, n) with smoothed tails, and k of each row (C,); a tail that is too short for a shape has k inf.

    No weight becomes larger than the largest was.
    """
    n = logw.shape[1]
    m = tail_length(n)
    if m < LEAST_TAIL:
        return logw, torch.full(logw.shape[:1], torch.inf, dtype=logw.dtype)
    top = logw.max(1, keepdim=True).values
    order = logw.topk(m + 1).indices.flip(1)
    tail = order[:, 1:]
    cut = (logw.gather(1, order[:, :1]) - top).exp()  # the largest weight below the tail
    excess = (logw.gather(1, tail) - top).exp() - cut
    k, scale = shape(excess)
    at = (torch.arange(m, dtype=logw.dtype) + 0.5) / m
    expected = (cut + quantile(at, k[:, None], scale[:, None])).log().clamp(max=0) + top
    has_shape = k.isfinite()
    return logw.scatter(1, tail, torch.where(has_shape[:, None], expected, logw.gather(1, tail))), k


def shape(x: Tensor) -> tuple[Tensor, Tensor]:
    """k and scale (C,) of generalised Pareto laws, from excesses (C, m) >= 0 in rising order.

    A profile likelihood over b = -k / scale, averaged over a grid of b by its own posterior weights. k is drawn
    towards 1/2 as by ten more excesses. Excesses that are all 0 end where they begin, and k is -inf; those that are not
    numbers have k inf.
    """
    m = x.shape[1]
    grid = 30 + int(math.sqrt(m))
    j = torch.arange(1, grid + 1, dtype=x.dtype)
    quartile, largest = x[:, int(m / 4 + 0.5) - 1, None], x[:, -1:]
    positive = x.where(x > 0, torch.inf).amin(1, keepdim=True)  # ties with the cut must not make the grid infinite
    quartile = torch.where(quartile > 0, quartile, positive)
    b = 1 / largest + (1 - (grid / (j - 0.5)).sqrt()) / (3 * quartile)  # (C, grid)

    def shape_at(b: Tensor) -> Tensor:
        return torch.log1p(-b[:, :, None] * x[:, None, :]).mean(2)

    k = shape_at(b)
    profile = m * ((-b / k).log() - k - 1)
    weight = profile.nan_to_num(nan=-torch.inf).softmax(1)
    b_mean = (weight * b).sum(1, keepdim=True)
    k_mean = shape_at(b_mean)[:, 0]
    scale = -k_mean / b_mean[:, 0]
    sure = k_mean.isfinite() & scale.isfinite()
    k_drawn = torch.where(sure, (m * k_mean + 10 * 0.5) / (m + 10), torch.inf)
    return k_drawn.where((x != 0).any(1), -torch.inf), torch.where(sure, scale, 0.0)


def quantile(p: Tensor, k: Tensor, scale: Tensor) -> Tensor:
    """Of the generalised Pareto law that begins at 0: scale ((1 - p)^-k - 1) / k."""
    rate = -torch.log1p(-p)
    return torch.where(k.abs() < 1e-12, scale * rate, scale * torch.expm1(k * rate) / k)
