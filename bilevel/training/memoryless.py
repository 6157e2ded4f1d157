"""The memoryless sampler: noise at every step such that what a path ends in does not depend on where it began.

    x_s ~ N(alpha_s x_0 + sigma_s q eps,  sigma_s^2 (1 - q^2) I),      q^2 = SNR_t / SNR_s

For any alpha and sigma this is the noising process backwards: DDPM's ancestral step, and DDIM's with eta = 1, where
alpha^2 + sigma^2 = 1. For a flow, sigma = 1 - alpha, it is the schedule sigma(t)^2 = 2 eta_t of Domingo-Enrich et al.
(2409.08861, eq. 19). Under it, and under no other noise, the path measure with the least
KL(path || path of p0) - E[r] / lambda ends in p0 exp(r / lambda), and its KL is that of the samples.

The KL of paths is Girsanov's, of the process in continuous time, an integral over log-SNR:

    KL(path || path of p0) = 1/2 E int |eps(x_t) - eps_0(x_t)|^2 d log SNR

by the trapezoidal rule along simulated paths. Ten steps give it to 5 % where a chain's own KL, the sum of
`diffusion.path_kl`, is still three times as much: a chain of few steps draws so little noise in its last ones that a
change of the mean costs more there than in the limit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from genbo.diffusion.process import Memory, Process, Step, Stepped
from genbo.diffusion.sample import Rows
from genbo.diffusion.seed import Batch
from genbo.diffusion.traits import SamplerTraits
from genbo.schedules.grid import Grid


@dataclass(frozen=True)
class Memoryless:
    """A `Markov` sampler for training and for measuring; its levels are those of the job's own sampler."""

    traits: ClassVar[SamplerTraits] = SamplerTraits(levels_of=None)

    steps: int
    stochastic: ClassVar[bool] = True

    def step(self, at: Step, x_t: Tensor, x_0: Tensor, eps: Tensor, memory: Memory, noise: Tensor | None) -> Stepped:
        """The mean of `transition`, and its scale times the noise."""
        mean, scale = self.transition(at, x_t, x_0, eps)
        return mean if noise is None else mean + scale * noise, memory

    def transition(self, at: Step, x_t: Tensor, x_0: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """x_s given x_t."""
        kept = at.alpha_t * at.sigma_s / (at.alpha_s * at.sigma_t)  # the root of SNR_t / SNR_s
        scale = at.sigma_s * (1 - kept**2).clamp(min=0).sqrt()
        return at.alpha_s * x_0 + at.sigma_s * kept * eps, scale


def memoryless(process: Process, steps: int | None = None) -> Process:
    """The same model at the same guidance under the memoryless sampler, by default at the process' own levels.

    More or fewer `steps` have the levels that the process' sampler would have with so many. Guidance with a weight a
    step has no meaning there, and keeps its own steps.
    """
    same = all(bool((value == value[:, :1]).all()) for value in (*process.options.values(), *process.told.values()))
    number = steps if steps is not None and same else process.steps
    if isinstance(process.sampler, Memoryless) and number == process.steps:
        return process
    if number == process.steps:
        return replace(process, sampler=Memoryless(number))
    if isinstance(process.sampler, Memoryless):
        raise ValueError("the levels of a memoryless process are fixed; change the steps of the process it came from")
    options, told = (
        {name: value[:, :1].expand(-1, number) for name, value in table.items()}
        for table in (process.options, process.told)
    )
    grid = process.model.grid(replace(process.sampler, steps=number))  # type: ignore[type-var]
    return replace(process, sampler=Memoryless(number), options=options, told=told, grid=grid)


def sample_with_path_kl(process: Process, base: Process, batch: Batch) -> tuple[Tensor, Tensor]:
    """Samples (N, *shape) of a memoryless process, and the KL of its path from that of `base`, (N,) in nats.

    The second is the integral along each sample's own path, in float64; its mean is the KL.
    """
    if not isinstance(process.sampler, Memoryless) or process.sampler != base.sampler:
        raise ValueError("the KL of paths is of two memoryless processes with the same steps")
    own, other = Rows(process, batch), Rows(base, batch)
    weights = level_weights(process.grid).tolist()
    x_t, kl = own.first(), torch.zeros(len(batch), dtype=torch.float64, device=process.model.device)
    for i in range(own.steps):
        now, before = own.denoise(i, x_t, None), other.denoise(i, x_t, None)
        kl = kl + weights[i] * (now.eps.double() - before.eps.double()).square().flatten(1).sum(1) / 2
        x_t, _ = process.sampler.step(own.at(i), x_t, now.x_0, now.eps, (), own.fresh())
    return x_t, kl


def level_weights(grid: Grid) -> Tensor:
    """The trapezoidal rule over log-SNR, (T,).

    Beyond the last level, down to no noise, differences of eps fall as sigma does: their squares add one nat of log-SNR
    of the last.
    """
    log_snr = 2 * (grid.alpha_t.double()[0].log() - grid.sigma_t.double()[0].log())
    gaps = log_snr.diff()
    gaps = gaps.where(gaps.isfinite(), 0.0)  # from no signal at all: what is said there moves nothing
    ends = gaps.new_zeros(1)
    weights: Tensor = (torch.cat([ends, gaps]) + torch.cat([gaps, ends])) / 2
    weights[-1] += 1.0
    return weights
