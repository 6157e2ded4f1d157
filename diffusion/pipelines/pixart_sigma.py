"""PixArtSigmaPipeline: PixArt-Sigma, and every pipeline of that class.

A transformer over latents, told of the prompt by T5. Where it predicts the variance as well, as published ones do, that
half of its output is left out, as in diffusers. Captions are cleaned as diffusers cleans them by default, which takes
the packages `beautifulsoup4` and `ftfy`; without them they are lower-cased only. Images have the network's own size, or
the one asked for: diffusers' rounding to the nearest of its trained shapes is not applied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from genbo.diffusion.pipelines._discrete import Discrete

if TYPE_CHECKING:
    from genbo.diffusion.pipeline_options import PipelineOptions

UNASKED = {"resolution": None, "aspect_ratio": None}  # what PixArt-alpha was told beside the prompt


def open_pipeline(pipeline: object, options: PipelineOptions) -> PixArtSigmaModel:
    """The pipeline as a `Model`."""
    return PixArtSigmaModel(pipeline, options)


class PixArtSigmaModel(Discrete):
    """Told token embeddings (rows, tokens, width) and which tokens there are (rows, tokens)."""

    part = "transformer"
    of_size: ClassVar[Mapping[str, Any]] = {"use_resolution_binning": False}

    def rows(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        from diffusers.utils import is_bs4_available, is_ftfy_available

        embeds, mask, *_ = self.pipeline.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            device=self.device,
            clean_caption=is_bs4_available() and is_ftfy_available(),
        )
        return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}

    def call(self, network: Any, x_t: Tensor, time: Tensor, told: Mapping[str, Tensor]) -> Tensor:
        output: Tensor = network(x_t, timestep=time, **told, added_cond_kwargs=UNASKED, return_dict=False)[0]
        return output[:, : self.channels]
