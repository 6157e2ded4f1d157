"""Levels of a flow model: x_t = (1 - sigma) x_0 + sigma eps, a network told T sigma that returns eps - x_0.

diffusers shifts whatever sigmas it is given, by the scheduler's own `shift` s or, where it shifts by the size of the
image, by s = e^mu (or mu):

    sigma = s raw / (1 + (s - 1) raw),      raw = sigma / (s - (s - 1) sigma)

so to stop at wanted sigmas it must be handed the raw ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from genbo.diffusion import scheduler_settings
from genbo.diffusion.pipelines._pipeline import PipelineModel, refuse_unknown
from genbo.diffusion.refused import Refused
from genbo.schedules.clock import FlowClock
from genbo.schedules.grid import Grid, grid_of_levels

if TYPE_CHECKING:
    from genbo.diffusion.pipeline_options import PipelineOptions
    from genbo.diffusion.process import Sampler, Spacing


class Flow(PipelineModel):
    """A pipeline with diffusers' flow-matching scheduler."""

    part = "transformer"
    prediction = "flow_prediction"
    max_shift: ClassVar[float] = 1.15  # of this family's pipeline, where the scheduler's config has none

    def __init__(self, pipeline: Any, options: PipelineOptions | None = None) -> None:
        super().__init__(pipeline, options)
        own = pipeline.scheduler
        if type(own).__name__ != scheduler_settings.FLOW:
            name = type(own).__name__
            raise Refused(f"pretrained: this pipeline's {name} is not {scheduler_settings.FLOW}; take one that has it")

    def raw_sigmas(self, steps: int) -> Sequence[float] | None:
        """What the pipeline hands to its scheduler before shifting; None where the scheduler makes its own."""
        return None

    def scheduler(self, sampler: Sampler, **settings: Any) -> Any:
        """The pipeline's scheduler once more, with other settings."""
        if (reason := scheduler_settings.no_flow(sampler)) is not None:
            raise Refused(f"sampler: {reason}")
        own = self.pipeline.scheduler
        config = {**own.config, "_class_name": scheduler_settings.FLOW, **settings}
        if wrong := scheduler_settings.mistakes(config, sampler):
            raise Refused("; ".join(f"pretrained: {said}" for said in wrong))
        found = type(own).from_config(config)
        refuse_unknown(found)
        return found

    def _set(self, sampler: Sampler, sigmas: Sequence[float] | None) -> Any:
        """A scheduler that has been set as the pipeline's own call sets it."""
        scheduler = self.scheduler(sampler)
        given = {"num_inference_steps": sampler.steps} if sigmas is None else {"sigmas": list(sigmas)}
        mu = {"mu": self.mu} if scheduler.config.use_dynamic_shifting else {}
        scheduler.set_timesteps(**given, **mu)
        if not scheduler.sigmas.isfinite().all() or (scheduler.sigmas.diff() > 0).any():
            raise Refused(
                f"sampler: this scheduler's settings leave no {sampler.steps} levels to stop at; take other steps"
            )
        return scheduler

    @property
    def mu(self) -> float:
        """The logarithm of the shift for images of this size, by diffusers' own straight line through two sizes."""
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        config = self.pipeline.scheduler.config
        usual = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": self.max_shift}
        line = [config.get(name, value) for name, value in usual.items()]
        if None in line:
            name = list(usual)[line.index(None)]
            raise Refused(
                f"pretrained: this scheduler shifts by the size of the image, and its {name} is null; give it one"
            )
        tokens = (self.shape[1] // self.patch) * (self.shape[2] // self.patch)
        return float(calculate_shift(tokens, *line))

    @property
    def shift(self) -> float:
        config = self.pipeline.scheduler.config
        if not config.use_dynamic_shifting:
            return float(config.shift)
        return math.exp(self.mu) if config.time_shift_type == "exponential" else self.mu

    @property
    def train_steps(self) -> int:
        return int(self.pipeline.scheduler.config.num_train_timesteps)

    def grid(self, sampler: Sampler) -> Grid:
        """Where the pipeline's own call would stop."""
        scheduler = self._set(sampler, self.raw_sigmas(sampler.steps))
        sigma = scheduler.sigmas.double()[None]
        return grid_of_levels(scheduler.timesteps.double()[None], 1 - sigma, sigma)

    @property
    def clock(self) -> FlowClock:
        return FlowClock(float(self.train_steps), 1.0)

    def stops(self, sampler: Sampler, spacing: Spacing) -> Tensor:
        """`own` are shifted; `uniform` and `trailing` are even in time, to 1 or to a step before 0."""
        if spacing == "own":
            return self.grid(sampler).time[0]
        steps, most = sampler.steps, float(self.train_steps)
        if spacing == "uniform":
            return torch.linspace(most, 1.0, steps, dtype=torch.float64)
        return torch.linspace(most, 0.0, steps + 1, dtype=torch.float64)[:-1]

    def grid_at(self, sampler: Sampler, times: Tensor) -> Grid:
        """sigma = time / T, and at the end none."""
        self.scheduler(sampler)
        sigma = torch.cat([times / self.train_steps, torch.zeros_like(times[:, :1])], dim=1)
        return grid_of_levels(times, 1 - sigma, sigma)

    def arguments(self, sampler: Sampler, grid: Grid) -> dict[str, list[float]] | None:
        """The raw `sigmas` to hand to a diffusers call to stop there; None where its settings make others of them."""
        sigma, s = grid.sigma_t[0].detach(), self.shift
        raw = (sigma / (s - (s - 1) * sigma)).tolist()
        made = self._set(sampler, raw).sigmas[:-1].double()
        return {"sigmas": raw} if torch.allclose(made, sigma, rtol=1e-4, atol=1e-6) else None
