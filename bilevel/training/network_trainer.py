"""A network in training, and how it answers a change of what it is trained for.

The options and the mathematics stand in `bilevel/lower/denoising.py`. A training step reads nothing back from the
device and draws nothing but its minibatch, so it can be compiled or captured; minibatches are named by their seed, so
that any two networks, and a run that was stopped and one that was not, see the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import Module

from genbo.diffusion.capture import Captured
from genbo.diffusion.denoising import DenoisingLoss, Minibatch, minibatch
from genbo.diffusion.network import Network, call
from genbo.diffusion.process import Meter

if TYPE_CHECKING:
    from genbo.diffusion.seed import Seed
    from genbo.schedules.schedule import Schedule

MOMENTUM = 0.9
CLIP = 1.0  # the largest norm of a gradient


class TrainingDiverged(FloatingPointError):
    """Training left the finite numbers; the weights are those from before."""


class TrainingOptions(Protocol):
    """How a network is trained; `bilevel/lower/denoising.py` has the options, their ranges and their defaults."""

    @property
    def prediction(self) -> Literal["v_prediction", "epsilon", "sample"]: ...
    @property
    def conditioning(self) -> Literal["log_snr", "index"]: ...
    @property
    def noise_levels(self) -> Literal["broad", "schedule"]: ...
    @property
    def within(self) -> tuple[float, float]: ...
    @property
    def snr_cap(self) -> float | None: ...
    @property
    def train_steps(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def pretrain(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def warmup(self) -> int: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def ema(self) -> float: ...
    @property
    def unlabelled(self) -> float: ...
    @property
    def bf16(self) -> Literal["auto", "on", "off"]: ...
    @property
    def z_steps(self) -> int: ...
    @property
    def z_refresh(self) -> int: ...
    @property
    def z_lr(self) -> float: ...
    @property
    def z_batches(self) -> int: ...
    @property
    def steps_of_update(self) -> int:
        """Steps of training before each step of tuning."""

    def compiles(self, device: str) -> bool:
        """Whether networks are compiled on a device of this type."""

    def captures(self, device: str, weights: int) -> bool:
        """Whether steps are recorded as CUDA graphs there, for a network of so many weights."""


@dataclass(frozen=True)
class NetworkContext:
    """What a network is trained from.

    Attributes:
        module: the network before any training; it is trained in place.
        data: images (N, *shape) in [-1, 1], on the device that is trained on.
        labels: class numbers (N,), where there are classes.
        classes: their names.
        meter: what counts the calls of the network.
    """

    module: Module
    data: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    meter: Meter | None = None


class NetworkTrainer:
    """Weights, their average and AdamW's state: y. `average` is what is sampled from, and what z starts from."""

    def __init__(self, options: TrainingOptions, context: NetworkContext) -> None:
        device = context.data.device
        self.meter = context.meter or Meter()
        self.options, self.data, self.labels, self.classes = options, context.data, context.labels, context.classes
        self.module = context.module.to(device)
        self.average = copy.deepcopy(self.module).requires_grad_(False).eval()
        self.loss = DenoisingLoss(
            options.prediction,
            options.conditioning,
            options.noise_levels,
            options.within,
            options.snr_cap,
            options.train_steps,
        )
        self.forward: Callable[[Module, Schedule, Minibatch], Tensor] = self.loss
        self.body: Callable[..., Any] = call
        if options.compiles(device.type):
            self.forward = torch.compile(self.loss.__call__, dynamic=False)
            self.body = torch.compile(call, dynamic=False)
        self.captures = options.captures(device.type, sum(p.numel() for p in self.module.parameters()))
        self.stepped: dict[Any, Captured] = {}  # the training step under a kind of schedule, and
        self.replayed = Captured(self._called) if self.captures else None  # the average's call, as one launch
        self.params = list(self.module.parameters())
        self.lr = torch.zeros((), device=device)
        self.decay = torch.zeros((), device=device)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self.params if p.ndim > 1], "weight_decay": options.weight_decay},
                {"params": [p for p in self.params if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=self.lr,
            betas=(0.9, 0.99),
            fused=True,
            capturable=device.type == "cuda",
        )
        self.steps = 0
        self.moving: tuple[int, dict[str, Tensor]] | None = None  # what a step changes, once AdamW has its state
        self.copied: dict[str, Tensor] | None = None  # of it, as it is now

    @property
    def device(self) -> torch.device:
        return self.data.device

    def network(self, schedule: Schedule, module: Module | None = None, *, exact: bool = True) -> Network:
        """A model to sample from under a schedule, of the averaged weights unless another module is given.

        `exact` computes in the weights' own precision, as differences of samples want it.
        """
        return Network(
            self.average if module is None else module,
            tuple(self.data.shape[1:]),
            schedule,
            prediction=self.loss.prediction,
            conditioning=self.loss.conditioning,
            train_steps=self.loss.train_steps,
            within=self.loss.within,
            classes=self.classes,
            device=self.device,
            dtype=self.data.dtype,
            autocast=None if exact or not self._bf16 else torch.bfloat16,
            replay=self.replayed if module is None and exact else None,
        )

    def _called(self, x_t: Tensor, told: Tensor, labels: Tensor | None = None) -> Tensor:
        """The averaged network."""
        with torch.no_grad():
            found: Tensor = self.body(self.average, x_t, told, labels)
            return found

    # -- y -------------------------------------------------------------------------------------------------------------

    def train(self, schedule: Schedule, steps: int, seed: Seed) -> float:
        """AdamW under a schedule for at least one step; returns the mean loss.

        Raises `TrainingDiverged`, with the weights as they were before.
        """
        before, done = self.state(), self.steps
        schedule, total = self._here(schedule), torch.zeros((), device=self.device)
        self.module.train()
        for k in range(steps):
            self.lr.fill_(self.options.lr * min(1.0, (self.steps + 1) / max(self.options.warmup, 1)))
            self.decay.fill_(min(self.options.ema, (self.steps + 1) / (self.steps + 10)))
            total += self.step(schedule, self.draw(seed.child("batch", k)))
            self.steps += 1
        self._count(steps, back=steps)
        mean = total.item() / steps
        if not torch.stack([total, *torch._foreach_norm([*self.params])]).isfinite().all():
            self.load(before)
            raise TrainingDiverged(
                f"the training loss is {mean:g} after {done + steps} steps; lower lr ({self.options.lr:g}) or raise "
                f"warmup ({self.options.warmup})"
            )
        return mean

    def draw(self, seed: Seed) -> Minibatch:
        generator = torch.Generator(self.device).manual_seed(seed.value)
        share, none = self.options.unlabelled, len(self.classes)
        return minibatch(self.data, self.options.batch, generator, self.labels, unlabelled=share, none=none)

    def step(self, schedule: Schedule, batch: Minibatch) -> Tensor:
        """One step of AdamW and of the average; the loss, on the device."""
        self.copied = None
        if not self.captures:
            return self._step(schedule, batch)
        labels = [] if batch.labels is None else [batch.labels]
        return self._recorded(schedule)(batch.x, batch.eps, batch.at, *schedule.values.values(), *labels).clone()

    def _recorded(self, schedule: Schedule) -> Captured:
        """The step as one launch: a schedule's numbers are inputs, and what else it is is part of the recording."""
        names, family, zero = tuple(schedule.values), schedule.family, schedule.zero_terminal
        fixed = [(f.name, getattr(family, f.name)) for f in fields(family) if f.name not in names]  # type: ignore[arg-type]
        kind = (type(family), repr(fixed), names, zero)
        if kind in self.stepped:
            return self.stepped[kind]

        def of_tensors(x: Tensor, eps: Tensor, at: Tensor, *rest: Tensor) -> Tensor:
            values, labels = dict(zip(names, rest[: len(names)], strict=True)), rest[len(names) :]
            return self._step(type(schedule)(family, values, zero), Minibatch(x, eps, at, *labels))

        return self.stepped.setdefault(kind, Captured(of_tensors, self._kept, self._put_back))

    def _step(self, schedule: Schedule, batch: Minibatch) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16, cache_enabled=not self.captures):
            loss = self.forward(self.module, schedule, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, CLIP, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            averages: list[Tensor] = [*self.average.parameters()]
            torch._foreach_mul_(averages, self.decay)
            torch._foreach_add_(averages, list(torch._foreach_mul([*self.params], 1 - self.decay)))
            for kept, seen in zip(self.average.buffers(), self.module.buffers(), strict=True):
                kept.copy_(seen)
        return loss.detach()

    def _moving(self) -> dict[str, Tensor]:
        """Every tensor that a step changes, in place: weights, averages, and what AdamW has come to."""
        known = len(self.optimizer.state)
        if self.moving is None or self.moving[0] != known:
            named = {f"module.{k}": v for k, v in self.module.state_dict().items()}
            named |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
            for i, p in enumerate(self._in_order()):
                named |= {f"adamw.{i}.{k}": v for k, v in self.optimizer.state.get(p, {}).items()}
            self.moving = known, named
        return self.moving[1]

    def _kept(self) -> dict[str, Tensor]:
        """Copies of them, made together: one by one they would cost more than a step."""
        moving = self._moving()
        copies = [torch.empty_like(x) for x in moving.values()]
        with torch.no_grad():
            torch._foreach_copy_(copies, list(moving.values()))
        return dict(zip(moving, copies, strict=True))

    def _put_back(self, kept: Mapping[str, Tensor]) -> None:
        """As before; of AdamW's state what was not there yet is what it begins with, zeros."""
        with torch.no_grad():
            for name, x in self._moving().items():
                x.copy_(kept[name]) if name in kept else x.zero_()

    def _count(self, minibatches: int, back: int = 0) -> None:
        """Calls of the network, and how many of them a gradient goes back through; a recorded step runs no hooks."""
        self.meter.denoiser_calls += minibatches
        self.meter.image_forwards += minibatches * self.options.batch
        self.meter.image_backwards += back * self.options.batch

    @property
    def _bf16(self) -> bool:
        return self.options.bf16 == "on" or (self.options.bf16 == "auto" and self.device.type == "cuda")

    def _here(self, schedule: Schedule) -> Schedule:
        """The schedule on this device, without its derivatives."""
        values = {name: value.detach() for name, value in schedule.values.items()}
        return type(schedule)(schedule.family, values, schedule.zero_terminal).to(self.device)

    def state(self) -> dict[str, Tensor]:
        """Everything that a later run needs to go on: copies, made once where nothing has changed."""
        if self.copied is None:
            self.copied = self._kept() | {"steps": torch.tensor(self.steps)}
        return dict(self.copied)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state`, wherever its tensors lie."""
        for prefix, module in (("module.", self.module), ("average.", self.average)):
            module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        for i, p in enumerate(self._in_order()):
            mine = f"adamw.{i}."
            own = {k.removeprefix(mine): v for k, v in state.items() if k.startswith(mine)}
            self._adamw(p, own)
        self.steps, self.moving, self.copied = int(state["steps"]), None, None

    def _adamw(self, p: Tensor, own: Mapping[str, Tensor]) -> None:
        """AdamW's state of a weight, in its place where there is one: a recorded step writes there."""
        known = self.optimizer.state.get(p) or {}
        if known and not own and not self.stepped:
            del self.optimizer.state[p]
        elif known:
            for name, value in known.items():
                value.copy_(own[name]) if own else value.zero_()
        elif own:  # moments in the weight's own order in memory: the fused step goes through both side by side
            here = {k: v.to(self.device, copy=True) for k, v in own.items()}
            self.optimizer.state[p] = {k: torch.empty_like(p).copy_(v) if v.ndim else v for k, v in here.items()}

    def _in_order(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    # -- z -------------------------------------------------------------------------------------------------------------

    def answer(
        self, schedule: Schedule, upper: Callable[[Module], Tensor], tilt: float, steps: int, seed: Seed
    ) -> Module:
        """The averaged weights trained on under L + tilt f, by Nesterov's steps in AdamW's preconditioner, held fixed.

        In full precision and in `eval` mode: whatever two answers do not share is multiplied by gamma. The gradient of
        f goes through a sampler, and z hardly moves, so it is taken anew only every `z_refresh` steps.
        """
        schedule = self._here(schedule)
        z = copy.deepcopy(self.average).requires_grad_(True)
        params = list(z.parameters())
        scales, velocities = self._preconditioner(), [torch.zeros_like(p) for p in params]
        lr = self.options.lr * self.options.z_lr
        self._count(steps, back=steps)
        for k in range(steps):
            with torch.enable_grad():
                grads = list(torch.autograd.grad(self.loss(z, schedule, self.draw(seed.child("batch", k))), params))
                if tilt and k % self.options.z_refresh == 0:
                    pull = torch.autograd.grad(upper(z), params)
            with torch.no_grad():
                if tilt:
                    torch._foreach_add_(grads, pull, alpha=tilt)
                for p, g, v, scale in zip(params, grads, velocities, scales, strict=True):
                    g = scale * g + (self.options.weight_decay * p if p.ndim > 1 else 0.0)
                    v.mul_(MOMENTUM).add_(g)
                    p.sub_(lr * (g + MOMENTUM * v))
        return z.requires_grad_(False)

    def _preconditioner(self) -> list[Tensor | float]:
        """1 / sqrt of AdamW's second moments, bias corrected; 1 for a network that was never trained."""
        found: list[Tensor | float] = []
        for p in self.params:
            state = self.optimizer.state.get(p)
            if not state or not self.steps:  # of a step that is recorded, the moments are there before the first
                found.append(1.0)
                continue
            moment = state["exp_avg_sq"] / (1 - 0.99 ** state["step"])
            found.append(1 / (moment.sqrt() + 1e-8))
        return found

    def measured(self, module: Module, schedule: Schedule, batches: int, seed: Seed) -> Tensor:
        """L(theta; q) on `batches` minibatches, the same for every network and schedule; differentiable in q."""
        schedule = schedule.to(self.device)
        self._count(batches)
        draws = [self.draw(seed.child("measure", k)) for k in range(batches)]
        found = torch.stack([self.loss(module, schedule, draw) for draw in draws]).mean()
        self.meter.goes_back(found, batches * self.options.batch)
        return found
