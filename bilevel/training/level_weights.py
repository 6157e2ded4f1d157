"""How much each noise level counts in a denoising loss: the inverse of what its target scatters by.

A trained network learns what the pretrained one is to be changed by, Delta(x_t), from targets eps - eps_base(x_t). At
level t these scatter by

    var_t = E |eps - eps_base(x_t)|^2,

which is some fifty times more at the last step of a sampler than at the first. By the theorem of Gauss and Markov
(Aitken's generalised least squares, 1935) a regression whose levels share their weights has the least error with
omega_t = 1 / var_t. The minimiser at a level is what it was: every term there has the same factor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genbo.diffusion.guided_loss import draw, predicted_eps
from genbo.diffusion.process import Process
from genbo.diffusion.seed import Seed

FLOOR = 1e-3  # of the largest scatter; a first step of pure noise has none, and would count without end


def level_weights(
    process: Process, prompts: Sequence[str], x: Tensor, prior: Tensor | None, rows: int, seed: Seed
) -> Tensor:
    """Weights (T,) of the process' T levels, of mean 1, from `rows` draws of each on samples x (C, n, *shape).

    `process` is the pretrained one; by the log-weights `prior` (C, n), or without any, the samples are its own. The
    draws are the seed's own, and do not depend on how they are cut into calls.
    """
    generator, dtype = seed.child("levels").generator(), torch.promote_types(process.model.dtype, torch.float32)
    prior = torch.zeros(x.shape[:2]) if prior is None else prior
    drawn, _ = draw(x.to(dtype), prompts, prior, process.steps, rows * process.steps, generator)
    square = []
    for at in range(0, len(drawn), process.batch):
        here = drawn.part(slice(at, at + process.batch))
        with torch.no_grad():
            wrong = predicted_eps(process, here).to(dtype) - here.eps.to(process.model.device)
        square.append(wrong.double().square().flatten(1).mean(1).cpu())
    scatter = torch.zeros(process.steps, dtype=torch.float64).index_add(0, drawn.level, torch.cat(square)) / rows
    return inverse(scatter)


def inverse(scatter: Tensor) -> Tensor:
    """Weights (T,) of mean 1 from the scatter (T,) of each level; all 1 where nothing scatters."""
    largest = scatter.max()
    if not largest > 0:
        return torch.ones_like(scatter)
    weights = 1 / scatter.clamp(min=FLOOR * largest)
    return weights / weights.mean()
