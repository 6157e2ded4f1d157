"""Training a lower level: weights that follow a loss, a step at a time, from draws that are named by their step.

Two losses whose minimiser, over all laws, is p_lambda proportional to p0 exp(r2 / lambda), the same for every lambda:

    Denoise   sum_i w_i E |eps(x_t) - eps|^2           on samples x_i of p0, w_i their weights; the law's own denoiser
    Climb     KL(path || path of p0) - E[r2] / lambda  on samples of its own, by gradients of r2 through every step

Step k of a loss draws from the seed's child k alone, so a training that is resumed equals one that was not interrupted,
and two trainings from one seed share their draws. A generator yields after every step; stopping is leaving it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from genbo.bilevel.scoring import Weighted, total
from genbo.diffusion.adapt import Trainable, restore, tensors
from genbo.diffusion.guided_loss import Draw, draw, predicted_eps
from genbo.diffusion.path_kl import sample_with_kl
from genbo.diffusion.process import Process
from genbo.diffusion.seed import Seed, batch_of

WARM = 0.05  # of the steps, over which the learning rate rises to its full height
LONGEST = 1.0  # norm of a gradient that is taken as it is; a longer one is shortened to it
SETTLED = 1e-8  # norm of a gradient that a deterministic training stops at
FIXED_KEY = "fixed"  # of a state, before the name of a tensor of the loss
FIXED = 0  # the step whose draws a deterministic training keeps


class NotFinite(ArithmeticError):
    """The loss or its gradient is no number any more; the weights are those before the step that found it."""


class Loss(Protocol):
    """What is trained down."""

    def backward(self, process: Process, step: int) -> float:
        """The loss on the step's own draws; its gradient is added to the weights of the process' model."""


@dataclass(frozen=True)
class Moment:
    """A step that was taken: the loss before it, on draws of its own."""

    step: int
    steps: int
    loss: float


# -- losses ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Denoise:
    """The denoising loss of samples x (C, n, *shape) with log-weights (C, n), which count within a prompt.

    `proposal` are the log-weights that samples are drawn by, where they are others: so two losses share their draws.
    `prior` are those under which the samples are the pretrained model's, where they do not all count the same. With a
    `base`, what the pretrained model gets wrong about these very samples is taken out,

        grad = sum_i w_i grad |eps(x_t) - eps|^2 - sum_i v_i 2 (eps_base(x_t) - eps) . grad eps(x_t),  v_i of prior

    whose second sum has mean 0 where the samples are the pretrained model's own and it tells their noise as well as can
    be told. It is a control variate: where w = v the gradient at the base is exactly 0, so n samples are no reason to
    leave it; nor is what the sampler's steps made of them. Samples are then drawn half by w and half by v, so that
    neither sum has a large factor. For a network that can tell samples apart the second sum has no
    bottom; `hold` |eps(x_t) - eps_base(x_t)|^2 over all samples gives it one. `levels` (T,) multiply every term of
    their noise level, see `bilevel.training.level_weights`.
    """

    prompts: Sequence[str]
    x: Tensor
    logw: Tensor
    rows: int
    seed: Seed
    proposal: Tensor | None = None
    prior: Tensor | None = None
    base: Process | None = None
    hold: float = 0.0
    levels: Tensor | None = None

    def backward(self, process: Process, step: int) -> float:
        dtype, loss = torch.promote_types(process.model.dtype, torch.float32), 0.0
        generator, by = self.seed.child("draws", step).generator(), self._drawn_by()
        drawn, chosen = draw(self.x.to(dtype), self.prompts, by, process.steps, self.rows, generator)
        level = 1.0 if self.levels is None else self.levels[drawn.level]
        own, before = (_share(logw, by)[chosen] * level for logw in (self.logw, self._prior()))
        for at in parts(len(drawn), process.batch):
            here = drawn.part(at)
            eps = predicted_eps(process, here)
            live = own[at].to(eps.device) @ _mean_square(eps.to(dtype) - here.eps.to(eps.device)).double()
            if self.base is not None:
                live = live + before[at].to(eps.device) @ self._anchored(here, eps.to(dtype)).double()
            (live / len(drawn)).backward()
            loss += live.item() / len(drawn)
        return loss

    def _drawn_by(self) -> Tensor:
        """Log-weights."""
        by = (self.logw if self.proposal is None else self.proposal).double().log_softmax(1)
        return by if self.base is None else torch.logaddexp(by, self._prior().log_softmax(1)) - math.log(2)

    def _prior(self) -> Tensor:
        return torch.zeros_like(self.logw).double() if self.prior is None else self.prior.double()

    def _anchored(self, drawn: Draw, eps: Tensor) -> Tensor:
        """What the base adds to the loss of each row."""
        assert self.base is not None
        with torch.no_grad():
            before = predicted_eps(self.base, drawn).to(eps.dtype)
        known = before - drawn.eps.to(before)
        return self.hold * _mean_square(eps - before) - 2 * (known * eps).flatten(1).mean(1)


def _share(logw: Tensor, by: Tensor) -> Tensor:
    """How much more often each sample should have been drawn, flat."""
    return (logw.double().log_softmax(1) - by.log_softmax(1)).exp().flatten()


def _mean_square(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1)


@dataclass(frozen=True)
class Climb:
    """The lower level itself, over the steps of a stochastic sampler, none of them left out: KL - E[r] / lambda."""

    base: Process
    prompts: Sequence[str]
    reward: Weighted
    lam: float
    rows: int
    seed: Seed

    def backward(self, process: Process, step: int) -> float:
        loss = 0.0
        batch = batch_of(self.prompts, self.rows, self.seed.child("draws", step))
        for chunk in batch.chunks(process.batch):
            x, kl = sample_with_kl(process, self.base, chunk, checkpoint=True)
            images = process.model.decode(x)
            process.meter.reward_images += len(images)
            live = (kl - total(self.reward, images, chunk.prompts) / self.lam).sum() / self.rows
            live.backward()
            loss += live.item()
        return loss


def parts(rows: int, size: int) -> Iterator[slice]:
    for at in range(0, rows, size):
        yield slice(at, min(at + size, rows))


# -- steps -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """How long at most, and how fast. `newton` is for a handful of numbers: L-BFGS on draws that stay the same."""

    steps: int
    lr: float
    newton: bool = False


class Training:
    """A training under way: run through it, and at any time its process is the one with the weights so far.

    The model of the process is trained in place. `state` is all there is to go on from, as named tensors; `fixed` are
    tensors of the loss that it holds as well.
    """

    def __init__(
        self,
        process: Process,
        loss: Loss,
        pace: Pace,
        state: Mapping[str, Tensor] | None = None,
        fixed: Mapping[str, Tensor] | None = None,
    ) -> None:
        if not isinstance(process.model, Trainable) or not process.model.weights:
            raise TypeError("only a model with weights of its own can be trained: adapt it first")
        self.process, self.loss, self.pace, self.fixed = process, loss, pace, dict(fixed or {})
        self.model: Trainable = process.model
        self.step = 0
        weights = list(self.model.weights.values())
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.LBFGS(
                weights, max_iter=1, max_eval=25, tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe"
            )
            if pace.newton
            else torch.optim.Adam(weights, lr=pace.lr)
        )
        if state:
            self._restore(state)

    def __iter__(self) -> Iterator[Moment]:
        while self.step < self.pace.steps:
            loss, settled = self._newton() if self.pace.newton else self._adam()
            self.step += 1
            yield Moment(self.step, self.pace.steps, loss)
            if settled:
                return

    def run(self) -> Process:
        """All of it, without a word on the way."""
        for _ in self:
            pass
        return self.process

    def _adam(self) -> tuple[float, bool]:
        self.optimizer.zero_grad()
        loss = self.loss.backward(self.process, self.step)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.weights.values(), LONGEST))
        self._check(loss, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.pace.lr * height(self.step, self.pace.steps)
        self.optimizer.step()
        return loss, False

    def _newton(self) -> tuple[float, bool]:
        """One step along a line: the loss where it begins, and whether nothing is to be gained any more."""
        found: list[tuple[float, float]] = []

        def closure() -> float:
            self.optimizer.zero_grad()
            found.append((self.loss.backward(self.process, FIXED), _norm(self.model)))
            self._check(*found[-1])
            return found[-1][0]

        before = tensors(self.model)
        try:
            self.optimizer.step(closure)
        except NotFinite:
            restore(self.model, before)
            raise
        (loss, norm), now = found[0], tensors(self.model)
        return loss, norm < SETTLED or all(torch.equal(before[name], now[name]) for name in now)

    def _check(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        raise NotFinite(
            f"fine-tuning went wrong at step {self.step + 1} of {self.pace.steps}: the "
            f"{'loss' if not math.isfinite(loss) else 'gradient'} is not a finite number; the weights before are kept. "
            "Take a smaller lower.lr, a larger lambda, or model.dtype: fp32"
        )

    # -- keeping -----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """The step, the weights, Adam's two averages, and what is fixed of the loss."""
        kept = {"step": torch.tensor(self.step), **{f"weight {n}": w for n, w in tensors(self.model).items()}}
        kept |= {f"{FIXED_KEY} {name}": value for name, value in self.fixed.items()}
        for name, weight in self.model.weights.items():
            for key, value in self._moments(weight).items():
                kept[f"{key} {name}"] = value.detach().cpu().clone()
        return kept

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        restore(self.model, _named(state, "weight"))
        self.step = int(state["step"])
        for key in () if self.pace.newton else ("exp_avg", "exp_avg_sq"):
            for name, value in _named(state, key).items():
                weight = self.model.weights[name]
                own = self.optimizer.state[weight]
                own[key], own["step"] = value.to(weight, copy=True), torch.tensor(float(self.step))

    def _moments(self, weight: Tensor) -> dict[str, Tensor]:
        own: Mapping[str, Any] = {} if self.pace.newton else self.optimizer.state[weight]
        return {key: own[key] for key in ("exp_avg", "exp_avg_sq") if key in own}


def height(step: int, steps: int) -> float:
    """The learning rate's share of its full height: up at first, then straight down to nothing."""
    return min((step + 1) / max(1.0, WARM * steps), 1 - step / steps)


def _norm(model: Trainable) -> float:
    grads = [weight.grad for weight in model.weights.values() if weight.grad is not None]
    return float(torch.stack([g.double().norm() for g in grads]).norm())


def fixed_in(state: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The tensors of the loss that a state holds, by name; none of a state of None."""
    return _named(state or {}, FIXED_KEY)


def _named(state: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name.split(" ", 1)[1]: value for name, value in state.items() if name.startswith(f"{key} ")}
