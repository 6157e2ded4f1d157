"""HPS v2.1: predicts human ratings of an image for its prompt, with a CLIP trained on preferences.

    r(x, c) = 100 <f(prepare(x)), g(c)> / (|f| |g|)

The network is open_clip's ViT-H-14. `prepare` is HPS's own: the longest side to 224 pixels, black around it.

Values: [-100, 100], in practice 15 to 35, as in the published tables; what the package `hpsv2` prints is a hundredth of
it. The weights are the user's own: genbo fetches none. Those of HPS v2 and v2.1 (Wu et al. 2306.09341) are under
Apache-2.0, and published as pickled files. To convert one, once and in a place where you trust it:

    import torch, safetensors.torch
    state = torch.load("HPS_v2.1_compressed.pt", weights_only=True)["state_dict"]
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, "hps_v2.1.safetensors")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from genbo.rewards import Refused
from genbo.rewards._tokens import TokenReader
from genbo.rewards._tower import Tower
from genbo.rewards._weights import PICKLED
from genbo.rewards.clip import Similarity

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MODEL = "ViT-H-14"
PREPARATION = {"resize_mode": "longest", "interpolation": "bicubic", "fill_color": 0}
REMEDY = (
    "convert it: safetensors.torch.save_file({k: v.contiguous() for k, v in torch.load("
    '"%s", weights_only=True)["state_dict"].items()}, "%s.safetensors")'
)


@dataclass(frozen=True)
class Hps:
    """`pretrained` is a safetensors file of HPS v2 or v2.1, or an open_clip folder with a CLIP of another size."""

    pretrained: str
    differentiable: ClassVar[bool] = True
    reads_prompts: ClassVar[bool] = True

    def mistakes(self) -> list[str]:
        """What is wrong with `pretrained`, a sentence each; looks at files and loads none."""
        path = Path(self.pretrained).expanduser()
        if not self.pretrained:
            return ["pretrained: it is empty; give a safetensors file of HPS v2.1"]
        if path.suffix in PICKLED:
            return [f"pretrained: {path} is a pickled file, which can run code; {REMEDY % (path.name, path.stem)}"]
        if not path.exists():
            return [f"pretrained: there is no {path}; give a safetensors file of HPS v2.1, which genbo does not fetch"]
        return self.tower.mistakes() or self.tower.tokenizer_mistakes()

    def open(self, device: str | torch.device = "cpu") -> _Preference:
        """Load the weights. Raises `Refused` with a sentence for whatever is wrong with them."""
        if wrong := self.mistakes():
            raise Refused("; ".join(wrong))
        return _Preference(self.tower, "{}", device)

    def readers(self) -> list[TokenReader]:
        """Of its text tower."""
        return self.tower.readers("hps")

    @property
    def tower(self) -> Tower:
        path = Path(self.pretrained).expanduser()
        return Tower(str(path)) if path.is_dir() else Tower(str(path), MODEL, "openai")

    @property
    def folder(self) -> Path:
        """Where the weights lie, when `pretrained` is a folder."""
        return self.tower.folder

    @property
    def weights_file(self) -> Path:
        """The weights, when `pretrained` is a file."""
        return Path(self.pretrained).expanduser()


class _Preference(Similarity):
    """The opened reward, in float32."""

    def __init__(self, tower: Tower, template: str, device: str | torch.device) -> None:
        super().__init__(tower, template, device)
        self.file = Path(tower.pretrained)
        self.preprocess = {**self.preprocess, **PREPARATION}

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return 100 * super().__call__(images, prompts)
