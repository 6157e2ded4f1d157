"""A network of one's own as a model: any torch module of (x_t, time[, class_labels]), with what its time means.

    log_snr    it is told 25 (lambda + 20): -20 to 20 in log-SNR as the 0 to 1000 that diffusers' networks expect;
               lambda is held within the range that the network was trained on
    index      it is told the index of a step of a schedule's table, 0 to train_steps - 1

A prompt is the name of a class, or anything where there are no classes; the last label is the unconditional half's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from genbo.diffusion.process import Condition

if TYPE_CHECKING:
    from genbo.diffusion.process import Sampler
    from genbo.schedules.grid import Grid
    from genbo.schedules.schedule import Schedule, Told

UNIT, SHIFT = 25.0, 20.0
CPU = torch.device("cpu")


def told_of_log_snr(log_snr: Tensor, within: tuple[float, float]) -> Tensor:
    """lambda as the number that a network is told."""
    return UNIT * (log_snr.clamp(*within) + SHIFT)


def log_snr_of_told(told: Tensor) -> Tensor:
    """The lambda that a network was told: for modules that want it as it is."""
    return told / UNIT - SHIFT


def call(module: torch.nn.Module, x_t: Tensor, told: Tensor, labels: Tensor | None) -> Tensor:
    """The raw output, whether the module wraps it, as diffusers' do, or not."""
    output: Any = module(x_t, told) if labels is None else module(x_t, told, class_labels=labels)
    return output if isinstance(output, Tensor) else output.sample


def _carries_tangents(*inputs: Tensor) -> bool:
    """Whether a derivative is on its way through them, forwards: a recording would lose it."""
    return any(forward_ad.unpack_dual(x).tangent is not None for x in inputs)


@dataclass(frozen=True)
class Network:
    """A model (`diffusion.process.Model`) made of a module; pixels are in [-1, 1] inside and in [0, 1] outside."""

    module: torch.nn.Module
    shape: tuple[int, ...]
    schedule: Schedule
    prediction: str = "v_prediction"
    conditioning: Told = "log_snr"
    train_steps: int = 1000
    within: tuple[float, float] = (-12.0, 12.0)
    classes: tuple[str, ...] = ()
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    replay: Callable[..., Tensor] | None = None  # the module's call as one launch, where nothing is differentiated

    def encode(self, prompts: Sequence[str]) -> Condition:
        if not self.classes:
            return Condition({})
        strangers = sorted(set(prompts) - set(self.classes))
        if strangers:
            raise ValueError(f"the classes are {', '.join(self.classes)}; there is no {strangers[0]!r}")
        return Condition({"labels": torch.tensor([self.classes.index(p) for p in prompts], device=self.device)})

    def unconditional(self) -> Condition:
        if not self.classes:
            return Condition({})
        return Condition({"labels": torch.tensor([len(self.classes)], device=self.device)})

    def __call__(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        told = told_of_log_snr(time, self.within) if self.conditioning == "log_snr" else time
        if self.replay is not None and not torch.is_grad_enabled() and not _carries_tangents(x_t, told):
            output = self.replay(x_t, told, *condition.tensors.values())
            return output.clone()  # the next call writes where it lies, and samplers remember
        if self.autocast is None:
            return call(self.module, x_t, told, condition.tensors.get("labels"))
        with torch.autocast(self.device.type, self.autocast):
            return call(self.module, x_t, told, condition.tensors.get("labels")).to(self.dtype)

    def decode(self, x: Tensor) -> Tensor:
        return ((x + 1) / 2).clamp(0, 1)

    def grid(self, sampler: Sampler) -> Grid:
        return self.schedule.to(CPU).grid(sampler.steps, told=self.conditioning, train_steps=self.train_steps)
