"""Diversity: the mean distance between two samples in the features of a network.

    D = mean_{i != j} d(f(x_i), f(x_j)),      d the Euclidean distance, or 1 - cosine

The score is D itself: a set of copies has 0. Values: [0, inf); [0, 2] of `cosine`. It compares with no data, and sees
the whole set at once: samples of several prompts differ by their prompts too, so hold the prompts fixed where sets are
compared. D is a U-statistic, so it does not lean with the number of samples. genbo's formula carries no licence of its
own, the networks have theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genbo.rewards._sets import Alone, Stored

Metric = Literal["euclidean", "cosine"]


@dataclass(frozen=True)
class Diversity:
    """`features` is `inception`, `pixels`, a bundled name, a folder, `timm:<name>` or `clip:<name>`.

    `weights` is a safetensors file for those that need one, or `download` to let it be fetched; for a CLIP it is a tag.
    """

    features: str
    weights: str = ""
    distance: Metric = "euclidean"
    differentiable: ClassVar[bool] = True
    of_sets: ClassVar[bool] = True
    needs_data: ClassVar[bool] = False

    def mistakes(self) -> list[str]:
        """What is wrong with these options, a sentence each; looks at files and loads none."""
        from genbo.rewards._extractors import mistakes

        return mistakes(self.features, self.weights)

    def open(self, device: str | torch.device = "cpu") -> Alone:
        """Load the network. Raises `Refused` with a sentence for what is wrong."""
        from genbo.rewards._extractors import open_extractor
        from genbo.rewards._sets import Alone

        extractor = open_extractor(self.features, self.weights, device)
        return Alone(extractor, Spread(self.distance), {}, name="the diversity of a set")


@dataclass(frozen=True)
class Spread:
    """The mean distance on features, as a rule whose D is the smaller the better; it keeps nothing of any data."""

    distance: Metric = "euclidean"

    @property
    def key(self) -> str:
        return repr(self)

    def keep(self, data: Tensor) -> Stored:
        return {}

    def values(self, features: Tensor, kept: Stored) -> Tensor:
        """Minus the jackknife's pseudo-values, (N,), whose mean is -D exactly."""
        n = len(features)
        own = distances(features, self.distance).sum(1) / (n - 1)
        return -(own.mean() + 2 * (n - 1) / max(n - 2, 1) * (own - own.mean()))


def distances(x: Tensor, metric: Metric) -> Tensor:
    """(N, N); of copies 0, with no gradient between them."""
    import torch
    from torch.nn.functional import normalize

    if metric == "cosine":
        x = normalize(x, dim=1)
        apart: Tensor = 1 - x @ x.T
        return apart * ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    squared = (x.square().sum(1)[:, None] + x.square().sum(1) - 2 * x @ x.T).clamp(min=0)
    scale = x.detach().square().sum(1).amax()
    same = squared <= 1e-14 * scale  # as near as float64 tells apart
    return torch.where(same, 0, torch.where(same, 1, squared).sqrt())
