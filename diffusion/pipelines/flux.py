"""FluxPipeline: FLUX.1 dev and schnell, and every pipeline of that class.

A flow model: a transformer over patches of 2 x 2 latents, told of the prompt by T5, and by one pooled vector of CLIP.

FLUX.1 dev was distilled to take its guidance as a number beside the prompt, diffusers' `guidance_scale`. Here that is
the model's option `distilled_guidance`, or what `tune: {distilled_guidance: ...}` finds. The guidance rule is true
guidance, diffusers' `true_cfg_scale`: a second half told the negative prompt, at twice the cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from genbo.diffusion.pipelines._flow import Flow

if TYPE_CHECKING:
    from genbo.diffusion.pipeline_options import PipelineOptions
    from genbo.diffusion.pipelines._pipeline import Size

DISTILLED = 3.5  # diffusers' own default


def open_pipeline(pipeline: object, options: PipelineOptions) -> FluxModel:
    """The pipeline as a `Model`."""
    return FluxModel(pipeline, options)


class FluxModel(Flow):
    """Told token embeddings (rows, tokens, width), a pooled one (rows, width) and, where distilled, its guidance."""

    patch = 2
    names: ClassVar[Mapping[str, str]] = {"weight": "true_cfg_scale", "guidance": "guidance_scale"}

    @property
    def channels(self) -> int:
        return int(self.denoiser.config.in_channels) // self.patch**2

    @property
    def own_size(self) -> Size:
        size = int(self.pipeline.default_sample_size)
        return size, size

    @property
    def told(self) -> dict[str, float]:
        if not self.denoiser.config.guidance_embeds:
            return {}
        own = self.options.distilled_guidance
        return {"guidance": DISTILLED if own is None else own}

    def raw_sigmas(self, steps: int) -> Sequence[float]:
        import numpy as np

        found: list[float] = np.linspace(1.0, 1 / steps, steps).tolist()
        return found

    def rows(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        embeds, pooled, _ = self.pipeline.encode_prompt(list(prompts), device=self.device)
        told = {name: torch.full((len(prompts),), value, device=self.device) for name, value in self.told.items()}
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled, **told}

    def call(self, network: Any, x_t: Tensor, time: Tensor, told: Mapping[str, Tensor]) -> Tensor:
        height, width = (side // self.patch for side in self.shape[1:])
        places = self.pipeline._prepare_latent_image_ids(1, height, width, x_t.device, x_t.dtype)
        words = torch.zeros(told["encoder_hidden_states"].shape[1], 3, device=x_t.device, dtype=x_t.dtype)
        output: Tensor = network(
            hidden_states=packed(x_t),
            timestep=time.to(x_t.dtype) / 1000,
            **told,
            txt_ids=words,
            img_ids=places,
            return_dict=False,
        )[0]
        return unpacked(output, height, width)


def packed(x: Tensor) -> Tensor:
    """(B, C, 2 h, 2 w) -> (B, h w, 4 C), a patch a row."""
    patches: Tensor = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, C, h, 2, w, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpacked(x: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `packed`."""
    patches: Tensor = x.unflatten(1, (height, width)).unflatten(3, (-1, 2, 2))  # (B, h, w, C, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
