"""The sampler loop: noise -> denoise -> guide -> step, for M members x N samples in one batch.

Rows are ordered member by member: row m * N + n is sample n under member m's hyperparameters, from sample n's own
noise, so differences between members share their randomness. `paired` gives row n member n's hyperparameters instead:
a gradient a sample in one backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from genbo.diffusion.process import Condition, Memory, Prediction, Process, Step
from genbo.diffusion.seed import Batch, Noise

ROUNDING = 1e-9


def sample(
    process: Process,
    batch: Batch,
    *,
    paired: bool = False,
    checkpoint: bool = False,
    start: Tensor | None = None,
) -> Tensor:
    """Samples (M * N, *shape), or (N, *shape) when paired; differentiable in the process' tensors.

    `start` (N, *shape) stands in for the standard normal noise that each sample begins from, in any precision; gradients
    reach it. Fresh noise of a stochastic sampler is the batch's own all the same.

    All rows go through the network together: split the batch with `Batch.chunks` where memory is short.
    With `checkpoint` nothing but x_t is kept of a step, and the step is computed again on the way back.
    """
    model, sampler, rule = process.model, process.sampler, process.rule
    n, members = len(batch), process.members
    if paired and members not in (1, n):
        raise ValueError(f"paired sampling needs a member a sample: {members} members, {n} samples")
    device, dtype = model.device, model.dtype
    rows = n if paired else members * n
    sample_of_row = torch.arange(rows) % n
    member_of_row = torch.arange(rows) if paired else torch.arange(rows) // n
    axes = (-1, *(1,) * len(model.shape))

    def rows_of(
        table: Tensor,
    ) -> Tensor:  # (M, T) -> T tensors of (B, 1, ...), moved to the device in one copy
        table = table if table.shape[0] > 1 else table.expand(members, -1)
        return table[member_of_row].to(device, dtype).T.reshape(table.shape[1], *axes)

    weight = rule.effective_weight(process.options)
    guided = _guided_rows(weight)
    guided = (guided if guided.shape[0] > 1 else guided.expand(members, -1))[member_of_row]  # (B, T), on the host
    options = {name: rows_of(value) for name, value in {**process.options, "weight": weight}.items()}
    grid = process.grid
    level = {name: rows_of(getattr(grid, name)) for name in ("alpha_t", "sigma_t", "alpha_s", "sigma_s")}
    times = rows_of(grid.time).reshape(grid.steps, rows).repeat(1, 2)  # (T, 2 B): both halves
    how = ["all" if row.all() else "some" if row.any() else "none" for row in guided.T]

    cond, both = _conditions(process, batch, sample_of_row.to(device), bool(guided.any()))
    noise = Noise(batch.seeds, model.shape)

    def draw(given: Tensor | None = None) -> Tensor:
        own = noise.draw()
        return (own if given is None else given).to(device, dtype)[sample_of_row.to(device)]

    def step(i: int, x_t: Tensor, memory: Memory, state: Tensor | None, fresh: Tensor | None):  # type: ignore[no-untyped-def]
        at = Step(i, i == grid.steps - 1, *(level[k][i] for k in ("alpha_t", "sigma_t", "alpha_s", "sigma_s")))
        predict = Prediction(model.prediction, x_t, at.alpha_t, at.sigma_t)
        step_options = {name: value[i] for name, value in options.items()}
        halves = _halves(process, x_t, times[i], cond, both, how[i], guided[:, i])
        output = halves[-1]
        if len(halves) == 2:
            output, state = rule.combine(halves[1], halves[0], step_options, predict, state)
        x_s, memory = sampler.step(at, x_t, predict.x_0(output), predict.eps(output), memory, fresh)
        return x_s, memory, state

    run: Callable[..., tuple[Tensor, Memory, Tensor | None]] = step
    if checkpoint:

        def run(*args):  # type: ignore[no-untyped-def]
            return recompute(step, *args, use_reentrant=False, preserve_rng_state=False)

    x_t, memory, state = draw(start) * grid.noise_scale, (), None
    for i in range(grid.steps):
        x_t, memory, state = run(i, x_t, memory, state, draw() if sampler.stochastic else None)
    return x_t


def _guided_rows(weight: Tensor) -> Tensor:
    """Which (member, step) need the unconditional half: weight 1 does not, unless a derivative is wanted there.

    A weight that went through a link and back is 1 only to rounding, so 1 is meant to within `ROUNDING`.
    """
    differentiated = weight.requires_grad or torch.autograd.forward_ad.unpack_dual(weight).tangent is not None
    return torch.ones_like(weight, dtype=torch.bool) if differentiated else (weight - 1).abs() > ROUNDING


def _conditions(process: Process, batch: Batch, rows: Tensor, guided: bool) -> tuple[Condition, Condition | None]:
    """What each row is told, (B, ...), and with guidance the unconditional half before it, (2 B, ...)."""
    unique = list(dict.fromkeys(batch.prompts))
    of_sample = torch.tensor([unique.index(p) for p in batch.prompts], device=rows.device)
    cond = process.model.encode(unique).take(of_sample[rows])
    if not guided:
        return cond, None
    return cond, process.model.unconditional().take(torch.zeros_like(rows)).cat(cond)


def _halves(
    process: Process, x_t: Tensor, times: Tensor, cond: Condition, both: Condition | None, how: str, guided: Tensor
) -> tuple[Tensor, ...]:
    """(conditional,) or (unconditional, conditional) in one call of the network, a row less for each unguided row.

    `how` and `guided` live on the host, so nothing waits for the device.
    """
    if both is None or how == "none":
        return (_call(process, x_t, times[: len(x_t)], cond),)
    if how == "all":
        return _call(process, torch.cat([x_t, x_t]), times, both).chunk(2)
    some = guided.nonzero().flatten().to(x_t.device)
    rows = torch.cat([some, torch.arange(len(x_t), 2 * len(x_t), device=x_t.device)])
    output = _call(process, torch.cat([x_t[some], x_t]), times[rows], both.take(rows))
    out_cond = output[len(some) :]
    return out_cond.index_copy(0, some, output[: len(some)]), out_cond  # weight 1 asks nothing of the other half


def _call(process: Process, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
    process.meter.denoiser_calls += 1
    process.meter.image_forwards += len(x_t)
    return process.model(x_t, time, condition)
