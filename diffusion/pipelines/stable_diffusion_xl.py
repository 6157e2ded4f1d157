"""StableDiffusionXLPipeline: Stable Diffusion XL, and every pipeline of that class.

Its U-Net is told the prompt by two text encoders, and the size of the image that it is to make: six numbers, the
original height and width, the place of the crop, 0 and 0, and the height and width again. Without a negative prompt the
unconditional half is all zeros where the pipeline says `force_zeros_for_empty_prompt`, as SDXL's own does.

The watermark that diffusers puts into images where the package `invisible-watermark` is installed is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genbo.diffusion.pipelines.stable_diffusion import StableDiffusionModel
from genbo.diffusion.process import Condition

if TYPE_CHECKING:
    from genbo.diffusion.pipeline_options import PipelineOptions

BESIDE = ("text_embeds", "time_ids")  # what the U-Net takes as `added_cond_kwargs`


def open_pipeline(pipeline: object, options: PipelineOptions) -> StableDiffusionXLModel:
    """The pipeline as a `Model`."""
    return StableDiffusionXLModel(pipeline, options)


class StableDiffusionXLModel(StableDiffusionModel):
    """Told token embeddings (rows, tokens, width), a pooled one (rows, width) and sizes (rows, 6)."""

    def rows(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), device=self.device, do_classifier_free_guidance=False
        )
        sizes = self._sizes(embeds.dtype, pooled.shape[-1]).expand(len(prompts), -1)
        return {"encoder_hidden_states": embeds, "text_embeds": pooled, "time_ids": sizes}

    def _sizes(self, dtype: torch.dtype, width: int) -> Tensor:
        """(1, 6)."""
        encoder = self.pipeline.text_encoder_2
        width = width if encoder is None else encoder.config.projection_dim
        sizes: Tensor = self.pipeline._get_add_time_ids(
            self.pixels, (0, 0), self.pixels, dtype=dtype, text_encoder_projection_dim=width
        )
        return sizes.to(self.device)

    def unconditional(self) -> Condition:
        told = super().unconditional().tensors
        if self.negative_prompt or not self.pipeline.config.force_zeros_for_empty_prompt:
            return Condition(told)
        return Condition({name: t if name == "time_ids" else torch.zeros_like(t) for name, t in told.items()})

    def call(self, network: Any, x_t: Tensor, time: Tensor, told: Mapping[str, Tensor]) -> Tensor:
        added = {name: told[name] for name in BESIDE}
        output: Tensor = network(x_t, time, told["encoder_hidden_states"], added_cond_kwargs=added, return_dict=False)[
            0
        ]
        return output
