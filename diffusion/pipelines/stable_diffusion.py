"""StableDiffusionPipeline: Stable Diffusion 1.x and 2.x, and every pipeline of that class (the bundled emoji model).

A U-Net over the latents of a VAE, told of the prompt by a CLIP text encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from genbo.diffusion.pipelines._discrete import Discrete
from genbo.diffusion.refused import Refused

if TYPE_CHECKING:
    from genbo.diffusion.pipeline_options import PipelineOptions


def open_pipeline(pipeline: object, options: PipelineOptions) -> StableDiffusionModel:
    """The pipeline as a `Model`."""
    return StableDiffusionModel(pipeline, options)


class StableDiffusionModel(Discrete):
    """Told token embeddings (rows, tokens, width)."""

    names: ClassVar[Mapping[str, str]] = {"weight": "guidance_scale", "rescale": "guidance_rescale"}

    def __init__(self, pipeline: object, options: PipelineOptions | None = None) -> None:
        super().__init__(pipeline, options)
        self.unet = self.denoiser
        if self.unet.config.time_cond_proj_dim is not None:
            raise Refused(
                "pretrained: this U-Net is a latent consistency model, which is told its guidance as an embedding; "
                "genbo does not tell it that, so take the model that it was distilled from"
            )

    def rows(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        embeds, _ = self.pipeline.encode_prompt(list(prompts), self.device, 1, False)
        return {"encoder_hidden_states": embeds}

    def call(self, network: Any, x_t: Tensor, time: Tensor, told: Mapping[str, Tensor]) -> Tensor:
        output: Tensor = network(x_t, time, **told, return_dict=False)[0]
        return output
