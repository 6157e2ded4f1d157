"""The denoising loss of a whole process: how well its guided prediction tells the noise, where its sampler stops.

    x_t = alpha_t x + sigma_t eps,      loss = |eps(x_t) - eps|^2 = alpha_t^2 / sigma_t^2 |x_0(x_t) - x|^2

What is scored is the rule's mixture of both halves, with the numbers that it has at that step, since that is what the
sampler follows: the minimiser over samples x of a law makes the guided process draw that law. Only the levels of the
process' own grid are drawn; the network is asked nowhere else. Summed over levels even in log-SNR, the loss is a bound
on minus the log-likelihood of x.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genbo.diffusion.numbers import N
from genbo.diffusion.prediction import Prediction
from genbo.diffusion.process import GuidanceRule, Process, effective_weights
from genbo.diffusion.sample import Rows
from genbo.diffusion.seed import Batch
from genbo.diffusion.traits import GuidanceTraits


@dataclass(frozen=True)
class Draw:
    """B things to denoise: samples x (B, *shape), their prompts, a level of the grid each (B,), and noise as x."""

    x: Tensor
    prompts: tuple[str, ...]
    level: Tensor
    eps: Tensor

    def __len__(self) -> int:
        return len(self.prompts)

    def part(self, at: slice) -> Draw:
        return Draw(self.x[at], self.prompts[at], self.level[at], self.eps[at])


def draw(
    x: Tensor, prompts: Sequence[str], logw: Tensor, levels: int, rows: int, generator: torch.Generator
) -> tuple[Draw, Tensor]:
    """`rows` draws from samples x (C, n, *shape), by their weights within each prompt; and which they are, flat.

    Samples are drawn in proportion to their weights and then count the same. Drawn evenly and weighted, the gradient
    would have sum_i n w_i^2 for sum_i w_i in its variance: n / ESS times as much. They and the levels are drawn at even
    distances from a random start (systematic resampling), so every batch holds the prompts and the levels evenly.
    """
    share = logw.double().softmax(1).flatten() / len(logw)
    edges = share.cumsum(0)
    at = (torch.arange(rows, dtype=torch.float64) + torch.rand(1, generator=generator, dtype=torch.float64)) / rows
    chosen = torch.searchsorted(edges, at * edges[-1], right=True).clamp(max=share.numel() - 1)
    shift = torch.rand(1, generator=generator, dtype=torch.float64)
    level = ((torch.randperm(rows, generator=generator) + shift) / rows * levels).long().clamp(max=levels - 1)
    own = x.flatten(0, 1)[chosen]
    eps = torch.randn(own.shape, generator=generator, dtype=own.dtype)
    names = tuple(prompts[c] for c in (chosen // logw.shape[1]).tolist())
    return Draw(own, names, level, eps), chosen


def predicted_eps(process: Process, drawn: Draw) -> Tensor:
    """The noise that the process says is in x_t, (B, *shape): guided, differentiable in the model's weights.

    A rule with a memory of earlier steps (apg with momentum) is asked as if each step were the first.
    """
    x, grid = drawn.x, process.grid
    alpha, sigma = (
        t[0, drawn.level].to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1)) for t in (grid.alpha_t, grid.sigma_t)
    )
    return eps_in(process, alpha * x + sigma * drawn.eps, drawn.prompts, drawn.level)


def eps_in(process: Process, x_t: Tensor, prompts: Sequence[str], level: Tensor) -> Tensor:
    """The noise that the process says is in x_t (B, *shape), each at a step of its own, level (B,), as above."""
    rows = Rows(at_levels(process, level), Batch(tuple(prompts), (0,) * len(prompts)), paired=True)
    return rows.denoise(0, x_t.to(process.model.device, process.model.dtype), None).eps


def at_levels(process: Process, level: Tensor) -> Process:
    """The process cut to one step, a member a row: row b stands at step level[b] of the grid."""
    if process.members != 1:
        raise ValueError(f"the denoising loss is of a process with one member, not {process.members}")
    weight = effective_weights(process.rule, process.options)
    options, told = (
        {name: value[0, level, None] for name, value in table.items()}
        for table in ({**process.options, "weight": weight}, process.told)
    )
    grid = process.grid
    cut = {name: getattr(grid, name)[0, level, None] for name in ("time", "alpha_t", "sigma_t", "alpha_s", "sigma_s")}
    rule = _WorkedOut(process.rule)
    return replace(process, rule=rule, options=options, told=told, grid=replace(grid, **cut), steer=None)


@dataclass(frozen=True)
class _WorkedOut:
    """A rule whose weight is already the one in effect: some rules can tell it only from all steps together."""

    rule: GuidanceRule

    @property
    def weight(self) -> float | list[float]:
        return self.rule.weight

    @property
    def traits(self) -> GuidanceTraits:
        return self.rule.traits

    def effective_weight(self, options: Mapping[str, N], step: int, steps: int) -> N:
        return options["weight"]

    def combine(
        self, cond: Tensor, uncond: Tensor, options: Mapping[str, Tensor], predict: Prediction, state: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return self.rule.combine(cond, uncond, options, predict, state)
