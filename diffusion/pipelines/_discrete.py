"""Levels of a network that was trained at whole times 0 ... T - 1 of one noise schedule.

The pipeline's own scheduler settings are kept (betas, spacing, Karras sigmas, zero terminal SNR, clipping, the solver's
order), and diffusers' scheduler of the sampler's kind is asked where it would stop under them. `scheduler_settings`
lists which are followed; what is not is refused.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genbo.diffusion import scheduler_settings
from genbo.diffusion.kinds import kind_of
from genbo.diffusion.pipelines._pipeline import PipelineModel, as_loaded, refuse_unknown
from genbo.diffusion.refused import Refused
from genbo.diffusion.room import first_line
from genbo.schedules.clock import Clock
from genbo.schedules.grid import Grid, ends_at, grid_of_levels, grid_of_sigmas
from genbo.schedules.schedule import of_log_snr, zero_terminal_mistake

if TYPE_CHECKING:
    from genbo.diffusion.pipeline_options import PipelineOptions
    from genbo.diffusion.process import Sampler, Spacing

FEW_STEPS = 15  # below which diffusers lowers the order at the end
NO_SIGNAL = 2.0**-24  # signal power at zero terminal SNR, for samplers that divide by it
PLAIN_TIMES = dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"), False)


class Discrete(PipelineModel):
    """A pipeline with a scheduler of betas."""

    def __init__(self, pipeline: Any, options: PipelineOptions | None = None) -> None:
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
        stopping(scheduler, sampler)
        time = torch.as_tensor(scheduler.timesteps, dtype=torch.float64)[None]
        if not _has_sigmas(scheduler):
            grid = _table_grid(scheduler, sampler.steps)
        else:
            sigmas = scheduler.sigmas.double()[None, : sampler.steps + 1]
            initial = None if _unit_variance(scheduler) else float(scheduler.init_noise_sigma)
            grid = grid_of_sigmas(time, sigmas, initial, exploding_end=_is_euler(scheduler))
        if (grid.alpha_t == 0).any() and (reason := zero_terminal_mistake(True, self.prediction)):
            raise Refused(f"pretrained: {reason}")
        return replace(grid, **_solver(scheduler, time))

    @property
    def clock(self) -> Clock:
        """Log-SNR at the training steps; where the last has no signal, what diffusers puts in its place."""
        from diffusers import DDPMScheduler  # the one that knows every schedule of betas

        bar = DDPMScheduler.from_config(given(self.pipeline.scheduler)).alphas_cumprod.double().clamp(min=NO_SIGNAL)
        return Clock(len(bar) - 1.0, 0.0, bar.log() - (1 - bar).log())

    def stops(self, sampler: Sampler, spacing: Spacing) -> Tensor:
        """diffusers' own times: `uniform` is its linspace."""
        if spacing == "own":
            return self.grid(sampler).time[0]
        plain = {**PLAIN_TIMES, "timestep_spacing": {"uniform": "linspace"}.get(spacing, spacing)}
        scheduler = self.scheduler(sampler, **plain)
        stopping(scheduler, sampler)
        return torch.as_tensor(scheduler.timesteps, dtype=torch.float64)

    def grid_at(self, sampler: Sampler, times: Tensor) -> Grid:
        """The levels of the training steps, and straight lines in log-SNR between them.

        DDIM's own steps may end elsewhere than the next begins (`Grid` says when); these join.
        """
        scheduler = self.scheduler(sampler)
        if scheduler_settings.tells_log_sigma(scheduler.config, sampler):
            raise Refused("tune: this network is told log sigma in place of a time, so its times cannot be tuned")
        stopping(scheduler, sampler)
        alpha, sigma = of_log_snr(self.clock.log_snr(times))
        if scheduler.alphas_cumprod[-1] == 0:
            without = times == len(scheduler.alphas_cumprod) - 1
            alpha, sigma = alpha.masked_fill(without, 0.0), sigma.masked_fill(without, 1.0)
        if not _has_sigmas(scheduler):
            last, scale = _final(scheduler).sqrt(), 1.0
            end = last, (1 - last**2).sqrt()
        else:
            end = ends_at(scheduler.sigmas[sampler.steps].double(), exploding=_is_euler(scheduler))
            scale = 1.0 if _unit_variance(scheduler) else float(sigma[0, 0])  # sigma_max, in units of x_t
        alpha, sigma = (torch.cat([x, e.expand_as(x[:, :1])], dim=1) for x, e in zip((alpha, sigma), end, strict=True))
        grid = grid_of_levels(times, alpha, sigma, scale, _bound(scheduler))
        return replace(grid, **_solver(scheduler, times))

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
        config = given(self.pipeline.scheduler, **settings)
        if sampler.traits.levels_of is None:
            raise Refused(f"sampler: {scheduler_settings.unserved(kind_of(sampler))}")
        if wrong := scheduler_settings.mistakes(config, sampler):
            raise Refused("; ".join(f"pretrained: {said}" for said in wrong))
        found = as_loaded(self.pipeline, of_betas(config, sampler))
        if not _same_levels(self.pipeline.scheduler, found):
            own = type(self.pipeline.scheduler).__name__
            raise Refused(
                f"pretrained: this model's {own} has levels that no sampler of genbo's has; take another model"
            )
        refuse_unknown(found)
        return found


def of_betas(config: Mapping[str, object], sampler: Sampler) -> object:
    """diffusers' scheduler for a sampler's kind, by the config of any scheduler of betas."""
    import diffusers

    cls = getattr(diffusers, scheduler_settings.CLASSES[str(sampler.traits.levels_of)])
    try:
        return cls.from_config(scheduler_settings.made_of(config, sampler))
    except (ValueError, NotImplementedError, ImportError) as error:
        raise Refused(
            f"pretrained: diffusers makes no {cls.__name__} of this scheduler: {first_line(error)}"
        ) from error


def given(scheduler: Any, **settings: Any) -> dict[str, Any]:
    """A scheduler's config, and settings in place of its own.

    diffusers leaves what it lists as `_use_default_values` to the next class: there must be nothing in that list that a
    pipeline has set itself since, or that is set here, and nothing of what the network was trained on.
    """
    config, parameters = dict(scheduler.config), inspect.signature(type(scheduler).__init__).parameters
    left = [name for name in config.get("_use_default_values", ()) if name in parameters and name not in settings]
    of_network = {*scheduler_settings.TABLE, *scheduler_settings.OF_NETWORK}
    kept = [name for name in left if name not in of_network and config[name] == parameters[name].default]
    return {**config, **settings, "_use_default_values": kept}


def stopping(scheduler: Any, sampler: Sampler) -> None:
    """Set to a sampler's steps, each of which leads from one level to a cleaner one; `Refused` where it cannot be."""
    levels, steps = str(sampler.traits.levels_of), sampler.steps
    if reason := scheduler_settings.steps_mistake(scheduler.config, levels, steps, sampler=kind_of(sampler)):
        raise Refused(f"sampler: {reason}")
    fewer = (
        f"sampler: this scheduler's settings leave no {steps} levels to stop at; take other settings, or other steps"
    )
    try:
        scheduler.set_timesteps(steps)
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise Refused(f"{fewer} ({first_line(error)})") from error
    times = torch.as_tensor(scheduler.timesteps)
    sound = len(times) == steps and bool(times.double().isfinite().all()) and int((times == times[0]).sum()) == 1
    if not _has_sigmas(scheduler):
        sound = sound and int(times.min()) >= 0 and int(times.max()) < len(scheduler.alphas_cumprod)
    elif sound:
        sigmas = scheduler.sigmas[: steps + 1].double()
        gaps = sigmas.diff()
        sound = bool((gaps <= 0).all() if _is_euler(scheduler) else (gaps < 0).all())  # False where one is NaN
    if not sound:
        raise Refused(fewer)


def _same_levels(own: Any, other: Any) -> bool:
    """Whether a scheduler of another class has made the same levels of the same betas, as far as both can be asked."""
    table, others = (
        getattr(scheduler, "alphas_cumprod", None) for scheduler in (own, other)
    )  # not every class of diffusers has one
    if table is None or others is None:
        return True
    if any(scheduler.config.get("rescale_betas_zero_snr") for scheduler in (own, other)):
        return True  # which some classes do not know
    own_bar, other_bar = (bar.double().cpu() for bar in (table, others))
    return len(own_bar) == len(other_bar) and torch.allclose(own_bar, other_bar, rtol=1e-4, atol=1e-6)


def _solver(scheduler: Any, times: Tensor) -> dict[str, Any]:
    """How a scheduler steps between its levels at these times (M, T), as a grid has it."""
    config = scheduler.config
    if type(scheduler).__name__ == scheduler_settings.CLASSES["ddpm"]:
        large = config.variance_type == "fixed_large"
        return {"variance": "large" if large else "small", "noisy_end": large and bool((times[:, -1] > 0).all())}
    if type(scheduler).__name__ != scheduler_settings.CLASSES["dpmpp"]:
        return {}
    return {"orders": _orders(config, times.shape[1]), "heun": config.solver_type == "heun"}


def _orders(config: Any, steps: int) -> tuple[int, ...]:
    """The order of each step of DPM-Solver: no more than there are predictions, and fewer at the end of few steps."""
    few = config.lower_order_final and steps < FEW_STEPS
    orders = [min(config.solver_order, i + 1) for i in range(steps)]
    if few and steps > 1:
        orders[-2] = min(orders[-2], 2)
    if few or config.euler_at_final or config.final_sigmas_type == "zero":
        orders[-1] = 1
    return tuple(orders)


def _has_sigmas(scheduler: object) -> bool:
    """Whether it keeps its levels as sigma / alpha; DDIM's and DDPM's look them up in the table of alphas."""
    return hasattr(scheduler, "sigmas")  # diffusers' schedulers share no interface that says so


def _is_euler(scheduler: object) -> bool:
    return type(scheduler).__name__ == scheduler_settings.CLASSES["euler"]


def _unit_variance(scheduler: Any) -> bool:
    """Whether x_T is drawn with variance 1 in alpha/sigma units: all but Euler with linspace or trailing steps."""
    return not _is_euler(scheduler) or scheduler.config.timestep_spacing not in (
        "linspace",
        "trailing",
    )


def _bound(scheduler: Any) -> float:
    """How far a prediction of x_0 may lie: diffusers' `clip_sample`, which DDIM and DDPM alone know."""
    config = scheduler.config
    clips = not _has_sigmas(scheduler) and config.clip_sample
    return float(config.clip_sample_range) if clips else math.inf


def _final(scheduler: object) -> Tensor:
    """The signal power at the end of the last step: 1 where the scheduler does not say otherwise."""
    # of the two classes with a table, DDIM's alone has one
    final: Tensor = getattr(scheduler, "final_alpha_cumprod", torch.ones(()))
    return final.double()


def _sigmas(scheduler: Any) -> Tensor:
    """sigma / alpha at the scheduler's times."""
    if _has_sigmas(scheduler):
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
    if type(scheduler).__name__ == scheduler_settings.CLASSES["ddpm"]:
        previous = torch.cat([times[1:], torch.tensor([-1])])
    alpha_bar = scheduler.alphas_cumprod.double()
    bar_t = alpha_bar[times]
    bar_s = torch.where(previous >= 0, alpha_bar[previous.clamp(min=0)], _final(scheduler))
    alpha_t, sigma_t, alpha_s, sigma_s = (x.sqrt()[None] for x in (bar_t, 1 - bar_t, bar_s, 1 - bar_s))
    return Grid(times.double()[None], alpha_t, sigma_t, alpha_s, sigma_s, x_0_bound=_bound(scheduler))
