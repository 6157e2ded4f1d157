"""The denoising loss: how far a network is from saying what was mixed into its input.

    L(theta; q) = E w(lambda) |target - net(x_t, told)|^2,       x_t = alpha x + sigma eps

    target   eps,   or   v = alpha eps - sigma x,   or   x                        as `prediction` says
    w        1, or Hang et al.'s min-SNR (2303.09556) with SNR = e^lambda, the same for all three when seen in x:
             min(1, c / SNR) for eps,   min(SNR, c) / (SNR + 1) for v,   min(SNR, c) for x

Where lambda comes from is what makes L depend on the schedule q, or not:

    broad       lambda is uniform on a fixed range: q has no part in L, and one network serves every schedule
    schedule    lambda = lambda_q(t), t uniform, or uniform over the table's entries where the network is told the index

A minibatch carries everything that is random, so the losses of two networks or of two schedules can share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from genbo.diffusion.network import call, told_of_log_snr
from genbo.schedules.schedule import of_log_snr

if TYPE_CHECKING:
    from genbo.schedules.schedule import Schedule, Told


@dataclass(frozen=True)
class Minibatch:
    """B clean samples with the noise mixed into them and where in (0, 1] of the noise levels they stand."""

    x: Tensor  # (B, *shape)
    eps: Tensor  # (B, *shape)
    at: Tensor  # (B,) in float64
    labels: Tensor | None = None  # (B,)


def minibatch(
    data: Tensor,
    size: int,
    generator: torch.Generator,
    labels: Tensor | None = None,
    *,
    unlabelled: float = 0.0,
    none: int = -1,
) -> Minibatch:
    """Drawn where the data and the generator live. Noise levels are spread evenly, from one random offset.

    A share `unlabelled` of the labels is replaced by `none`, the label that stands for no class.
    """
    device = data.device
    rows = torch.randint(len(data), (size,), device=device, generator=generator)
    eps = torch.randn((size, *data.shape[1:]), device=device, dtype=data.dtype, generator=generator)
    offset = torch.rand((), device=device, dtype=torch.float64, generator=generator)
    at = 1 - (torch.arange(size, device=device) + offset) / size
    if labels is not None:
        drop = torch.rand(size, device=device, generator=generator) < unlabelled
        labels = labels[rows].masked_fill(drop, none)
    return Minibatch(data[rows], eps, at, labels)


@dataclass(frozen=True)
class DenoisingLoss:
    """Which loss; a function of a module, a schedule and a minibatch, differentiable in the first two."""

    prediction: Literal["epsilon", "v_prediction", "sample"] = "v_prediction"
    conditioning: Told = "log_snr"
    noise_levels: Literal["broad", "schedule"] = "broad"
    within: tuple[float, float] = (-12.0, 12.0)
    snr_cap: float | None = 5.0
    train_steps: int = 1000

    @property
    def coupled(self) -> bool:
        """Whether the schedule has a part in this loss."""
        return self.noise_levels == "schedule"

    def levels(self, schedule: Schedule, at: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, sigma, lambda and what the network is told, (B,) each, in float64."""
        if self.noise_levels == "broad":
            low, high = self.within
            log_snr = high + (low - high) * at
            return *of_log_snr(log_snr), log_snr, told_of_log_snr(log_snr, self.within)
        index = None
        if self.conditioning == "index":
            index = (at * self.train_steps).ceil().clamp(1, self.train_steps) - 1
            at = (index + 1) / self.train_steps
        alpha, sigma = schedule.levels(at)
        log_snr = schedule.log_snr(at)[0]
        return alpha[0], sigma[0], log_snr, told_of_log_snr(log_snr, self.within) if index is None else index

    def weight(self, log_snr: Tensor) -> Tensor:
        """w, (B,)."""
        if self.snr_cap is None:
            return torch.ones_like(log_snr)
        snr = log_snr.exp()
        match self.prediction:
            case "epsilon":
                return (self.snr_cap / snr).clamp(max=1)
            case "v_prediction":
                return snr.clamp(max=self.snr_cap) / (snr + 1)
            case "sample":
                return snr.clamp(max=self.snr_cap)

    def __call__(self, module: torch.nn.Module, schedule: Schedule, batch: Minibatch) -> Tensor:
        axes = (-1, *(1,) * (batch.x.ndim - 1))
        alpha, sigma, log_snr, told = self.levels(schedule, batch.at)
        w, told = self.weight(log_snr).to(batch.x.dtype), told.to(batch.x.dtype)
        alpha, sigma = (level.to(batch.x.dtype).reshape(axes) for level in (alpha, sigma))
        output = call(module, alpha * batch.x + sigma * batch.eps, told, batch.labels)
        error = (output.to(batch.x.dtype) - self._target(alpha, sigma, batch)).flatten(1)
        return (w * error.square().mean(1)).mean()

    def _target(self, alpha: Tensor, sigma: Tensor, batch: Minibatch) -> Tensor:
        match self.prediction:
            case "epsilon":
                return batch.eps
            case "v_prediction":
                return alpha * batch.eps - sigma * batch.x
            case "sample":
                return batch.x
