"""The inference grid: the noise levels of a sampler's steps, from noise to sample.

    x_t = alpha_t x_0 + sigma_t eps

A step goes from level t to level s < t (Karras et al. 2022 write sigma for our sigma_t / alpha_t). A grid carries a
leading member axis M: each member of a batch may stop at levels of its own, and gradients pass through all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Levels of a sampler's T steps for M members (M = 1: the same for all); every tensor is (M, T).

    `alpha_s, sigma_s` of a step need not be `alpha_t, sigma_t` of the next: diffusers' DDIM takes s = t - T_train // T,
    which is not the next time when T does not divide T_train.
    """

    time: Tensor  # what the network is told, in its own unit (0..999 for Stable Diffusion)
    alpha_t: Tensor
    sigma_t: Tensor
    alpha_s: Tensor
    sigma_s: Tensor
    noise_scale: float = 1.0  # x_T = noise_scale * noise
    x_0_bound: float = math.inf  # predictions of x_0 are held within it: diffusers' clip_sample
    orders: tuple[int, ...] = ()  # of a multistep solver's steps; where none are given, 2, and 1 at both ends
    heun: bool = False  # second-order steps by Heun's rule, not the midpoint's
    variance: str = "small"  # of an ancestral step, as `samplers.ddpm` has them: small | large
    noisy_end: bool = False  # whether a step of large variance that ends without noise draws some all the same

    @property
    def steps(self) -> int:
        """T, how many steps there are."""
        return int(self.time.shape[1])

    @property
    def members(self) -> int:
        """M, how many grids there are side by side."""
        return max(int(table.shape[0]) for table in self._tables().values())

    def to(self, device: torch.device, dtype: torch.dtype) -> Grid:
        """The same tables on a device, in a precision."""
        moved: dict[str, Any] = {name: table.to(device, dtype) for name, table in self._tables().items()}
        return replace(self, **moved)

    def _tables(self) -> dict[str, Tensor]:
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: table for name, table in named.items() if isinstance(table, Tensor)}


def grid_of_levels(
    time: Tensor, alpha: Tensor, sigma: Tensor, noise_scale: float = 1.0, x_0_bound: float = math.inf
) -> Grid:
    """A grid whose steps join: `time` is (M, T), `alpha` and `sigma` are (M, T + 1), noisiest first."""
    return Grid(time, alpha[:, :-1], sigma[:, :-1], alpha[:, 1:], sigma[:, 1:], noise_scale, x_0_bound)


def grid_of_sigmas(
    time: Tensor, sigmas: Tensor, init_noise_sigma: float | None = None, *, exploding_end: bool = False
) -> Grid:
    """A grid from variance-exploding sigmas (M, T + 1) = sigma_t / alpha_t, as Euler and DPM-Solver++ keep them.

    `init_noise_sigma` is the standard deviation of x_T in variance-exploding units; None means that x_T has variance 1
    here, which is diffusers' sqrt(sigma_max^2 + 1). With `exploding_end` what is left at the end is x_0 + sigma eps.
    """
    alpha = (1 + sigmas[:, :-1] ** 2).rsqrt()
    scale = 1.0 if init_noise_sigma is None else init_noise_sigma * float(alpha[0, 0])
    end = ends_at(sigmas[:, -1:], exploding=exploding_end)
    return grid_of_levels(
        time, torch.cat([alpha, end[0]], dim=1), torch.cat([sigmas[:, :-1] * alpha, end[1]], dim=1), scale
    )


def ends_at(sigma: Tensor, *, exploding: bool) -> tuple[Tensor, Tensor]:
    """alpha and sigma at the end of the last step, where sigma / alpha is this; Euler's is not scaled back."""
    alpha = torch.ones_like(sigma) if exploding else (1 + sigma**2).rsqrt()
    return alpha, sigma * alpha
