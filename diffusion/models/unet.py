"""A U-Net of your own, trained on the job's data by `lower: {kind: denoising}`, to tune schedules with.

A diffusers `UNet2DModel`, new or from a folder. It is told the class of an image where there are `classes`, and one
more label stands for none, so that guidance can be tuned too.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, MinLen

from genbo.diffusion.damage import part_damages
from genbo.diffusion.refused import Refused

if TYPE_CHECKING:
    from genbo.diffusion.data import Images
    from genbo.diffusion.network import Network

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
LARGEST_GROUPS = 32


@dataclass(frozen=True)
class Unet:
    """`channels` a level, each of half the size of the one before, with `layers` blocks; `attention` in the last level.

    `pretrained` is the folder of a UNet2DModel whose weights to start from, which then says all of this itself, or of a
    pipeline that holds one. `seed` draws the first weights of a new one.
    """

    pretrained: str = ""
    channels: Annotated[list[Annotated[int, Ge(4)]], MinLen(1)] = field(default_factory=lambda: [32, 64])
    layers: Annotated[int, Ge(1)] = 1
    attention: bool = False
    classes: bool = False
    seed: Annotated[int, Ge(0)] = 0
    device: str = "auto"
    learns: ClassVar[bool] = True
    has_network: ClassVar[bool] = True

    def mistakes(self) -> list[str]:
        """What is wrong with these options, a sentence each; reads a config and no weights."""
        if self.pretrained:
            return self._folder_mistakes()
        odd = [c for c in self.channels if c % 4]
        return [f"channels: {odd[0]} is no multiple of 4; normalisation takes them in groups"] if odd else []

    def _folder_mistakes(self) -> list[str]:
        folder = self._unet_folder
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            kind, told = config.get("_class_name"), config.get("time_embedding_type", "positional")
        except (OSError, ValueError, AttributeError):
            return [f"pretrained: {folder} has no {CONFIG} that can be read; give the folder of a UNet2DModel"]
        if kind != "UNet2DModel":
            return [f"pretrained: {folder} holds a {kind}; only a UNet2DModel can be trained here"]
        if told != "positional":  # a tuned folder of genbo's own is told the index of a step of its schedule
            said = f"pretrained: {folder} knows the steps of one schedule alone ({told} time embeddings)"
            return [f"{said}; give a network with positional ones, or leave it out and train a new one"]
        missing = not (folder / WEIGHTS).is_file()
        return [f"pretrained: {folder / WEIGHTS} is missing; genbo reads safetensors only"] if missing else []

    def damages(self) -> list[str]:
        """What of the folder's files is damaged, where there are no other mistakes; reads headers and JSON alone."""
        return part_damages(self._unet_folder, "diffusers", "UNet2DModel") if self.pretrained else []

    @property
    def _unet_folder(self) -> Path:
        """The network's own folder: `unet/` of a pipeline's."""
        folder = Path(self.pretrained).expanduser()
        return folder / "unet" if (folder / "unet").is_dir() else folder

    def open(self, images: Images | None = None) -> Network:
        """The untrained model, of the data's shape: one of 8 x 8 grey pixels where none are given."""
        import torch

        from genbo.diffusion.device import present, torch_device
        from genbo.diffusion.network import Network
        from genbo.schedules.cosine import Cosine
        from genbo.schedules.schedule import schedule_of

        shape, names = (images.shape, images.classes) if images else ((1, 8, 8), ())
        if self.classes and not names:
            raise Refused("classes: the data have no labels; give folders of classes or a file of labels, or leave it")
        names = names if self.classes else ()
        module = self._pretrained(shape, len(names)) if self.pretrained else self._new(shape, len(names))
        device = present(torch_device(self.device))
        module = module.to(device).to(memory_format=torch.channels_last)  # in half of a convolution's time on a GPU
        return Network(module, shape, schedule_of(Cosine()), classes=names, device=device)

    def _new(self, shape: tuple[int, ...], classes: int) -> Any:
        """A network with weights drawn from the seed."""
        import torch
        from diffusers import UNet2DModel

        times = len(self.channels) - 1
        if shape[1] % 2**times or shape[2] % 2**times:
            halved = "once" if times == 1 else f"{times} times"
            raise Refused(
                f"channels: {len(self.channels)} levels halve the sides of an image {halved}, and "
                f"{shape[1]} x {shape[2]} pixels have no such halves; give fewer numbers, or set data.size"
            )
        kinds = ["AttnDown" if self.attention and level == times else "Down" for level in range(times + 1)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return UNet2DModel(
                sample_size=shape[1:],
                in_channels=shape[0],
                out_channels=shape[0],
                block_out_channels=tuple(self.channels),
                layers_per_block=self.layers,
                norm_num_groups=min(LARGEST_GROUPS, math.gcd(*self.channels) // 4),
                attention_head_dim=8,
                down_block_types=tuple(f"{kind}Block2D" for kind in kinds),
                up_block_types=tuple(f"{kind}Block2D".replace("Down", "Up") for kind in reversed(kinds)),
                add_attention=self.attention,
                num_class_embeds=classes + 1 if classes else None,
            )

    def _pretrained(self, shape: tuple[int, ...], classes: int) -> Any:
        """A network from its folder, every weight of it there and finite, and of the data's shape."""
        import torch
        from diffusers import UNet2DModel

        from genbo.diffusion.component import load_network

        folder = self._unet_folder
        if damages := self.damages():
            raise Refused("; ".join(damages))
        module, _ = load_network(UNet2DModel, folder, torch.float32)
        wanted = {
            "in_channels": shape[0],
            "out_channels": shape[0],
            "num_class_embeds": classes + 1 if classes else None,
        }
        for name, number in wanted.items():
            if module.config[name] != number:
                raise Refused(
                    f"pretrained: {folder} has {name} {module.config[name]}, and the data want {number}; "
                    "give another network, or other data"
                )
        return module
