"""A bank: samples of the pretrained model, kept as nothing but their two rewards.

Every law p_lambda is a reweighting of them, so the network is called once for all lambda. A sample drawn from another
law q, as `bilevel.bridge` draws them, brings log p0 / q, and the weights of p_lambda are exp(r2 / lambda) p0 / q.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genbo.bilevel.problem import Reward
from genbo.diffusion.process import Process
from genbo.diffusion.sample import sample
from genbo.diffusion.seed import Batch, Seed

LEAST_SAMPLES = 2  # a prompt: fewer have no covariance

Weighted = Sequence[tuple[float, Reward]]


@dataclass(frozen=True)
class Bank:
    """The upper reward r1 and the lower reward r2 of n samples for each of C prompts, (C, n) in float64.

    `log_ratio` is log p0 / q of each sample, 0 where it was drawn from the pretrained model itself.
    """

    r1: Tensor
    r2: Tensor
    log_ratio: Tensor

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
    return Bank(*(torch.cat([getattr(b, name) for b in (bank, more)], dim=1) for name in ("r1", "r2", "log_ratio")))


def draw(
    process: Process, prompts: Sequence[str], upper: Weighted, lower: Weighted, samples: int, seed: Seed, first: int = 0
) -> Bank:
    """Samples `first` to `first + samples - 1` of each prompt, scored; each depends on the seed and its number alone.

    So a bank that is drawn in parts and joined is the bank drawn at once.
    """
    texts = tuple(prompt for prompt in prompts for _ in range(samples))
    numbers = [(c, n) for c in range(len(prompts)) for n in range(first, first + samples)]
    batch = Batch(texts, tuple(seed.child("bank", c, n).value for c, n in numbers))
    scores = []
    with torch.no_grad():
        for chunk in batch.chunks(process.batch):
            images = process.model.decode(sample(process, chunk))
            process.meter.reward_images += len(images)
            scores.append(torch.stack([total(rewards, images, chunk.prompts) for rewards in (upper, lower)]).cpu())
    r1, r2 = torch.cat(scores, dim=1).reshape(2, len(prompts), samples)
    return bank_of(r1, r2)


def total(rewards: Weighted, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """The weighted sum of rewards of each image, (B,) in float64."""
    return torch.stack([weight * reward(images, prompts).double() for weight, reward in rewards]).sum(0)


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
    return found
