"""DiTPipeline: class-conditional diffusion transformers (DiT-XL/2 of ImageNet), and every pipeline of that class.

A prompt is the name of a class, as `id2label` in model_index.json has them, or its number. The unconditional half is
the label of no class, or the class that `negative_prompt` names. Where the network predicts the variance as well, that
half of its output is left out, as in diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from genbo.diffusion.pipelines._classes import labels
from genbo.diffusion.pipelines._discrete import Discrete

if TYPE_CHECKING:
    from genbo.diffusion.pipeline_options import PipelineOptions
    from genbo.diffusion.process import Sampler


def open_pipeline(pipeline: object, options: PipelineOptions) -> DiTModel:
    """The pipeline as a `Model`."""
    return DiTModel(pipeline, options)


class DiTModel(Discrete):
    """Told class labels (rows,)."""

    part = "transformer"

    def prompted(self, sampler: Sampler) -> str | None:
        """diffusers' own call begins Euler from noise of variance 1, not sigma_max^2; it hands on no eta, no seeds."""
        if not sampler.traits.in_diffusers or sampler.traits.levels_of == "euler" or sampler.stochastic:
            return None
        return f"class_labels={'pipeline.get_label_ids([prompt])' if self.pipeline.labels else '[int(prompt)]'}"

    def rows(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        number = int(self.denoiser.config.num_embeds_ada_norm)
        return {"class_labels": labels(prompts, self.pipeline.labels, number, none=number).to(self.device)}

    def call(self, network: Any, x_t: Tensor, time: Tensor, told: Mapping[str, Tensor]) -> Tensor:
        output: Tensor = network(x_t, timestep=time, **told, return_dict=False)[0]
        return output[:, : self.channels]
