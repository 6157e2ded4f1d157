"""StableDiffusionPipeline: Stable Diffusion 1.x and 2.x, and every pipeline of that class (the bundled emoji model).

Its images equal the pipeline's own `__call__` at the same seeds, scheduler, steps and guidance. One difference
is meant: diffusers switches guidance off at a weight of 1 or less; here 0 is the unconditional model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genbo.diffusion.process import Condition
from genbo.diffusion.refused import Refused
from genbo.schedules.grid import Grid, grid_of_sigmas

if TYPE_CHECKING:
    from genbo.diffusion.models.diffusers import Diffusers
    from genbo.diffusion.process import Sampler

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmpp": "DPMSolverMultistepScheduler",
}


def open_pipeline(pipeline: Any, options: Diffusers) -> StableDiffusionModel:
    """The pipeline as a `Model`."""
    return StableDiffusionModel(pipeline, options.negative_prompt)


class StableDiffusionModel:
    """A U-Net over the latents of a VAE, told of the prompt by a CLIP text encoder."""

    def __init__(self, pipeline: Any, negative_prompt: str = "") -> None:
        self.pipeline, self.negative_prompt = pipeline, negative_prompt
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
        output: Tensor = self.unet(x_t, time, **condition.tensors, return_dict=False)[0]
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
        if type(scheduler).__name__ == SCHEDULERS["ddim"]:
            return _ddim_grid(scheduler, sampler.steps)
        sigmas = scheduler.sigmas.double()[None]
        initial = float(scheduler.init_noise_sigma)
        return grid_of_sigmas(time, sigmas, None if _unit_variance(scheduler) else initial)

    def scheduler(self, sampler: Sampler) -> Any:
        """diffusers' scheduler for a sampler's kind, with the pipeline's own settings."""
        import diffusers

        own = self.pipeline.scheduler.config
        for setting in ("clip_sample", "thresholding"):
            if own.get(setting):
                raise Refused(f"pretrained: this model's scheduler sets {setting}, which genbo's samplers do not apply")
        kind = type(sampler).__name__.lower()
        extra = {"algorithm_type": "dpmsolver++", "solver_order": 2} if kind == "dpmpp" else {}
        return getattr(diffusers, SCHEDULERS[kind]).from_config({**own, "clip_sample": False, **extra})


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
