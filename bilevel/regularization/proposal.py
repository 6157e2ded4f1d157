"""Samples nearer to p_lambda than the pretrained model's own: the noise is shifted before it is turned into samples.

The sampler turns noise z ~ N(0, I) into x = S(z), so p_lambda is the law of S(z) for z ~ N(0, I) exp(r2(S(z)) / lambda)
and a proposal for z has a density that is known exactly, whatever S is:

    q(z) = sum_k a_k N(z; m_k, I),   m_1 = 0        log p0 / q = -log sum_k a_k exp(z.m_k - |m_k|^2 / 2)

The first component keeps p0 / q below 1 / a_1, so no weight grows beyond what plain samples have. The shifts are chosen
on a pilot, frozen, and the pilot thrown away: samples that chose the shifts would lean towards them.

    where r2 has gradients    m = E_lambda[grad_z r2(S(z))] / lambda      by Stein's identity the mean of z itself
    where it has none         m = E_lambda[z], shrunk by what noise alone would give: 1 - d / (ESS |m|^2)

In high dimensions the first has far less noise. Neither sees two opposite modes; the tail of the weights then does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genbo.bilevel.regularization.rounds import PILOT_ROUNDS

ROUNDS = PILOT_ROUNDS
SHARES = (0.2, 0.2, 0.6)  # of the frozen mixture: no shift, half way, the whole way

Field = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""z (C, n, d) -> r2 (C, n), and its gradient in z, (C, n, d), or None where there is none."""


@dataclass(frozen=True)
class Shifts:
    """A mixture of shifted normal laws for each prompt: means (C, K, d), the first of them 0, and shares (K,)."""

    means: Tensor
    shares: Tensor

    def place(self, z: Tensor) -> Tensor:
        """Standard normal z (C, n, d) -> draws of the mixture: as many of each component as its share says."""
        return z + self.means[:, self.components(z.shape[1])]

    def components(self, n: int) -> Tensor:
        """Which of them each of n samples of a prompt is drawn from, (n,)."""
        ends = (self.shares.cumsum(0) * n).round().long()
        return torch.searchsorted(ends, torch.arange(n), right=True).clamp(max=len(self.shares) - 1)

    def log_ratio(self, z: Tensor) -> Tensor:
        """log p0 / q at z (C, n, d): (C, n)."""
        along = torch.einsum("cnd,ckd->cnk", z, self.means) - self.means.square().sum(-1)[:, None] / 2
        return -(along + self.shares.log()).logsumexp(-1)


def unshifted(prompts: int, d: int) -> Shifts:
    return Shifts(torch.zeros(prompts, 1, d, dtype=torch.float64), torch.ones(1, dtype=torch.float64))


def pilot(field: Field, z: Tensor, lam: float) -> Shifts:
    """Shifts towards p_lambda, from standard normal noise (C, n, d) in `ROUNDS` equal parts.

    The first round looks no farther than plain samples see, the spread of r2; the last looks at lambda itself.
    """
    shifts, means, start = unshifted(z.shape[0], z.shape[2]), [], torch.zeros(z.shape[0], dtype=z.dtype)
    for k, noise in enumerate(z.chunk(ROUNDS, dim=1)):
        placed = shifts.place(noise)
        r2, grad = field(placed)
        r2 = r2.double()
        if k == 0:
            start = r2.std(1).clamp(min=lam)
        here = start * (lam / start) ** (k / (ROUNDS - 1))  # (C,)
        w = (r2 / here[:, None] + shifts.log_ratio(placed)).softmax(1)
        means.append(_by_stein(w, grad.double(), here) if grad is not None else _by_mean(w, placed))
        shifts = _mixture(means, torch.full((k + 2,), 1 / (k + 2), dtype=z.dtype))
    return _mixture(means[-2:], torch.tensor(SHARES, dtype=z.dtype))


def _mixture(means: list[Tensor], shares: Tensor) -> Shifts:
    return Shifts(torch.stack([torch.zeros_like(means[0]), *means], dim=1), shares)


def _by_stein(w: Tensor, grad: Tensor, lam: Tensor) -> Tensor:
    return torch.einsum("cn,cnd->cd", w, grad) / lam[:, None]


def _by_mean(w: Tensor, z: Tensor) -> Tensor:
    mean = torch.einsum("cn,cnd->cd", w, z)
    noise = z.shape[2] * w.square().sum(1) / mean.square().sum(1)  # the part of |m|^2 that is there without any shift
    return mean * (1 - noise).clamp(min=0)[:, None]
