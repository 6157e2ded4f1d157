"""The times at which a network can be called, from pure noise to the image, and the noise level at each.

A network of Stable Diffusion's kind was trained at the whole times 0 ... T - 1, the noisiest last. Between two of them
log-SNR is a straight line in time, which is diffusers' own way back from a sigma to a time; the image itself stands one
step before time 0. An exact world is told its log-SNR in place of a time, and a flow model T sigma, with alpha = 1 -
sigma.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 1e-3  # of the range: the least distance of two stops where times are not counted in training steps


@dataclass(frozen=True)
class Clock:
    """Times from `noisiest` to `cleanest`: training steps where they fall on the way, and log-SNRs where they rise.

    `table` is the log-SNR (T,) at the training steps 0 ... T - 1.
    """

    noisiest: float
    cleanest: float
    table: Tensor | None = None

    @property
    def falls(self) -> bool:
        """Whether times fall on the way from noise to the image, as training steps do."""
        return self.noisiest > self.cleanest

    @property
    def image(self) -> float:
        """Where no noise is left: the end of the last step."""
        return self.cleanest - 1 if self.falls else self.cleanest

    @property
    def least(self) -> float:
        """The least distance of two stops: a training step, where there are any."""
        return 1.0 if self.falls else abs(self.image - self.noisiest) * LEAST

    def log_snr(self, time: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2) at any times, differentiable in them."""
        if self.table is None:
            return time
        table = self.table.to(time)
        left = time.detach().floor().clamp(0, len(table) - 2).long()
        return table[left] + (time - left) * (table[left + 1] - table[left])

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`, held within the times that may be told."""
        import torch

        if self.table is None:
            return log_snr.clamp(self.noisiest, self.cleanest)
        falling = -self.table.to(log_snr)  # rises with time
        right = torch.searchsorted(falling, -log_snr).clamp(1, len(falling) - 1)
        left = right - 1
        share = (-log_snr - falling[left]) / (falling[right] - falling[left])
        return left + share.clamp(0, 1)

    def settled(self, times: Tensor) -> Tensor:
        """Stops (..., N) as they can be handed to any scheduler: whole times, still apart."""
        import torch

        if self.table is None:
            return times
        whole, steps = times.round(), times.shape[-1]
        low = torch.arange(steps - 1, -1, -1).to(whole)  # as many steps as are still to come
        found = [whole[..., 0]]
        for i in range(1, steps):
            found.append(torch.minimum(whole[..., i].maximum(low[i]), found[-1] - 1))
        return torch.stack(found, dim=-1)


@dataclass(frozen=True)
class FlowClock(Clock):
    """Times T sigma, from T, where there is nothing but noise, to 1; x_t = (1 - sigma) x_0 + sigma eps."""

    def log_snr(self, time: Tensor) -> Tensor:
        """2 log((1 - sigma) / sigma); at the noisiest, where it is minus infinity, what it is a step before."""
        held = time.clamp(max=self.noisiest - self.least)
        return 2 * ((self.noisiest - held).log() - held.log())

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`, held within the times that the network may get."""
        return (self.noisiest * (-log_snr / 2).sigmoid()).clamp(self.cleanest, self.noisiest)
