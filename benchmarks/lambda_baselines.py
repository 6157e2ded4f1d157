"""Losses of reward fine-tuning as others do it: gradients through the last steps (DRaFT-K), policy gradients (DPOK).

They are losses of `bilevel.training.finetuning`, so all methods share its loop, its optimizer and its draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genbo.bilevel.scoring import Weighted, total
from genbo.diffusion.process import Process
from genbo.diffusion.sample import Rows
from genbo.diffusion.seed import Batch, Seed, batch_of


@dataclass(frozen=True)
class LastSteps:
    """Minus the mean of r2, with gradients through the last steps of the process' own sampler."""

    prompts: Sequence[str]
    reward: Weighted
    last: int
    rows: int
    seed: Seed

    def backward(self, process: Process, step: int) -> float:
        loss, batch = 0.0, batch_of(self.prompts, self.rows, self.seed.child("draws", step))
        for chunk in batch.chunks(process.batch):
            rows = Rows(process, chunk)
            x, memory, state = rows.first(), (), None
            for i in range(rows.steps):
                with torch.set_grad_enabled(i >= rows.steps - self.last):
                    x, memory, state = rows.step(i, x, memory, state, rows.fresh())
            images = process.model.decode(x)
            process.meter.reward_images += len(images)
            live = -total(self.reward, images, chunk.prompts).sum() / self.rows
            live.backward()
            loss += live.item()
        return loss


@dataclass(frozen=True)
class Policy:
    """KL(path || path of p0) - E[r2] / lambda by the score of the path: r2 above its prompt's mean, times log p."""

    base: Process
    prompts: Sequence[str]
    reward: Weighted
    usual: Mapping[str, float]
    lam: float
    rows: int
    seed: Seed

    def backward(self, process: Process, step: int) -> float:
        loss, batch = 0.0, batch_of(self.prompts, self.rows, self.seed.child("draws", step))
        for chunk in batch.chunks(process.batch):
            states = self._path(process, chunk)
            with torch.no_grad():
                r = total(self.reward, process.model.decode(states[-1]), chunk.prompts)
                process.meter.reward_images += len(r)
            better = (r - torch.tensor([self.usual[p] for p in chunk.prompts], device=r.device)) / self.lam
            own, base = Rows(process, chunk), Rows(self.base, chunk)
            for i in range(own.steps):
                live = self._one_step(own, base, i, states, better).sum() / self.rows
                live.backward()
                loss += live.item()
        return loss

    def _path(self, process: Process, chunk: Batch) -> list[Tensor]:
        rows = Rows(process, chunk)
        with torch.no_grad():
            states = [rows.first()]
            for i in range(rows.steps):
                states.append(rows.step(i, states[-1], (), None, rows.fresh())[0])
        return states

    def _one_step(self, own: Rows, base: Rows, i: int, states: Sequence[Tensor], better: Tensor) -> Tensor:
        with torch.no_grad():
            there = base.denoise(i, states[i], None)
            mean_0, scale = self.base.sampler.transition(own.at(i), states[i], there.x_0, there.eps)  # type: ignore[attr-defined]
        now = own.denoise(i, states[i], None)
        mean, _ = self.base.sampler.transition(own.at(i), states[i], now.x_0, now.eps)  # type: ignore[attr-defined]
        drawn = scale > 0
        unit = torch.where(drawn, scale, 1.0).double()

        def square(x: Tensor) -> Tensor:
            return (x.double() / unit).square().where(drawn, 0.0).flatten(1).sum(1) / 2

        return better * square(states[i + 1] - mean) + square(mean - mean_0)
