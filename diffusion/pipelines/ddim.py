"""DDIMPipeline: the same U-Nets over pixels as DDPMPipeline's, with a deterministic scheduler of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genbo.diffusion.pipelines.ddpm import DDPMModel

if TYPE_CHECKING:
    from genbo.diffusion.pipeline_options import PipelineOptions


def open_pipeline(pipeline: object, options: PipelineOptions) -> DDIMModel:
    """The pipeline as a `Model`."""
    return DDIMModel(pipeline, options)


class DDIMModel(DDPMModel):
    """The pipeline takes no scheduler but DDIM's."""

    takes_eta = True
    drawn_by = ("ddim",)
