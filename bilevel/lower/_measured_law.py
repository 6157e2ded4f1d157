"""What every law of trained weights is measured by: its own samples, and its path's KL on the same noise."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.regularization.tilted import Law
    from genbo.bilevel.scoring import Weighted
    from genbo.diffusion.process import Model, Process
    from genbo.diffusion.seed import Batch

WORLD_STEPS = 160  # of a path whose KL is measured: 5 % too much is left of it


def is_world(model: Model) -> bool:
    """Whether this is an exact world: a few numbers, in double precision."""
    import torch

    return model.dtype == torch.float64


def noisy(process: Process) -> Process:
    """The same model at the same guidance under DDIM with eta = 1, whose paths have densities.

    An exact world takes steps enough for the path's KL to be that of the samples, if its guidance stays the same.
    """
    from genbo.diffusion.samplers.ddim import Ddim

    same = all(bool((value == value[:, :1]).all()) for value in process.options.values())
    steps = max(process.steps, WORLD_STEPS) if same and is_world(process.model) else process.steps
    sampler = Ddim(steps=steps, eta=1.0)
    if process.sampler == sampler:
        return process
    options = {name: value[:, :1].expand(-1, steps) if same else value for name, value in process.options.items()}
    return replace(process, sampler=sampler, options=options, grid=process.model.grid(sampler))


def measured(
    tuned: Process,
    base: Process,
    batch: Batch,
    upper: Weighted,
    lower: Weighted,
    lam: float,
    gamma: float | None = None,
) -> Law:
    """A law as its own samples show it, and its KL as the same noise does under DDIM with eta = 1.

    The batch holds as many of each prompt, one prompt after another.
    """
    import torch

    from genbo.bilevel.regularization.tilted import Fit, Law
    from genbo.bilevel.scoring import total
    from genbo.diffusion.path_kl import sample_with_kl
    from genbo.diffusion.sample import sample

    def one(chunk: Batch) -> Tensor:
        with torch.no_grad():
            x, kl = sample_with_kl(noisy(tuned), noisy(base), chunk)
            images = base.model.decode(x if noisy(tuned).sampler == tuned.sampler else sample(tuned, chunk))
            base.meter.reward_images += len(images)
            scores = [total(rewards, images, chunk.prompts) for rewards in (upper, lower)]
            return torch.stack([*scores, kl]).cpu()

    prompts = len(dict.fromkeys(batch.prompts))
    r1, r2, kl = torch.cat(list(base.over(batch, one)), dim=1).reshape(3, prompts, -1)
    n = r1.shape[1]
    away = r1 - r1.mean(1, keepdim=True)
    fit = Fit(ess=float(prompts * n), max_weight=1 / (prompts * n), khat=0.0, samples=n)
    covariance = _mean(away * (r2 - r2.mean(1, keepdim=True)))
    return Law(lam, gamma, _mean(r1), _mean(r2), _mean(kl), covariance, away.square().mean().sqrt().item(), fit)


def _mean(x: Tensor) -> Any:
    """Of each prompt, (C, n) -> (C,), and what every sample did to it."""
    from genbo.bilevel.measured import Measured

    mean = x.mean(1)
    return Measured(mean, (x - mean[:, None]) / x.shape[1])
