"""How far a stochastic sampler's path has been moved: the KL divergence of one process' chain from another's.

Both draw x_s = mean(x_t) + s_t * noise with the same scale s_t, and begin from the same noise. So the divergence of the
one path from the other is, for the chain as it runs, without an error of discretisation (Girsanov, in discrete time),

    KL(path || path of base) = E sum_t |mean_t(x_t) - mean_t^base(x_t)|^2 / (2 s_t^2),      x_t along the first path

It is an upper bound on the KL divergence of what the paths end in, and with eta = 1 and many steps the two meet: then
both paths are the same noising, backwards. In between, with networks that know their laws exactly,

    KL(path || path of base)  ->  ((1 + eta^2) / (2 eta))^2  KL(samples || samples of base)

A step that draws nothing has no density, and is not counted. DDIM's last is one where it goes down to no noise at all.
The sum is then the divergence up to the last noisy state, and a bound on the divergence of that state's laws, and of
what one and the same last step makes of both; how the two last steps differ, which is little, is not in it. Where the
last step draws noise as well (diffusers' `set_alpha_to_one: false`), the bound holds for the samples themselves.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from genbo.diffusion.process import Markov, Process, Step
from genbo.diffusion.sample import Denoised, Rows
from genbo.diffusion.seed import Batch
from genbo.schedules.grid import Grid


def sample_with_kl(
    process: Process, base: Process, batch: Batch, *, start: Tensor | None = None, checkpoint: bool = False
) -> tuple[Tensor, Tensor]:
    """Samples (N, *shape) of `process`, and the KL divergence of its path from that of `base`, a sample each.

    The second, (N,) in float64 and in nats, is the sum above along each sample's own path; its mean is the KL. Both are
    differentiable in the tensors of either process, and `start` and `checkpoint` are those of `sample`, which draws the
    same samples. A base that is the same process without its steer costs no network call.

    ValueError where the paths have no densities to compare.
    """
    if wrong := why_not(process, base):
        raise ValueError(wrong)
    pair = _Pair(process, base, batch)
    x_t, kl = pair.own.first(start), torch.zeros(len(batch), dtype=torch.float64, device=process.model.device)
    states: tuple[Tensor | None, ...] = (None, None)
    for i in range(pair.own.steps):
        args = (i, x_t, states, pair.own.fresh())
        if checkpoint:
            x_t, states, term = recompute(pair.step, *args, use_reentrant=False, preserve_rng_state=False)
        else:
            x_t, states, term = pair.step(*args)
        kl = kl + term
    return x_t, kl


def why_not(process: Process, base: Process) -> str | None:
    """None, or a sentence: why these two have no KL divergence of paths."""
    if not (isinstance(process.sampler, Markov) and process.sampler.stochastic):
        return (
            "the KL of a path needs a sampler that draws fresh noise at every step; use sampler: {kind: ddim, eta: 1.0}"
        )
    if process.members != 1 or base.members != 1:
        return f"the KL of a path is of one member against one, not of {process.members} against {base.members}"
    if any(p.steer is not None and p.steer.rule.passes for p in (process, base)):
        return "the KL of a path needs steps that know its past alone, and a tangent knows its end; set passes: 0"
    if process.sampler != base.sampler or not _same_levels(process.grid, base.grid):
        return "the KL of a path needs both processes to take the same sampler at the same levels"
    return None


class _Pair:
    """Both processes on the same rows; the base looks at where the other one goes."""

    def __init__(self, process: Process, base: Process, batch: Batch) -> None:
        self.own = Rows(process, batch)
        self.base = None if _differ_by_a_steer(process, base) else Rows(base, batch)

    def step(
        self, i: int, x_t: Tensor, states: tuple[Tensor | None, ...], fresh: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor | None, ...], Tensor]:
        plain, now = self.own.denoised_twice(i, x_t, states[0])
        there = plain if self.base is None else self.base.denoise(i, x_t, states[1])
        at, sampler = self.own.at(i), self.own.process.sampler
        x_s, _ = sampler.step(at, x_t, now.x_0, now.eps, (), fresh)
        return x_s, (now.state, there.state), _divergence(sampler, at, x_t, now, there)


def _divergence(sampler: Any, at: Step, x_t: Tensor, here: Denoised, there: Denoised) -> Tensor:
    """|mean - mean of base|^2 / (2 scale^2), a row each.

    The mean is linear in (x_t, x_0, eps), so it is taken of their difference: two means rounded to half precision and
    then subtracted would leave more than a step's KL.
    """
    x_0, eps = (a.double() - b.double() for a, b in ((here.x_0, there.x_0), (here.eps, there.eps)))
    apart, scale = sampler.transition(at, torch.zeros_like(x_t), x_0, eps)
    drawn = scale > 0
    apart = (apart / scale.where(drawn, 1.0)).where(drawn, 0.0)
    total: Tensor = apart.square().flatten(1).sum(1) / 2
    return total


def _differ_by_a_steer(process: Process, base: Process) -> bool:
    """Whether the base's predictions are the process' own before it steers."""
    same = process.model is base.model and process.rule == base.rule
    same = same and process.options is base.options and process.told is base.told
    return same and base.steer is None


def _same_levels(grid: Grid, other: Grid) -> bool:
    pairs = ((getattr(grid, f.name), getattr(other, f.name)) for f in fields(grid))
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)
