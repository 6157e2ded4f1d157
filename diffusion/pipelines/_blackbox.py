"""Any pipeline by its own `__call__`, whose signature says what it can be told.

One call draws a member's samples, each from a generator of its own. A weight that changes from step to step is handed
over by `callback_on_step_end`, which sets that of the next step. diffusers switches guidance off at a weight of 1 and
below, and so does a black box.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genbo.diffusion import scheduler_settings
from genbo.diffusion.pipelines._discrete import given, of_betas, stopping
from genbo.diffusion.pipelines._pipeline import PipelineModel, as_loaded
from genbo.diffusion.process import Condition
from genbo.diffusion.refused import Refused
from genbo.diffusion.tokens import unsaid
from genbo.schedules.grid import Grid, grid_of_levels

if TYPE_CHECKING:
    from genbo.diffusion.adapt import Adapter
    from genbo.diffusion.pipeline_options import PipelineOptions
    from genbo.diffusion.pipelines._pipeline import Size
    from genbo.diffusion.process import Process, Sampler
    from genbo.diffusion.seed import Batch, Seed

NEEDED = ("prompt", "generator", "num_inference_steps", "output_type", "guidance_scale")


def open_pipeline(pipeline: object, options: PipelineOptions) -> BlackboxModel:
    """The pipeline as a `Model` that draws by itself."""
    return BlackboxModel(pipeline, options)


class BlackboxModel(PipelineModel):
    """Its samples are images in [0, 1]."""

    prediction = "sample"

    def __init__(self, pipeline: Any, options: PipelineOptions | None = None) -> None:
        self.part = "unet" if "unet" in pipeline.components else "transformer"  # type: ignore[misc]
        self.taken = inspect.signature(pipeline.__call__).parameters
        if missing := [name for name in NEEDED if name not in self.taken]:
            name = type(pipeline).__name__
            raise Refused(
                f"pretrained: the call of {name} takes no {missing[0]}, which a black box is told; take another"
            )
        if self.part not in pipeline.components:
            raise Refused(f"pretrained: {type(pipeline).__name__} has neither unet nor transformer; take another model")
        super().__init__(pipeline, options)

    @property
    def channels(self) -> int:
        return 3

    def _latent_size(self) -> Size:
        """Of the images: what the call makes where it is told none is known once it has."""
        return self.options.height or 0, self.options.width or 0

    @property
    def pixels(self) -> Size:
        return self._latent_size()

    def encode(self, prompts: Sequence[str]) -> Condition:
        raise Refused("a black box draws by itself; its network cannot be asked by genbo")

    def call(self, network: object, x_t: Tensor, time: Tensor, told: Mapping[str, Tensor]) -> Tensor:
        raise Refused("a black box draws by itself; its network cannot be asked by genbo")

    def decode(self, x: Tensor) -> Tensor:
        return x

    def adapted(self, adapter: Adapter, seed: Seed) -> PipelineModel:
        raise ValueError("a black box cannot be fine-tuned: no gradient comes back through a pipeline's own call")

    def grid(self, sampler: Sampler) -> Grid:
        """As many steps as there are; their levels are the pipeline's own, and nobody reads these."""
        scheduler = self.scheduler(sampler)
        if type(scheduler).__name__ in scheduler_settings.CLASSES.values():
            stopping(scheduler, sampler)
        steps = torch.linspace(1, 0, sampler.steps + 1, dtype=torch.float64)[None]
        return grid_of_levels(steps[:, :-1], 1 - steps, steps)

    def scheduler(self, sampler: Sampler, **settings: Any) -> Any:
        """The sampler's kind with the pipeline's own settings; a flow model keeps the kind that it has."""
        if wrong := scheduler_settings.undrawn(sampler):
            raise Refused(f"sampler: {wrong}")
        own = self.pipeline.scheduler
        config = {**own.config, **settings}
        if "beta_schedule" in config and not config.get("use_flow_sigmas"):
            return as_loaded(self.pipeline, of_betas(given(own, **settings), sampler))
        if sampler.traits.levels_of != "euler":
            raise Refused(f"sampler: this pipeline's {type(own).__name__} has no betas; write sampler: {{kind: euler}}")
        return type(own).from_config(config)

    def draw(self, process: Process, batch: Batch) -> Tensor:
        weights = process.options["weight"].expand(process.members, -1).tolist()
        return torch.cat([self._images(process, batch, member) for member in weights])

    @torch.no_grad()
    def _images(self, process: Process, batch: Batch, weights: Sequence[float]) -> Tensor:
        """(N, 3, H, W) of one member."""
        given = {
            "prompt": list(batch.prompts),
            "generator": [torch.Generator("cpu").manual_seed(seed) for seed in batch.seeds],
            "num_inference_steps": process.steps,
            "output_type": "pt",
            **self._guided(weights),
            **process.sampler.traits.call(process.sampler),
            "height": self.options.height,
            "width": self.options.width,
            "negative_prompt": self._negative(len(batch)),
        }
        told = {name: value for name, value in given.items() if value is not None and name in self.taken}
        own, self.pipeline.scheduler = self.pipeline.scheduler, self.scheduler(process.sampler)
        counting = self.denoiser.register_forward_hook(_counted_by(process))
        try:
            with self._encoders_here(), unsaid(self.pipeline):
                output = self.pipeline(**told)
        finally:
            counting.remove()
            self.pipeline.scheduler = own
        images = getattr(output, "images", None)  # pipelines of video or sound return other records
        if not isinstance(images, Tensor) or images.ndim != 4:
            raise Refused(f"pretrained: {type(self.pipeline).__name__} does not draw images; take one that does")
        return images.to(self.device)

    def _guided(self, weights: Sequence[float]) -> dict[str, object]:
        """One weight, or what hands on the next at the end of each step."""
        if len(set(weights)) == 1:
            return {"guidance_scale": weights[0]}
        if "callback_on_step_end" not in self.taken:
            raise Refused(f"tune: the call of {type(self.pipeline).__name__} takes one weight; write shape: scalar")
        if min(weights) <= 1:
            raise Refused("tune: diffusers switches guidance off at 1 and below, for all steps; write bounds above 1")

        def next_weight(pipeline: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, object]:
            pipeline._guidance_scale = weights[min(i + 1, len(weights) - 1)]
            return {}

        return {"guidance_scale": weights[0], "callback_on_step_end": next_weight}

    def _negative(self, rows: int) -> str | list[str] | None:
        """One for each prompt, or one for all where the call says so."""
        if not self.negative_prompt:
            return None
        default = self.taken["negative_prompt"].default if "negative_prompt" in self.taken else None
        return self.negative_prompt if isinstance(default, str) else [self.negative_prompt] * rows


def _counted_by(process: Process) -> Any:
    """Calls of the network, on the process' own meter."""

    def count(module: Any, given: Any, output: Any) -> None:
        process.meter.called(len(output[0] if isinstance(output, tuple) else output.sample))

    return count
