"""A bank: samples of the pretrained model, of which two rewards are all that is asked.

Every law p_lambda is a reweighting of them, so the network is called once for all lambda. A sample drawn from another
law q, as `bilevel.regularization.proposal` draws them, brings log p0 / q, and the weights of p_lambda are
exp(r2 / lambda) p0 / q.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_SAMPLES = 2  # a prompt: fewer have no covariance


@dataclass(frozen=True)
class Bank:
    """The upper reward r1 and the lower reward r2 of n samples for each of C prompts, (C, n) in float64.

    `log_ratio` is log p0 / q of each sample, 0 where it was drawn from the pretrained model itself. `x` holds the
    samples themselves, (C, n, *shape), where something is to be learned from them, and `kept` the rewards that must
    not fall below a level, (C, n, K) in float64, where there are any.
    """

    r1: Tensor
    r2: Tensor
    log_ratio: Tensor
    x: Tensor | None = None
    kept: Tensor | None = None

    @property
    def prompts(self) -> int:
        return self.r1.shape[0]

    @property
    def samples(self) -> int:
        """A prompt."""
        return self.r1.shape[1]


def bank_of(r1: Tensor, r2: Tensor, log_ratio: Tensor | None = None) -> Bank:
    """A bank of rewards (C, n), or (n,) for a single prompt, in any precision."""
    r1, r2 = (r.detach().cpu().double().reshape(-1, r.shape[-1]) for r in (r1, r2))
    return Bank(r1, r2, torch.zeros_like(r1) if log_ratio is None else log_ratio.double().reshape(r1.shape))


def joined(bank: Bank, more: Bank) -> Bank:
    """Both banks in one; they must have been drawn from the same law."""
    r1, r2, log_ratio = (torch.cat([getattr(b, n) for b in (bank, more)], dim=1) for n in ("r1", "r2", "log_ratio"))
    x, kept = (
        None if a is None or b is None else torch.cat([a, b], dim=1)
        for a, b in ((bank.x, more.x), (bank.kept, more.kept))
    )
    return Bank(r1, r2, log_ratio, x, kept)


def mistakes(bank: Bank, prompts: Sequence[str]) -> list[str]:
    """Why nothing can be concluded from these samples, a sentence each; empty where something can."""
    if bank.samples < LEAST_SAMPLES:
        return [f"{bank.samples} sample a prompt has no spread to learn from; draw at least {LEAST_SAMPLES} a prompt"]
    found = []
    for what, r in (("upper", bank.r1), ("lower", bank.r2)):
        broken = (~r.isfinite()).sum(1)
        if broken.any():
            found.append(
                f"the {what} reward is not a finite number for {int(broken.sum())} of {r.numel()} samples, "
                f"most often for {prompts[int(broken.argmax())]!r}; mend the reward, or leave that prompt out"
            )
        elif (r == r[:, :1]).all():
            found.append(
                f"the {what} reward is the same for every sample of a prompt, so no lambda can change it; "
                "take a reward that tells samples apart"
            )
    if bank.kept is not None and not bank.kept.isfinite().all():
        broken = (~bank.kept.isfinite()).sum((1, 2))
        found.append(
            f"a reward under keep: is not a finite number for {int(broken.sum())} of {bank.kept.numel()} scores, most "
            f"often for {prompts[int(broken.argmax())]!r}; mend the reward, or leave that prompt out"
        )
    return found
