"""Adjoint matching (Domingo-Enrich et al. 2409.08861): the denoiser of p_lambda by regression, from gradients of r2.

Along a memoryless path x_T, ..., x_0 of the weights so far, the lean adjoint is carried back through the *pretrained*
chain, whose steps have the means m_t,

    a_0 = grad r2(x_0) / lambda,      a_t = (d m_t / d x_t)^T a_s

and the noise that the network says is in x_t is drawn to that of the pretrained one, less sigma_t a_t:

    loss = sum_t w_t / 2  |eps(x_t) - eps_0(x_t) + sigma_t a_t|^2,      sum_t w_t the trapezoidal rule over log-SNR

Where the paths are those of p_lambda, E[a_t | x_t] = grad log E_0[exp(r2 / lambda) | x_t] is what the score of p_lambda
has more than that of p0, at every level, so p_lambda's own denoiser is the regression's answer, and as steps are added
the only one. In units of the loss, a distance of predictions is the KL of their paths. Nothing goes back through the
network that is trained but one prediction at a time. Written in eps it is the same for networks that predict eps, v,
x_0 or a flow.

Lengths of adjoints have a heavy tail on a network: a path that stands between two images goes to the one or the other
by a little. Of 32 paths of the bundled model the median of |sigma_t a_t|^2 / 2 is 0.02 and the largest 380, so a few
paths are most of the noise. `clip` shortens an adjoint in the loss to so many times the median length of its level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genbo.bilevel.scoring import Weighted, total
from genbo.bilevel.training.finetuning import parts
from genbo.bilevel.training.memoryless import level_weights
from genbo.diffusion.guided_loss import eps_in
from genbo.diffusion.process import Process
from genbo.diffusion.sample import Rows
from genbo.diffusion.seed import Batch, Seed, batch_of


@dataclass(frozen=True)
class Match:
    """The loss of `rows` paths from the weights as they are; `base` and what is trained are both memoryless.

    `clip` is the longest adjoint that counts as it is, in units of the median of its level.
    """

    base: Process
    prompts: Sequence[str]
    reward: Weighted
    lam: float
    rows: int
    seed: Seed
    clip: float = math.inf

    def backward(self, process: Process, step: int) -> float:
        loss, batch = 0.0, batch_of(self.prompts, self.rows, self.seed.child("draws", step))
        for chunk in batch.chunks(process.batch):
            with torch.no_grad():
                states, x_0 = path(process, chunk)
            targets = self._targets(chunk, states, self._slope(x_0, chunk.prompts))
            loss += self._regress(process, chunk.prompts, torch.stack(states), targets)
        return loss

    def _slope(self, x_0: Tensor, prompts: Sequence[str]) -> Tensor:
        """The gradient of r2 / lambda in the samples, (B, *shape)."""
        with torch.enable_grad():
            live = x_0.detach().requires_grad_()
            images = self.base.model.decode(live)
            self.base.meter.reward_images += len(images)
            (slope,) = torch.autograd.grad(total(self.reward, images, prompts).sum() / self.lam, live)
        return slope

    def _targets(self, chunk: Batch, states: Sequence[Tensor], adjoint: Tensor) -> Tensor:
        """What each state's noise should be said to be, (T, B, *shape), from the last level to the first."""
        rows, found = Rows(self.base, chunk), []
        for i in reversed(range(rows.steps)):
            said, adjoint = carried_back(self.base, rows, i, states[i], adjoint)
            found.append(said - shortened(rows.at(i).sigma_t * adjoint, self.clip))
        return torch.stack(found[::-1])

    def _regress(self, process: Process, prompts: Sequence[str], states: Tensor, targets: Tensor) -> float:
        """Of states and targets (T, B, *shape); the gradient of their sum is added to the weights."""
        levels, each = states.shape[:2]
        level = torch.arange(levels).repeat_interleave(each)
        weights = level_weights(process.grid)[level].to(states.device)
        x_t, target, names, loss = states.flatten(0, 1), targets.flatten(0, 1), (*prompts,) * levels, 0.0
        for at in parts(len(x_t), process.batch):
            eps = eps_in(process, x_t[at], names[at], level[at])
            away = (eps.double() - target[at].double()).square().flatten(1).sum(1)
            live = (weights[at] * away).sum() / (2 * self.rows)
            live.backward()
            loss += live.item()
        return loss


def shortened(x: Tensor, times: float) -> Tensor:
    """Rows (B, *shape) in their own direction, none longer than so many times the median."""
    if times == math.inf:
        return x
    length = x.flatten(1).norm(dim=1)
    share = (times * length.median() / length.clamp(min=torch.finfo(length.dtype).tiny)).clamp(max=1)
    shorter: Tensor = x * share.reshape(-1, *(1,) * (x.ndim - 1))
    return shorter


def path(process: Process, batch: Batch) -> tuple[list[Tensor], Tensor]:
    """The states that the network sees on the way, noisiest first, and the samples."""
    rows = Rows(process, batch)
    x_t, states = rows.first(), []
    for i in range(rows.steps):
        states.append(x_t)
        x_t, _, _ = rows.step(i, x_t, (), None, rows.fresh())
    return states, x_t


def carried_back(base: Process, rows: Rows, i: int, x_t: Tensor, adjoint: Tensor) -> tuple[Tensor, Tensor]:
    """What the pretrained process says of the noise in x_t, and the adjoint at x_t, of that at x_s."""
    with torch.enable_grad():
        live = x_t.detach().requires_grad_()
        now = rows.denoise(i, live, None)
        mean, _ = base.sampler.transition(rows.at(i), live, now.x_0, now.eps)  # type: ignore[attr-defined]
        (before,) = torch.autograd.grad(mean, live, adjoint.to(mean))
    return now.eps.detach(), before
