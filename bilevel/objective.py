"""What is maximised over the prompts: the mean of all of them, or of those with the lowest rewards.

    m_p(phi) = E[reward of prompt p],    b_p its share of the prompts
    F(phi)   = min over w of sum_p w_p m_p(phi),    0 <= w_p <= b_p / alpha,    sum_p w_p = 1

This is the conditional value at risk of the lower tail (Rockafellar and Uryasev 2000): the mean of the worst
alpha-share of the prompts, with the prompt at the boundary counted in part. alpha = 1 is the mean over all prompts,
and alpha -> 0 the worst prompt. Where the minimising w is unique, the gradient of F is that of sum_p w_p m_p with w
held fixed (Danskin's theorem). At a tie of prompts F has a kink. With a temperature tau > 0

    F_tau(phi) = min over w of sum_p w_p m_p(phi) + tau KL(w || b),    w_p = min(b_p / alpha, kappa b_p exp(-m_p / tau))

has a gradient everywhere, with F <= F_tau <= F + tau log(1 / alpha), and for the worst prompt log(1 / min b).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Objective:
    """`share` is alpha, in [0, 1]: 1 is the mean over all prompts, 0 the worst prompt alone."""

    share: float = 1.0

    @property
    def is_mean(self) -> bool:
        """Whether it is the mean over all prompts."""
        return self.share >= 1

    @property
    def name(self) -> str:
        """As a job writes it, on one line."""
        return "mean" if self.is_mean else f"cvar: {self.share:g}" if self.share else "worst"

    def weights(self, means: Tensor, base: Tensor | None = None, temperature: float = 0.0) -> Tensor:
        """The minimising w of each prompt, (C,) in float64, of sum 1; prompts of equal mean share their weight.

        Args:
            means: of each prompt, (C,).
            base: the share of each prompt, (C,), of sum 1; by default all count the same.
            temperature: tau, in the units of the means, 0 or more.
        """
        import torch

        means = means.double()
        base = torch.full_like(means, 1 / len(means)) if base is None else base.double()
        if self.is_mean:
            return base
        return _soft(means, base, self.share, temperature) if temperature > 0 else _hard(means, base, self.share)

    def value(self, means: Tensor, base: Tensor | None = None) -> Tensor:
        """F of the means (C,) of the prompts, a scalar in float64; differentiable in them (Danskin's theorem)."""
        found: Tensor = (self.weights(means.detach(), base) * means.double()).sum()
        return found


MEAN = Objective()


def _hard(means: Tensor, base: Tensor, share: float) -> Tensor:
    """From the lowest mean upwards, as much of each level as there is room for."""
    levels, of = means.unique(return_inverse=True)  # in ascending order
    size = base.new_zeros(len(levels)).index_add(0, of, base)
    room = max(share, size[0].item())  # a lowest level that is larger than the share has all the weight
    taken = ((room - (size.cumsum(0) - size)) / size).clamp(0, 1)
    weights = base * taken[of]
    return weights / weights.sum()


def _soft(means: Tensor, base: Tensor, share: float, temperature: float) -> Tensor:
    """From the lowest mean upwards, j prompts at their cap, and the others in proportion to b exp(-m / tau)."""
    import torch

    order = means.argsort()
    b, logits = base[order], base[order].log() - (means[order] - means.min()) / temperature
    cap = b / max(share, 1e-12)
    left = 1 - (cap.cumsum(0) - cap)  # of the weight, where all before a prompt are at their cap
    log_kappa = left.log() - logits.flip(0).logcumsumexp(0).flip(0)
    fits = (left > 0) & (log_kappa + logits <= cap.log() + 1e-12)
    j = int(fits.int().argmax())  # the first that is below its cap
    sorted_weights = torch.where(torch.arange(len(b)) < j, cap, (log_kappa[j] + logits).exp())
    weights = torch.empty_like(base)
    weights[order] = sorted_weights
    return weights / weights.sum()
