"""Levels of a network that was trained at whole times 0 ... T - 1 of one noise schedule.

The pipeline's own scheduler settings are kept (betas, spacing, Karras sigmas, zero terminal SNR, clipping), and
diffusers' scheduler of the sampler's kind is asked where it would stop under them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genbo.diffusion.pipelines._pipeline import PipelineModel
from genbo.diffusion.refused import Refused
from genbo.schedules.clock import Clock
from genbo.schedules.grid import Grid, grid_of_levels, grid_of_sigmas
from genbo.schedules.schedule import of_log_snr

if TYPE_CHECKING:
    from genbo.diffusion.models.diffusers import Diffusers
    from genbo.diffusion.process import Sampler, Spacing

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmpp": "DPMSolverMultistepScheduler",
}

NO_SIGNAL = 2.0**-24  # signal power at zero terminal SNR, for samplers that divide by it
PLAIN_TIMES = dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"), False)


class Discrete(PipelineModel):
    """A pipeline with a scheduler of betas."""

    def __init__(self, pipeline: Any, options: Diffusers | None = None) -> None:
        super().__init__(pipeline, options)
        config = pipeline.scheduler.config
        if "beta_schedule" not in config or config.get("use_flow_sigmas"):
            name = type(pipeline.scheduler).__name__
            raise Refused(
                f"pretrained: this pipeline's {name} has no betas, which genbo samples by; take another model"
            )
        self.prediction = str(config.prediction_type)

    def grid(self, sampler: Sampler) -> Grid:
        """The levels at which diffusers' scheduler of that kind would stop, with this pipeline's own settings."""
        scheduler = self.scheduler(sampler)
        scheduler.set_timesteps(sampler.steps)
        time = torch.as_tensor(scheduler.timesteps, dtype=torch.float64)[None]
        if not hasattr(scheduler, "sigmas"):
            return _table_grid(scheduler, sampler.steps)
        sigmas = scheduler.sigmas.double()[None]
        initial = float(scheduler.init_noise_sigma)
        return grid_of_sigmas(time, sigmas, None if _unit_variance(scheduler) else initial)

    @property
    def clock(self) -> Clock:
        """Log-SNR at the training steps; where the last has no signal, what diffusers puts in its place."""
        from diffusers import DDIMScheduler

        bar = DDIMScheduler.from_config(self.pipeline.scheduler.config).alphas_cumprod.double().clamp(min=NO_SIGNAL)
        return Clock(len(bar) - 1.0, 0.0, bar.log() - (1 - bar).log())

    def stops(self, sampler: Sampler, spacing: Spacing) -> Tensor:
        """diffusers' own times: `uniform` is its linspace."""
        if spacing == "own":
            return self.grid(sampler).time[0]
        plain = {**PLAIN_TIMES, "timestep_spacing": {"uniform": "linspace"}.get(spacing, spacing)}
        scheduler = self.scheduler(sampler, **plain)
        scheduler.set_timesteps(sampler.steps)
        return torch.as_tensor(scheduler.timesteps, dtype=torch.float64)

    def grid_at(self, sampler: Sampler, times: Tensor) -> Grid:
        """The levels of the training steps, and straight lines in log-SNR between them.

        DDIM's own steps may end elsewhere than the next begins (`Grid` says when); these join.
        """
        scheduler = self.scheduler(sampler)
        scheduler.set_timesteps(sampler.steps)
        alpha, sigma = of_log_snr(self.clock.log_snr(times))
        if scheduler.alphas_cumprod[-1] == 0:
            without = times == len(scheduler.alphas_cumprod) - 1
            alpha, sigma = alpha.masked_fill(without, 0.0), sigma.masked_fill(without, 1.0)
        if not hasattr(scheduler, "sigmas"):
            last, scale = _final(scheduler).sqrt(), 1.0
        else:
            last = (1 + scheduler.sigmas[-1].double() ** 2).rsqrt()
            scale = 1.0 if _unit_variance(scheduler) else float(sigma[0, 0])  # sigma_max, in units of x_t
        end = last.expand_as(alpha[:, :1])
        alpha, sigma = torch.cat([alpha, end], dim=1), torch.cat([sigma, (1 - end**2).sqrt()], dim=1)
        return grid_of_levels(times, alpha, sigma, scale, _bound(scheduler))

    def arguments(self, sampler: Sampler, grid: Grid) -> dict[str, list[float]] | None:
        """What to hand to the pipeline's call to stop there: `timesteps`, or `sigmas`; None where it takes neither.

        The scheduler itself is asked, and what it makes of them is compared.
        """
        taken = self.takes(self.scheduler(sampler))
        sigmas = grid.sigma_t[0] / grid.alpha_t[0]
        end = float(grid.sigma_s[0, -1] / grid.alpha_s[0, -1])
        ways: dict[str, list[float]] = {
            "timesteps": [round(time) for time in grid.time[0].tolist()],
            "sigmas": [*sigmas.tolist(), end],
        }
        found = (name for name in ways if name in taken and self._stops_there(sampler, {name: ways[name]}, sigmas))
        return next(({name: ways[name]} for name in found), None)

    def _stops_there(self, sampler: Sampler, given: Mapping[str, list[float]], sigmas: Tensor) -> bool:
        scheduler = self.scheduler(sampler)
        try:
            scheduler.set_timesteps(**given)
        except ValueError:  # the pipeline's own settings leave no room for times
            return False
        made = _sigmas(scheduler)
        return made.shape == sigmas.shape and torch.allclose(made, sigmas.detach(), rtol=1e-4, atol=0)

    def scheduler(self, sampler: Sampler, **settings: Any) -> Any:
        """diffusers' scheduler for a sampler's kind, with the pipeline's own settings, or others."""
        own = {**self.pipeline.scheduler.config, **settings}
        if own.get("thresholding"):
            raise Refused("pretrained: this model's scheduler sets thresholding, which genbo's samplers do not apply")
        return of_betas(own, sampler)


def of_betas(config: Mapping[str, Any], sampler: Sampler) -> Any:
    """diffusers' scheduler for a sampler's kind, by the config of any scheduler of betas.

    One that says nothing of clipping is of a kind that never clips; DDIM and DDPM would clip latents by default.
    """
    import diffusers

    kind = type(sampler).__name__.lower()
    extra: dict[str, dict[str, Any]] = {
        "dpmpp": {"algorithm_type": "dpmsolver++", "solver_order": 2},
        "ddpm": {"variance_type": f"fixed_{getattr(sampler, 'variance', '')}"},
    }
    return getattr(diffusers, SCHEDULERS[kind]).from_config({"clip_sample": False, **config, **extra.get(kind, {})})


def _unit_variance(scheduler: Any) -> bool:
    """Whether x_T is drawn with variance 1 in alpha/sigma units: all but Euler with linspace or trailing steps."""
    return "Euler" not in type(scheduler).__name__ or scheduler.config.timestep_spacing not in (
        "linspace",
        "trailing",
    )


def _bound(scheduler: Any) -> float:
    """How far a prediction of x_0 may lie: diffusers' `clip_sample`, which DDIM and DDPM alone know."""
    config = scheduler.config
    clips = not hasattr(scheduler, "sigmas") and config.clip_sample
    return float(config.clip_sample_range) if clips else math.inf


def _final(scheduler: Any) -> Tensor:
    """The signal power at the end of the last step: 1 where the scheduler does not say otherwise."""
    final: Tensor = getattr(scheduler, "final_alpha_cumprod", torch.ones(()))
    return final.double()


def _sigmas(scheduler: Any) -> Tensor:
    """sigma / alpha at the scheduler's times."""
    if hasattr(scheduler, "sigmas"):
        made: Tensor = scheduler.sigmas[:-1].double()
        return made
    bar: Tensor = scheduler.alphas_cumprod.double()[torch.as_tensor(scheduler.timesteps).long()]
    return ((1 - bar) / bar).sqrt()


def _table_grid(scheduler: Any, steps: int) -> Grid:
    """The arithmetic of schedulers that look levels up in the table of alphas.

    DDPM goes from each time to the next; DDIM to s = t - T_train // T, and before the first time to its final alpha.
    """
    times = torch.as_tensor(scheduler.timesteps).long()
    previous = times - scheduler.config.num_train_timesteps // steps
    if type(scheduler).__name__ == SCHEDULERS["ddpm"]:
        previous = torch.cat([times[1:], torch.tensor([-1])])
    alpha_bar = scheduler.alphas_cumprod.double()
    bar_t = alpha_bar[times]
    bar_s = torch.where(previous >= 0, alpha_bar[previous.clamp(min=0)], _final(scheduler))
    alpha_t, sigma_t, alpha_s, sigma_s = (x.sqrt()[None] for x in (bar_t, 1 - bar_t, bar_s, 1 - bar_s))
    return Grid(times.double()[None], alpha_t, sigma_t, alpha_s, sigma_s, x_0_bound=_bound(scheduler))
