"""Kernel distance (KID): the distance of samples to data, by a cubic kernel on features; unbiased at any N.

    k(x, y) = (gamma <x, y> + coefficient)^degree,     D = the maximum mean discrepancy under k, unbiased

The score is -D. Values: about (-inf, 0], and a little above 0 by chance where samples and data are of one law. Unlike
the Fréchet distance D does not lean with the number of samples, so it is the one to tune by: 36 samples will do.
Published values are those of `features: inception` (Bińkowski et al. 1801.01401), averaged over subsets of 1,000, of
which all samples at once are the limit. genbo's formula carries no licence of its own, the networks have theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Ge, Gt

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genbo.rewards._kernels import Kernel
    from genbo.rewards._sets import Opened, Stored


@dataclass(frozen=True)
class Kid:
    """`features` is `inception`, `pixels`, a bundled name, a folder, `timm:<name>` or `clip:<name>`.

    `weights` is a safetensors file for those that need one, or `download` to let it be fetched; for a CLIP it is a
    tag. `gamma` is one over the number of features where it is not given.
    """

    features: str
    weights: str = ""
    degree: Annotated[int, Ge(1)] = 3
    gamma: Annotated[float, Gt(0)] | None = None
    coefficient: Annotated[float, Ge(0)] = 1.0
    differentiable: ClassVar[bool] = True
    of_sets: ClassVar[bool] = True

    def mistakes(self) -> list[str]:
        """What is wrong with these options, a sentence each; looks at files and loads none."""
        from genbo.rewards._extractors import mistakes

        return mistakes(self.features, self.weights)

    def open(self, device: str | torch.device = "cpu") -> Opened:
        """Load the network; `.against(data)` makes the reward. Raises `Refused` with a sentence for what is wrong."""
        from genbo.rewards._extractors import open_extractor
        from genbo.rewards._sets import Opened

        rule = Polynomial(self.degree, self.gamma, self.coefficient)
        return Opened(open_extractor(self.features, self.weights, device), rule, device)


@dataclass(frozen=True)
class Polynomial:
    """The distance on features. It keeps the data's features (M, D) and the mean of the kernel within them."""

    degree: int = 3
    gamma: float | None = None
    coefficient: float = 1.0

    @property
    def key(self) -> str:
        return repr(self)

    def kernel(self, features: int) -> Kernel:
        from genbo.rewards._kernels import polynomial

        return polynomial(self.degree, self.gamma or 1 / features, self.coefficient)

    def keep(self, data: Tensor) -> Stored:
        from genbo.rewards._kernels import means_of_others

        return {"features": data, "within": means_of_others(data, self.kernel(data.shape[1])).mean()}

    def values(self, features: Tensor, kept: Stored) -> Tensor:
        from genbo.rewards._kernels import values

        return values(features, kept["features"], kept["within"], self.kernel(features.shape[1]))
