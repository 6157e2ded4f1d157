"""StableDiffusion3Pipeline: Stable Diffusion 3 and 3.5, and every pipeline of that class.

A flow model: a transformer over latents, told of the prompt by two CLIP text encoders and T5, which may be left out of
the folder (`text_encoder_3: null`) and is then zeros, as in diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from genbo.diffusion.pipelines._flow import Flow

if TYPE_CHECKING:
    from genbo.diffusion.pipeline_options import PipelineOptions


def open_pipeline(pipeline: object, options: PipelineOptions) -> StableDiffusion3Model:
    """The pipeline as a `Model`."""
    return StableDiffusion3Model(pipeline, options)


class StableDiffusion3Model(Flow):
    """Told token embeddings (rows, tokens, width) and a pooled one (rows, width)."""

    max_shift = 1.16

    def rows(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), None, None, device=self.device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}

    def call(self, network: Any, x_t: Tensor, time: Tensor, told: Mapping[str, Tensor]) -> Tensor:
        output: Tensor = network(hidden_states=x_t, timestep=time, **told, return_dict=False)[0]
        return output
