"""A noise schedule: from time t in [0, 1] to the scales of signal and noise, for M members at once.

    x_t = alpha_t x_0 + sigma_t eps,     alpha_t^2 + sigma_t^2 = 1,     log-SNR  lambda_t = log(alpha_t^2 / sigma_t^2)

A family (a file of this room each) gives the shape of lambda_t between two ends that are parameters themselves,

    lambda_0 = log_snr_max  (little noise)  ->  lambda_1 = log_snr_min  (little signal)

so how much signal is left at the end of time is chosen and not left over. Families that are written as a falling
power f(t), as Chen's (2301.10972) are, are stretched between the ends:

    alpha_t^2 = a_1 + (a_0 - a_1) (f(t) - f(1)) / (f(0) - f(1)),
    a_0 = sigmoid(log_snr_max),   a_1 = sigmoid(log_snr_min)

or, where `normalised` is off, f(t) / f(0) stands in place of the fraction, and f(1) is the signal that sampling from
pure noise will miss. A small share of the straight line is mixed into lambda_t, so that it falls strictly, for any
parameters: no step of a sampler has zero length.

With `zero_terminal`, alpha_t is stretched once more so that alpha_1 = 0 (Lin et al. 2305.08891, Alg. 1). At t = 1 there
is then nothing to be learned about the noise, and a network that predicts it says nothing of x_0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from genbo.schedules.link import Bounded, Link

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genbo.schedules.grid import Grid

LINE = 1e-4  # the share of the straight line in lambda_t
LOWEST = -20.0  # what a network is told, and what log_snr says, where there is no signal at all

ENDS = {"log_snr_max": Bounded(4.0, 16.0), "log_snr_min": Bounded(-16.0, -4.0)}

Told = Literal["log_snr", "index"]


class Family(Protocol):
    """A shape; a file in `schedules/` each, whose class inherits from this one.

    Its fields are the parameters that it starts from, and options, which have no link.
    """

    @property
    def links(self) -> Mapping[str, Link]:
        """Its parameters, the two ends among them, each with the domain that it stays in."""

    def starts(self) -> dict[str, list[float]]:
        """The parameters as they stand in its fields."""

    def log_snr(self, t: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        """lambda_t (M, T) at t (M or 1, T) for parameters (M, size); it never rises."""


@dataclass(frozen=True)
class Schedule:
    """A family at its parameters, each (M, size) in float64."""

    family: Family
    values: Mapping[str, Tensor]
    zero_terminal: bool = False

    @property
    def members(self) -> int:
        """M, how many schedules there are side by side."""
        return max(int(value.shape[0]) for value in self.values.values())

    def why_not(self, prediction: str) -> str | None:
        """None, or why a network that predicts this cannot serve this schedule."""
        return zero_terminal_mistake(self.zero_terminal, prediction)

    def to(self, device: torch.device) -> Schedule:
        """The same on a device."""
        return replace(self, values={name: value.to(device) for name, value in self.values.items()})

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, (M, T), at t (T,) or (M, T)."""
        import torch

        alpha, sigma = of_log_snr(self._before(t))
        if not self.zero_terminal:
            return alpha, sigma
        ends = self._before(torch.linspace(0, 1, 2, dtype=torch.float64, device=t.device))
        first, last = of_log_snr(ends)[0].split(1, dim=1)
        alpha = ((alpha - last) * first / (first - last)).where(t < 1, torch.zeros_like(alpha))
        return alpha, ((1 - alpha) * (1 + alpha)).sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        """lambda_t, (M, T), at t (T,) or (M, T); no less than LOWEST, so that it can be told to a network."""
        if not self.zero_terminal:
            return self._before(t).clamp(min=LOWEST)
        alpha, sigma = self.levels(t)
        return 2 * (alpha.clamp(min=math.exp(LOWEST / 2)).log() - sigma.log())

    def _before(self, t: Tensor) -> Tensor:
        """lambda_t before the last stretch."""
        t = t.double()
        t = t if t.ndim == 2 else t[None]
        high, low = self.values["log_snr_max"], self.values["log_snr_min"]
        return (1 - LINE) * self.family.log_snr(t, self.values) + LINE * (high + (low - high) * t)

    # -- tables and grids ----------------------------------------------------------------------------------------------

    def alphas_cumprod(self, train_steps: int = 1000) -> Tensor:
        """alpha^2 (M, train_steps) at the times (k + 1) / train_steps: diffusers' table of that name."""
        import torch

        k = torch.arange(1, train_steps + 1, dtype=torch.float64, device=self._device)
        return self.levels(k / train_steps)[0] ** 2

    def trained_betas(self, train_steps: int = 1000) -> list[float]:
        """The betas of one member, for a diffusers scheduler: its table is this one to a rounding of float32.

        diffusers multiplies the 1 - beta up in float32. Each beta is chosen against the product as it stands there, so
        that roundings do not add up; and none is rounded up to 1, after which there would be nothing left to divide.
        """
        import numpy as np

        if self.members != 1:
            raise ValueError(f"a diffusers scheduler holds one schedule, and this one has {self.members} members")
        product, betas = 1.0, []
        for wanted in self.alphas_cumprod(train_steps)[0].detach().tolist():
            most = np.nextafter(np.float32(1), np.float32(0)) if wanted > 0 else np.float32(1)
            beta = min(np.float32(max(0.0, 1 - wanted / product)), most)
            product *= float(np.float32(1) - beta)
            betas.append(float(beta))
        return betas

    def grid(self, steps: int, *, told: Told = "log_snr", train_steps: int = 1000, clean: bool = True) -> Grid:
        """The levels at which a sampler of `steps` steps stops: t = 1, 1 - 1/steps, ..., 1/steps, and then no noise.

        This is diffusers' `timestep_spacing="trailing"` where `steps` divides the train steps. The last level is
        alpha = 1, sigma = 0, two constants: as functions of the schedule they would have a square root of 0 in them,
        whose derivative is not finite. With `clean` off the last level is the schedule's own at t = 0.
        """
        import torch

        from genbo.schedules.grid import grid_of_levels

        t = 1 - torch.arange(steps + (not clean), dtype=torch.float64, device=self._device) / steps
        alpha, sigma = self.levels(t)
        if clean:
            end = torch.ones_like(alpha[:, :1])
            alpha, sigma = torch.cat([alpha, end], dim=1), torch.cat([sigma, 0 * end], dim=1)
        t = t[:steps]
        time = self.log_snr(t) if told == "log_snr" else (t * train_steps - 1)[None].expand(len(alpha), -1)
        return grid_of_levels(time, alpha, sigma)

    @property
    def _device(self) -> torch.device:
        return next(iter(self.values.values())).device


def divided(train_steps: int, steps: int) -> int:
    """The first multiple of a sampler's `steps` from `train_steps` on: a table at whose entries it can stop."""
    return steps * -(-train_steps // steps)


def zero_terminal_mistake(zero_terminal: bool, prediction: str) -> str | None:
    """None, or why a network that predicts this can say nothing at the end of time."""
    if not zero_terminal or prediction != "epsilon":
        return None
    return (
        "at zero terminal SNR a prediction of the noise says nothing of the image; "
        "use prediction: v_prediction or sample, or leave zero_terminal out"
    )


def schedule_of(family: Family, *, zero_terminal: bool = False) -> Schedule:
    """The schedule that stands in a family's fields."""
    import torch

    values = {name: torch.tensor([numbers], dtype=torch.float64) for name, numbers in family.starts().items()}
    return Schedule(family, values, zero_terminal)


def of_log_snr(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma with alpha^2 + sigma^2 = 1, to full precision at both ends."""
    return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()


def between(power: Tensor, first: Tensor, last: Tensor, p: Mapping[str, Tensor]) -> Tensor:
    """lambda_t of a power that falls from `first` to `last`, stretched between the ends of the log-SNR.

    Both logarithms are of sums of positive numbers, so that neither end loses digits.
    """
    most, least = p["log_snr_max"].sigmoid(), p["log_snr_min"].sigmoid()
    share = (most - least) / (first - last)
    signal = least + share * (power - last)
    noise = (-p["log_snr_max"]).sigmoid() + share * (first - power)
    return signal.log() - noise.log()
