"""Maximum mean discrepancy (MMD): the unbiased distance of samples to data, by a Gaussian kernel on features.

    k(x, y) = exp(-|x - y|^2 / (2 s^2)),     D = scale * the squared discrepancy under k

The score is -D. Values: about [-2 scale, 0], and a little above 0 by chance where samples and data are of one law. D is
0 only for equal laws, of whatever shape, and does not lean with the number of samples. After Gretton et al., JMLR 2012.
genbo's formula carries no licence of its own, the networks have theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Gt

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genbo.rewards._sets import Opened, Stored


@dataclass(frozen=True)
class Mmd:
    """`features` is `inception`, `pixels`, a bundled name, a folder, `timm:<name>` or `clip:<name>`.

    `weights` is a safetensors file for those that need one, or `download` to let it be fetched; for a CLIP it is a
    tag. `bandwidth` is s, or a list over which kernels are averaged; where it is not given it is the median distance
    between two of the data.
    """

    features: str
    weights: str = ""
    bandwidth: float | list[float] | None = None
    scale: Annotated[float, Gt(0)] = 1.0
    differentiable: ClassVar[bool] = True
    of_sets: ClassVar[bool] = True

    def mistakes(self) -> list[str]:
        """What is wrong with these options, a sentence each; looks at files and loads none."""
        from genbo.rewards._extractors import mistakes

        found = mistakes(self.features, self.weights)
        if self.bandwidths is not None:
            if not self.bandwidths:
                found.append("bandwidth: the list is empty; give a number, or leave it out for the data's median")
            if not all(math.isfinite(s) and s > 0 for s in self.bandwidths):
                found.append("bandwidth: every number must be finite and greater than 0")
        return found

    def open(self, device: str | torch.device = "cpu") -> Opened:
        """Load the network; `.against(data)` makes the reward. Raises `Refused` with a sentence for what is wrong."""
        from genbo.rewards import Refused
        from genbo.rewards._extractors import open_extractor
        from genbo.rewards._sets import Opened

        if wrong := self.mistakes():
            raise Refused("; ".join(wrong))
        rule = Gaussian(self.bandwidths, self.scale)
        return Opened(open_extractor(self.features, self.weights, device), rule, device)

    @property
    def bandwidths(self) -> tuple[float, ...] | None:
        if self.bandwidth is None:
            return None
        return tuple(self.bandwidth) if isinstance(self.bandwidth, list) else (self.bandwidth,)


@dataclass(frozen=True)
class Gaussian:
    """The distance on features. It keeps the data's features (M, D), the bandwidths, and the kernel's mean within."""

    bandwidths: tuple[float, ...] | None = None
    scale: float = 1.0

    @property
    def key(self) -> str:
        return f"Gaussian {self.bandwidths}"

    def keep(self, data: Tensor) -> Stored:
        import torch

        from genbo.rewards import Refused
        from genbo.rewards._kernels import gaussian, means_of_others, median_distance

        s = torch.tensor(self.bandwidths).to(data) if self.bandwidths else median_distance(data).reshape(1)
        if not (s > 0).all():
            raise Refused("data: most of the images are the same, so their median distance is 0; give a bandwidth")
        return {"features": data, "bandwidths": s, "within": means_of_others(data, gaussian(s)).mean()}

    def values(self, features: Tensor, kept: Stored) -> Tensor:
        from genbo.rewards._kernels import gaussian, values

        kernel = gaussian(kept["bandwidths"])
        return self.scale * values(features, kept["features"], kept["within"], kernel)
