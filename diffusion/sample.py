"""The sampler loop: noise -> denoise -> guide -> step, for M members x N samples in one batch.

Rows are ordered member by member: row m * N + n is sample n under member m's hyperparameters, from sample n's own
noise, so differences between members share their randomness. `paired` gives row n member n's hyperparameters instead:
a gradient a sample in one backward pass.

A process that is steered climbs a reward r of the image that it is about to make (Guo et al. 2404.14743):

    eps <- eps - sigma_t a g,     x_0 <- x_0 + (sigma_t^2 / alpha_t) a g,     g = grad_{x_t} r(decode(x_0(x_t)))

with the gradient taken through the decoder and the network, of each row's own reward, and with the pull a of its rule
(`diffusion/steering/`). So the score function, which is -eps / sigma_t, gains a g. Where sigma_t a g is longer than the
rule's `most`, it is shortened to that: a gradient holds nearby, and a network that is sent far beyond answers with
images that score less, not more. A rule with `passes` draws without steering first, and then again from the same noise,
each time by the reward's tangent at the samples of the last time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from genbo.diffusion.prediction import Prediction
from genbo.diffusion.process import ROUNDING, Condition, Memory, Process, Step, Whole, effective_weights
from genbo.diffusion.room import NoRoom, is_out_of_memory
from genbo.diffusion.seed import Batch, Noise
from genbo.diffusion.steer import Steer, Tangent

TINY = 1e-30  # a mean square that is taken for 0


def sample(
    process: Process,
    batch: Batch,
    *,
    paired: bool = False,
    checkpoint: bool = False,
    start: Tensor | None = None,
) -> Tensor:
    """Samples of a batch, all rows through the network together; differentiable in the process' tensors.

    Split the batch with `Batch.chunks` where memory is short.

    Args:
        process: M members.
        batch: N prompts and seeds.
        paired: whether sample n is drawn with member n's hyperparameters alone; then M is 1 or N.
        checkpoint: whether nothing but x_t is kept of a step, which is computed again on the way back.
        start: stands in for the standard normal noise that each sample begins from, (N, *shape) in any precision;
            gradients reach it. Fresh noise of a stochastic sampler is the batch's own all the same.

    Returns:
        (M * N, *shape), member by member, or (N, *shape) when paired, in the model's precision and on its device.

    Raises:
        ValueError: where `paired` meets another number of members, a black box is to be given noise, paired or
            steered, or a steer's score has no gradient.
    """
    if isinstance(process.model, Whole):
        if start is not None or paired or process.steer is not None:
            raise ValueError(
                "a black box draws by itself: it has no noise to be given, no gradient and no way to steer"
            )
        return process.model.draw(process, batch)
    rows = Rows(process, batch, paired=paired)
    steer = process.steer
    if steer is None or not steer.rule.passes:
        return _drawn(rows, start, checkpoint)
    x = _drawn(rows.again(None, None), start, checkpoint)
    for _ in range(steer.rule.passes):
        x = _drawn(rows.again(steer, rows.tangent(x)), start, checkpoint)
    return x


def _drawn(rows: Rows, start: Tensor | None, checkpoint: bool) -> Tensor:
    """One sampling from noise to samples, (B, *shape)."""
    run: Callable[..., tuple[Tensor, Memory, Tensor | None]] = rows.step
    if checkpoint:

        def run(*args):  # type: ignore[no-untyped-def]
            return recompute(rows.step, *args, use_reentrant=False, preserve_rng_state=False)

    x_t, memory, state = rows.first(start), (), None
    for i in range(rows.steps):
        x_t, memory, state = run(i, x_t, memory, state, rows.fresh())
    return x_t


class Denoised(NamedTuple):
    """A prediction of x_t = alpha_t x_0 + sigma_t eps, (B, *shape) each, and the guidance rule's own state."""

    x_0: Tensor
    eps: Tensor
    state: Tensor | None


class Rows:
    """The B = M * N rows of a batch made ready: all that does not depend on x_t, and the parts of a step that do.

    Raises:
        ValueError: where `paired` meets a number of members that is neither 1 nor N.
    """

    def __init__(self, process: Process, batch: Batch, *, paired: bool = False) -> None:
        model, n, members, grid = process.model, len(batch), process.members, process.grid
        if paired and members not in (1, n):
            raise ValueError(f"paired sampling needs a member a sample: {members} members, {n} samples")
        self.process, self.steps = process, grid.steps
        rows = n if paired else members * n
        sample_of_row = torch.arange(rows) % n
        member_of_row = torch.arange(rows) if paired else torch.arange(rows) // n
        axes = (-1, *(1,) * len(model.shape))

        def rows_of(table: Tensor, dtype: torch.dtype = model.dtype) -> Tensor:
            """(M, T) -> T tensors of (B, 1, ...), moved to the device in one copy."""
            table = table if table.shape[0] > 1 else table.expand(members, -1)
            return table[member_of_row].to(model.device, dtype).T.reshape(table.shape[1], *axes)

        weight = effective_weights(process.rule, process.options)
        guided = _guided_rows(weight)
        guided = guided if guided.shape[0] > 1 else guided.expand(members, -1)
        self.guided = guided[member_of_row]  # (B, T), on the host
        self.how = ["all" if row.all() else "some" if row.any() else "none" for row in self.guided.T]
        self.options = {name: rows_of(value) for name, value in {**process.options, "weight": weight}.items()}
        self.level = {name: rows_of(getattr(grid, name)) for name in ("alpha_t", "sigma_t", "alpha_s", "sigma_s")}
        exact = torch.promote_types(model.dtype, torch.float32)  # bfloat16 would make 1000 of 999
        self.times = rows_of(grid.time, exact).reshape(grid.steps, rows).repeat(1, 2)  # (T, 2 B): both halves
        self.told = {name: rows_of(table, exact).reshape(grid.steps, rows) for name, table in process.told.items()}
        self.prompts = [batch.prompts[i] for i in sample_of_row.tolist()]
        self.sample_of_row = sample_of_row.to(model.device)
        self.cond, self.both = _conditions(process, batch, self.sample_of_row, bool(self.guided.any()))
        self.seeds, self.noise = batch.seeds, self._noise_of(batch.seeds)
        self.steer: Steer | None = process.steer
        self.line: Tangent | None = None
        self.strength: list[Tensor] = []  # (B,) a step
        if self.steer is not None:
            self.strength = [x.flatten() for x in rows_of(self.steer.strength, torch.float64)]

    def again(self, steer: Steer | None, line: Tangent | None) -> Rows:
        """The same rows from their first noise on, without a steer or by a tangent in place of its reward."""
        new = copy(self)
        new.noise, new.steer, new.line = self._noise_of(self.seeds), steer, line
        return new

    # -- noise -------------------------------------------------------------------------------------------------------

    def _noise_of(self, seeds: Sequence[int]) -> Noise:
        """The noise of each sample, in the order in which the steps ask for it."""
        return Noise(seeds, self.process.model.shape, 1 + self.steps * self.process.sampler.stochastic)

    def first(self, start: Tensor | None = None) -> Tensor:
        """x_T, from noise that is given (N, *shape) or from each sample's own. Later draws do not depend on which."""
        if start is None or self.process.sampler.stochastic:
            own = self.noise.draw()
            start = own if start is None else start
        return self._spread(start) * self.process.grid.noise_scale

    def fresh(self) -> Tensor | None:
        """The noise of the next step, where the sampler wants any."""
        return self._spread(self.noise.draw()) if self.process.sampler.stochastic else None

    def _spread(self, noise: Tensor) -> Tensor:
        return noise.to(self.process.model.device, self.process.model.dtype)[self.sample_of_row]

    # -- a step --------------------------------------------------------------------------------------------------------

    def step(
        self, i: int, x_t: Tensor, memory: Memory, state: Tensor | None, fresh: Tensor | None
    ) -> tuple[Tensor, Memory, Tensor | None]:
        """Step i of T: x_t (B, *shape), memory and state -> x_s (B, *shape) and both for the next step."""
        now = self.denoise(i, x_t, state)
        x_s, memory = self.process.sampler.step(self.at(i), x_t, now.x_0, now.eps, memory, fresh)
        return x_s, memory, now.state

    def at(self, i: int) -> Step:
        """The coefficients of step i, (B, 1, ...) each."""
        a_t, s_t, a_s, s_s = (self.level[name][i] for name in ("alpha_t", "sigma_t", "alpha_s", "sigma_s"))
        grid = self.process.grid
        order = grid.orders[i] if grid.orders else None
        return Step(i, i == self.steps - 1, a_t, s_t, a_s, s_s, order, grid.heun, grid.variance, grid.noisy_end)

    def denoise(self, i: int, x_t: Tensor, state: Tensor | None) -> Denoised:
        """The prediction as the process makes it, (B, *shape) each: guided, and steered where it has a steer.

        Raises:
            ValueError: where a steer's score has no gradient.
        """
        return self.denoised_twice(i, x_t, state)[1]

    def denoised_twice(self, i: int, x_t: Tensor, state: Tensor | None) -> tuple[Denoised, Denoised]:
        """The guided prediction as it is, and steered, from one call of the network."""
        if self.steer is None:
            plain = self._guided(i, x_t, state)
            return plain, plain
        kept = torch.is_grad_enabled()  # else nobody will go back through this step, and its graph goes at once
        with torch.enable_grad(), self._in_memory(len(x_t)):
            live = x_t if kept and x_t.requires_grad else x_t.detach().requires_grad_()
            plain = self._guided(i, live, state)
            towards = self._towards(i, plain.x_0, live, kept)
        if not kept:
            plain = Denoised(*(None if x is None else x.detach() for x in plain))  # type: ignore[arg-type]
        most = self.steer.rule.most
        return plain, _moved(plain, towards, self.at(i), math.inf if most is None else most)

    def _guided(self, i: int, x_t: Tensor, state: Tensor | None) -> Denoised:
        process, at = self.process, self.at(i)
        predict = Prediction(process.model.prediction, x_t, at.alpha_t, at.sigma_t)
        cond, both = self._conditions_at(i)
        halves = _halves(process, x_t, self.times[i], cond, both, self.how[i], self.guided[:, i])
        output = halves[-1]
        if len(halves) == 2:
            options = {name: value[i] for name, value in self.options.items()}
            output, state = process.rule.combine(halves[1], halves[0], options, predict, state)
        x_0, bound = predict.x_0(output), process.grid.x_0_bound
        return Denoised(x_0.clamp(-bound, bound) if bound < math.inf else x_0, predict.eps(output), state)

    def _conditions_at(self, i: int) -> tuple[Condition, Condition | None]:
        """With what the network is told at this step alone."""
        told = {name: table[i] for name, table in self.told.items()}
        twice = {name: row.repeat(2) for name, row in told.items()}
        return self.cond.told(told), self.both and self.both.told(twice)

    def tangent(self, x: Tensor) -> Tangent:
        """The steer's reward, linearised at each of these samples (B, *shape)."""
        kept = torch.is_grad_enabled()
        with torch.enable_grad(), self._in_memory(len(x)):
            live = x if kept and x.requires_grad else x.detach().requires_grad_()
            reward = self._reward(live)
            (slope,) = torch.autograd.grad(reward.sum(), live, create_graph=kept)
            offset = reward - (slope.double() * live.double()).flatten(1).sum(1)
        return Tangent(offset, slope) if kept else Tangent(offset.detach(), slope)

    def _reward(self, x_0: Tensor) -> Tensor:
        """The steer's reward of the image that x_0 decodes to, (B,) in float64."""
        assert self.process.steer is not None
        images = self.process.model.decode(x_0)
        self.process.meter.reward_images += len(images)
        reward = self.process.steer.total(images, self.prompts)
        if not reward.requires_grad:
            raise ValueError("nothing to steer by: the score has no gradient; take a differentiable reward")
        return reward

    def _towards(self, i: int, x_0: Tensor, x_t: Tensor, kept: bool) -> Tensor:
        """The gradient in x_t of each row's own reward, times the pull of the rule."""
        steer, at = self.steer, self.at(i)
        assert steer is not None
        reward = self._reward(x_0) if self.line is None else self.line(x_0)
        own, towards = torch.autograd.grad(reward.sum(), (x_0, x_t), create_graph=kept)
        along = (own.double() * towards.double()).flatten(1).sum(1)
        spread = at.sigma_t**2 / at.alpha_t.where(at.alpha_t > 0, 1.0)
        variance = spread.double().flatten() * along  # Tweedie: of x_0 given x_t, along `own`
        reward, variance = (reward, variance) if kept else (reward.detach(), variance.detach())
        pull = steer.rule.pull(reward, variance, self.strength[i])
        return towards * pull.to(towards.dtype).reshape(-1, *(1,) * (towards.ndim - 1))

    @contextmanager
    def _in_memory(self, rows: int) -> Iterator[None]:
        """Says what steering needs, where a single image does not fit."""
        try:
            yield
        except (RuntimeError, MemoryError) as problem:
            if rows > 1 or isinstance(problem, NoRoom) or not is_out_of_memory(problem):
                raise
            raise NoRoom(
                "steering goes back through decoder and network at every step, and not even one image fits; set "
                "model.vae_tiling, draw smaller images, or use rule: {kind: target, passes: 1}, which decodes once"
            ) from problem


def _moved(plain: Denoised, towards: Tensor, at: Step, most: float) -> Denoised:
    """eps and x_0 moved together. At no signal at all, alpha_t = 0, no image is in sight and nothing is moved."""
    seen = at.alpha_t > 0
    move = _shortened((at.sigma_t * towards).where(seen, 0.0), most)
    share = at.sigma_t / at.alpha_t.where(seen, 1.0)
    return Denoised(plain.x_0 + share * move, plain.eps - move, plain.state)


def _shortened(move: Tensor, most: float) -> Tensor:
    """Each row as it is, or in its own direction where it is longer than `most`."""
    if most == math.inf:
        return move
    axes = tuple(range(1, move.ndim))
    length = move.square().mean(axes, keepdim=True).clamp(min=TINY).sqrt()
    return move * (most / length).clamp(max=1)


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
    process.meter.called(len(x_t))
    output = process.model(x_t, time, condition)
    process.meter.goes_back(output, len(x_t))
    return output
