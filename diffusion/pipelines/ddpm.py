"""DDPMPipeline: U-Nets over pixels (Ho et al. 2006.11239), without a prompt or told a class.

Where the network has classes (`num_class_embeds`), a prompt is the name of one, as `classes` in a genbo.json beside
model_index.json lists them, or its number, and the last label is that of no class. Otherwise prompts say nothing, and
there is nothing to guide. diffusers' own pipeline cannot tell a class, so such a folder is drawn by genbo alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from genbo.diffusion.pipeline_folder import class_names
from genbo.diffusion.pipelines._classes import labels
from genbo.diffusion.pipelines._discrete import Discrete
from genbo.diffusion.process import Condition

if TYPE_CHECKING:
    from genbo.diffusion.pipeline_options import PipelineOptions
    from genbo.diffusion.process import Sampler


def open_pipeline(pipeline: object, options: PipelineOptions) -> DDPMModel:
    """The pipeline as a `Model`."""
    return DDPMModel(pipeline, options)


class DDPMModel(Discrete):
    """Told class labels (rows,), or nothing."""

    names: ClassVar[Mapping[str, str]] = {}
    takes_eta: ClassVar[bool] = False
    drawn_by: tuple[str, ...] = ("ddim", "ddpm", "dpmpp")  # samplers whose schedulers the pipeline's own call serves

    def prompted(self, sampler: Sampler) -> str | None:
        """diffusers' own DDPMPipeline hands no eta on, and no class."""
        untold = any(sampler.traits.call(sampler).values()) and not self.takes_eta
        drawn = sampler.traits.in_diffusers and sampler.traits.levels_of in self.drawn_by
        return "" if drawn and not self.classes and not untold else None

    @property
    def classes(self) -> int:
        """How many labels there are, that of no class among them; 0 where none is told."""
        return int(self.denoiser.config.num_class_embeds or 0)

    def encode(self, prompts: Sequence[str]) -> Condition:
        return super().encode(prompts) if self.classes else Condition({})

    def rows(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        names = {name: label for label, name in enumerate(class_names(self.folder))}
        return {"class_labels": labels(prompts, names, self.classes, none=self.classes - 1).to(self.device)}

    def call(self, network: Any, x_t: Tensor, time: Tensor, told: Mapping[str, Tensor]) -> Tensor:
        if self.denoiser.config.time_embedding_type == "learned":
            time = time.round().long()  # an index into a table
        output: Tensor = network(x_t, time, **told, return_dict=False)[0]
        return output
