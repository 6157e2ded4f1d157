"""Samples of a law p_lambda, drawn from a bank by their weights.

    w_cn  proportional to  exp(r2_cn / lambda) p0 / q (x_cn)        c a prompt, n a sample of it

Sampling importance resampling (Rubin 1987): each draw takes sample n with its normalised weight, so as the bank grows
what is drawn is distributed as p_lambda. To look at, where samples are points and not images; estimates use the
weights themselves, which are less noisy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genbo.bilevel.regularization.bank import Bank


def resampled(bank: Bank, lam: float, number: int, generator: torch.Generator) -> Tensor:
    """`number` samples of each prompt, with replacement: (C, number, *shape), from a bank that holds its samples `x`.

    Raises ValueError where it holds none.
    """
    if bank.x is None:
        raise ValueError("this bank does not hold its samples")
    weights = (bank.r2 / lam + bank.log_ratio).softmax(1)  # (C, n)
    chosen = torch.multinomial(weights, number, replacement=True, generator=generator)  # (C, number)
    return torch.stack([x[rows] for x, rows in zip(bank.x, chosen, strict=True)])
