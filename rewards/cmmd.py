"""CMMD: the distance of samples to data, by a Gaussian kernel of bandwidth 10 on CLIP features, times 1,000.

    D = 1000 * the squared discrepancy of features of length 1 under k(x, y) = exp(-|x - y|^2 / 200)

The score is -D. Values: about [-20, 0]. Published values (Jayasumana et al. 2401.09603) are those of OpenAI's
ViT-L/14 at 336 pixels; they keep the diagonal of the kernel, which adds about (1 - mean k) (1/N + 1/M) * 1000 to D.
That lean is left out here. genbo's formula carries no licence of its own; OpenAI's CLIP has the MIT licence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from genbo.rewards.mmd import Mmd

if TYPE_CHECKING:
    import torch

    from genbo.rewards._sets import Opened

BANDWIDTH, SCALE = 10.0, 1000.0


@dataclass(frozen=True)
class Cmmd:
    """`features` is a bundled CLIP, an open_clip folder, `hf-hub:org/repo`, or `clip:<architecture>`.

    `weights` is a tag of open_clip's beside `clip:<architecture>`. Published values want
    `features: clip:ViT-L-14-336-quickgelu` and `weights: openai`.
    """

    features: str
    weights: str = ""
    differentiable: ClassVar[bool] = True
    of_sets: ClassVar[bool] = True

    def mistakes(self) -> list[str]:
        """What is wrong with these options, a sentence each; looks at files and loads none."""
        from genbo.rewards._extractors import is_clip

        if self.features and not is_clip(self.features):
            return [f"features: {self.features!r} is no CLIP model; give one, or take mmd for other features"]
        return self.preset.mistakes()

    def open(self, device: str | torch.device = "cpu") -> Opened:
        """Load the network; `.against(data)` makes the reward. Raises `Refused` with a sentence for what is wrong."""
        from genbo.rewards import Refused

        if wrong := self.mistakes():
            raise Refused("; ".join(wrong))
        return self.preset.open(device)

    @property
    def preset(self) -> Mmd:
        """The same as an `mmd`."""
        return Mmd(self.features, self.weights, bandwidth=BANDWIDTH, scale=SCALE)
