"""Maximum mean discrepancy: the squared distance of two sets as a kernel sees them, estimated without bias.

    D = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{ij} k(x_i, y_j)

x are N samples, y are M of the data. D is a U-statistic in x: its jackknife has a closed form, whose pseudo-values

    v_i = D + 2 (N-1)/(N-2) [mean_{j != i} k(x_i, x_j) - mean_{i != j} k] - 2 [mean_j k(x_i, y_j) - mean_ij k]

average to D exactly. Where both sets come from one law the first-order part vanishes, and their spread overstates the
error of D, by no more than sqrt(2).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

AT_ONCE = 2**23  # kernel values computed together: 64 MiB in float64

Kernel = Callable[[Tensor, Tensor], Tensor]


def values(x: Tensor, y: Tensor, within: Tensor, kernel: Kernel) -> Tensor:
    """v (N,), differentiable in x (N, D); `within` is the data's own mean, of distinct pairs."""
    n = len(x)
    own = means_of_others(x, kernel)
    across = torch.cat([kernel(rows, y).mean(1) for rows in x.split(max(1, AT_ONCE // len(y)))])
    distance = own.mean() + within - 2 * across.mean()
    return distance + 2 * (n - 1) / max(n - 2, 1) * (own - own.mean()) - 2 * (across - across.mean())


def means_of_others(x: Tensor, kernel: Kernel) -> Tensor:
    """The mean of k(x_i, x_j) over all j but i, (N,)."""
    sums = []
    for numbers in torch.arange(len(x), device=x.device).split(max(1, AT_ONCE // len(x))):
        block = kernel(x[numbers], x)
        itself = numbers[:, None] == torch.arange(len(x), device=x.device)
        sums.append(torch.where(itself, 0, block).sum(1))
    return torch.cat(sums) / (len(x) - 1)


def polynomial(degree: int, gamma: float, coefficient: float) -> Kernel:
    """(gamma <x, y> + coefficient)^degree."""
    return lambda x, y: (gamma * x @ y.T + coefficient) ** degree


def gaussian(bandwidths: Tensor) -> Kernel:
    """exp(-|x - y|^2 / (2 s^2)), averaged over the bandwidths s."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        away = squared_distances(x, y)
        return torch.stack([(away / (-2 * s * s)).exp() for s in bandwidths]).mean(0)

    return kernel


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, M); not below 0 by rounding."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)


def median_distance(y: Tensor, most: int = 1000) -> Tensor:
    """The median distance between two of the data, by at most `most` of them, evenly spread."""
    some = y[torch.linspace(0, len(y) - 1, min(len(y), most), device=y.device).round().long()]
    first, second = torch.triu_indices(len(some), len(some), 1, device=y.device)
    return squared_distances(some, some)[first, second].sqrt().median()
