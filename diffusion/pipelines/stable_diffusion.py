"""StableDiffusionPipeline: Stable Diffusion 1.x and 2.x, and every pipeline of that class (the bundled emoji model).

Its images equal the pipeline's own `__call__` at the same seeds, scheduler, steps and guidance. One difference
is meant: diffusers switches guidance off at a weight of 1 or less; here 0 is the unconditional model.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genbo.diffusion.adapt import Adapter, Network, network_with
from genbo.diffusion.process import Condition
from genbo.diffusion.refused import Refused
from genbo.diffusion.seed import Seed
from genbo.schedules.clock import Clock
from genbo.schedules.grid import Grid, grid_of_levels, grid_of_sigmas
from genbo.schedules.schedule import of_log_snr

if TYPE_CHECKING:
    from genbo.diffusion.models.diffusers import Diffusers
    from genbo.diffusion.process import Sampler, Spacing

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmpp": "DPMSolverMultistepScheduler",
}

NO_SIGNAL = 2.0**-24  # signal power at zero terminal SNR, for samplers that divide by it
PLAIN_TIMES = dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"), False)


def open_pipeline(pipeline: Any, options: Diffusers) -> StableDiffusionModel:
    """The pipeline as a `Model`."""
    return StableDiffusionModel(pipeline, options.negative_prompt, options.variant)


class StableDiffusionModel:
    """A U-Net over the latents of a VAE, told of the prompt by a CLIP text encoder."""

    def __init__(self, pipeline: Any, negative_prompt: str = "", variant: str | None = None) -> None:
        self.pipeline, self.negative_prompt, self.variant = pipeline, negative_prompt, variant
        self.unet, self.vae = (
            pipeline.unet.eval().requires_grad_(False),
            pipeline.vae.eval().requires_grad_(False),
        )
        pipeline.text_encoder.eval().requires_grad_(False)
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.shape = (int(self.unet.config.in_channels), int(height), int(width))
        self.prediction = str(pipeline.scheduler.config.prediction_type)
        self.device, self.dtype = torch.device(pipeline.device), pipeline.unet.dtype
        self._rows: dict[str, Tensor] = {}
        self.network: Network | None = None  # the U-Net, where it has weights of its own

    def adapted(self, adapter: Adapter, seed: Seed) -> StableDiffusionModel:
        """The same pipeline around a trainable twin of its U-Net; everything else is shared."""
        new = copy.copy(self)
        new.network = network_with(self.unet, adapter, seed)
        return new

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """What is trained: of the U-Net alone."""
        return self.network.weights if self.network else {}

    @property
    def folder(self) -> Path:
        """Where it was loaded from."""
        return Path(self.pipeline.config._name_or_path)

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Token embeddings (rows, tokens, width); each prompt goes through the text encoder once in a run."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._rows]
        if new:
            with torch.no_grad():
                embeds, _ = self.pipeline.encode_prompt(new, self.device, 1, False)
            self._rows.update(zip(new, embeds.unbind(0), strict=True))
        return Condition({"encoder_hidden_states": torch.stack([self._rows[prompt] for prompt in prompts])})

    def unconditional(self) -> Condition:
        return self.encode([self.negative_prompt])

    def __call__(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        output: Tensor = (self.network or self.unet)(x_t, time, **condition.tensors, return_dict=False)[0]
        return output

    def decode(self, x: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> images (B, 3, H, W) in [0, 1]."""
        config = self.vae.config
        image: Tensor = self.vae.decode(x / config.scaling_factor + (config.shift_factor or 0), return_dict=False)[0]
        return (image / 2 + 0.5).clamp(0, 1)

    def grid(self, sampler: Sampler) -> Grid:
        """The levels at which diffusers' scheduler of that kind would stop, with this pipeline's own settings."""
        scheduler = self.scheduler(sampler)
        scheduler.set_timesteps(sampler.steps)
        time = torch.as_tensor(scheduler.timesteps, dtype=torch.float64)[None]
        if _is_ddim(scheduler):
            return _ddim_grid(scheduler, sampler.steps)
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
        if _is_ddim(scheduler):
            last, scale = scheduler.final_alpha_cumprod.double().sqrt(), 1.0
        else:
            last = (1 + scheduler.sigmas[-1].double() ** 2).rsqrt()
            scale = 1.0 if _unit_variance(scheduler) else float(sigma[0, 0])  # sigma_max, in units of x_t
        end = last.expand_as(alpha[:, :1])
        return grid_of_levels(
            times, torch.cat([alpha, end], dim=1), torch.cat([sigma, (1 - end**2).sqrt()], dim=1), scale
        )

    def arguments(self, sampler: Sampler, grid: Grid) -> dict[str, list[float]] | None:
        """What to hand to a diffusers call to stop there: `timesteps`, or `sigmas`; None where it takes neither.

        The scheduler itself is asked, and what it makes of them is compared.
        """
        taken = inspect.signature(self.scheduler(sampler).set_timesteps).parameters
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
        made = scheduler.sigmas[:-1].double()
        return made.shape == sigmas.shape and torch.allclose(made, sigmas.detach(), rtol=1e-4, atol=0)

    def scheduler(self, sampler: Sampler, **settings: Any) -> Any:
        """diffusers' scheduler for a sampler's kind, with the pipeline's own settings, or others."""
        import diffusers

        own = {**self.pipeline.scheduler.config, **settings}
        for setting in ("clip_sample", "thresholding"):
            if own.get(setting):
                raise Refused(f"pretrained: this model's scheduler sets {setting}, which genbo's samplers do not apply")
        kind = type(sampler).__name__.lower()
        extra = {"algorithm_type": "dpmsolver++", "solver_order": 2} if kind == "dpmpp" else {}
        return getattr(diffusers, SCHEDULERS[kind]).from_config({**own, "clip_sample": False, **extra})


def _is_ddim(scheduler: Any) -> bool:
    return type(scheduler).__name__ == SCHEDULERS["ddim"]


def _unit_variance(scheduler: Any) -> bool:
    """Whether x_T is drawn with variance 1 in alpha/sigma units: all but Euler with linspace or trailing steps."""
    return "Euler" not in type(scheduler).__name__ or scheduler.config.timestep_spacing not in (
        "linspace",
        "trailing",
    )


def _ddim_grid(scheduler: Any, steps: int) -> Grid:
    """DDIM's own arithmetic: s = t - T_train // T, and before the first time its final alpha."""
    times = torch.as_tensor(scheduler.timesteps).long()
    previous = times - scheduler.config.num_train_timesteps // steps
    alpha_bar = scheduler.alphas_cumprod.double()
    bar_t = alpha_bar[times]
    bar_s = torch.where(previous >= 0, alpha_bar[previous.clamp(min=0)], scheduler.final_alpha_cumprod.double())
    alpha_t, sigma_t, alpha_s, sigma_s = (x.sqrt()[None] for x in (bar_t, 1 - bar_t, bar_s, 1 - bar_s))
    return Grid(times.double()[None], alpha_t, sigma_t, alpha_s, sigma_s)
