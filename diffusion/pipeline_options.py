"""What a pipeline is loaded by: its folder or hub id, and how it lies on the device.

The options of `models/diffusers.py` and `models/blackbox.py` begin with these; `load` and the families in `pipelines/`
read them and know nothing else of a job.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Gt

from genbo.diffusion import bundled, damage, pipeline_folder

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PipelineOptions:
    """`revision` and `variant` as in `from_pretrained`; `dtype: auto` is bf16 on a GPU and fp32 on a CPU.

    `height` and `width` are pixels, where they are not the model's own. `lora` is a safetensors file, or its folder,
    that is merged into the weights at `lora_scale`. `distilled_guidance` is told to networks that were distilled for it
    (FLUX.1 dev; diffusers' own 3.5 where it is null). `offload` keeps off the GPU what does not work just now: text
    encoders (`encoders`), every network (`model`), or every layer (`sequential`, slow). `compile: auto` compiles on a
    GPU in long jobs.
    """

    pretrained: str = "emoji"
    revision: str | None = None
    variant: str | None = None
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str = "auto"
    negative_prompt: str = ""
    height: Annotated[int, Gt(0)] | None = None
    width: Annotated[int, Gt(0)] | None = None
    distilled_guidance: float | None = None
    lora: str | None = None
    lora_scale: float = 1.0
    offload: Literal["none", "encoders", "model", "sequential"] = "none"
    vae_tiling: bool = False
    vae_slicing: bool = False
    compile: Literal["auto", "on", "off"] = "auto"
    attention: str = "auto"
    has_network: ClassVar[bool] = True

    @property
    def folder(self) -> Path | None:
        """The local folder that `pretrained` names, or None for a hub id."""
        folder = bundled.model_folder(self.pretrained) or Path(self.pretrained).expanduser()
        return folder if folder.exists() else None

    @property
    def hub_id(self) -> str | None:
        """What is fetched when the model is opened, or None where its folder is here."""
        return self.pretrained if self.folder is None else None

    def folder_mistakes(self, folder: Path) -> list[str]:
        """Those of a folder, which for a hub id is known only once it is here."""
        return pipeline_folder.folder_mistakes(folder, self.variant)

    def folder_damages(self, folder: Path) -> list[str]:
        """Those of a folder, which for a hub id is known only once it is here."""
        return damage.damages(folder, self.variant)

    def family(self, pipeline: str) -> str:
        """The file in `diffusion/pipelines/` that opens a pipeline of this class."""
        return pipeline_folder.families()[pipeline]

    def torch_device(self) -> torch.device:
        from genbo.diffusion.device import torch_device

        return torch_device(self.device)
