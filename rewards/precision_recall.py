"""Precision and recall: the share of samples close to data, the share of data close to samples, and F1 of both.

    precision = mean_i [x_i within the k-th neighbour's distance of some y_j among y]
    recall    = mean_j [y_j within the k-th neighbour's distance of some x_i among x]
    f1        = 2 precision recall / (precision + recall)

x are N samples, y are M of the data, in a network's features: each set is taken for the union of balls around its
members that reach to their k-th neighbour. Values: [0, 1], 1 best; comparable only where features, data, N and k are
the same, since small sets have wide balls. Precision falls for samples that look like no data, recall for data that
nothing looks like, which is what strong guidance does. They count, so there is no gradient. After Kynkäänniemi et al.
1904.06991 (k = 3, VGG-16 features, N = M = 50,000). genbo's formula carries no licence of its own, the networks have
theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genbo.rewards._sets import Opened, Stored

Score = Literal["f1", "precision", "recall"]
AT_ONCE = 2**23  # distances computed together: 64 MiB in float64


@dataclass(frozen=True)
class PrecisionRecall:
    """`features` is `inception`, `pixels`, a bundled name, a folder, `timm:<name>` or `clip:<name>`.

    `weights` is a safetensors file for those that need one, or `download` to let it be fetched; for a CLIP it is a tag.
    """

    features: str
    weights: str = ""
    score: Score = "f1"
    k: Annotated[int, Ge(1)] = 3
    differentiable: ClassVar[bool] = False
    of_sets: ClassVar[bool] = True

    def mistakes(self) -> list[str]:
        """What is wrong with these options, a sentence each; looks at files and loads none."""
        from genbo.rewards._extractors import mistakes

        return mistakes(self.features, self.weights)

    def open(self, device: str | torch.device = "cpu") -> Opened:
        """Load the network; `.against(data)` makes the reward. Raises `Refused` with a sentence for what is wrong."""
        from genbo.rewards._extractors import open_extractor
        from genbo.rewards._sets import Opened

        extractor = open_extractor(self.features, self.weights, device)
        return Opened(extractor, Neighbours(self.score, self.k), device, differentiable=False)


@dataclass(frozen=True)
class Neighbours:
    """Minus the score on features, as a rule wants it. It keeps the data's features (M, D) and their radii (M,)."""

    score: Score = "f1"
    k: int = 3

    @property
    def key(self) -> str:
        return f"Neighbours {self.k}"

    def keep(self, data: Tensor) -> Stored:
        from genbo.rewards import Refused

        if len(data) <= self.k:
            raise Refused(f"data: {len(data)} images have no {self.k} neighbours each; give at least {self.k + 1}")
        return {"features": data, "radii": nearest(data, self.k)[0][:, -1]}

    def values(self, features: Tensor, kept: Stored) -> Tensor:
        """-(S + N psi_i), (N,), for the score S; what a sample did to the recall is what leaving it out would undo."""
        from genbo.rewards import Refused

        if len(features) <= self.k + 1:
            raise Refused(f"{len(features)} samples have too few neighbours for k: {self.k}; draw {self.k + 2} or more")
        x, y = features.detach(), kept["features"]
        hits = _within(x, y, kept["radii"])  # (N,) in 0 and 1
        covered, without = recalls(x, y, self.k)
        precision, recall = hits.mean(), covered
        of_precision, of_recall = hits - precision, (len(x) - 1) * (without.mean() - without)
        if self.score == "precision":
            return -(precision + of_precision)
        if self.score == "recall":
            return -(recall + of_recall)
        total = precision + recall
        if total == 0:
            return -hits  # both are 0, and so is everything
        slopes = 2 * (recall / total) ** 2, 2 * (precision / total) ** 2
        return -(2 * precision * recall / total + slopes[0] * of_precision + slopes[1] * of_recall)


def nearest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Distances to the k nearest others, in order, and who they are, (N, k) each."""
    import torch

    found = []
    for numbers in torch.arange(len(x), device=x.device).split(max(1, AT_ONCE // len(x))):
        apart = _distances(x[numbers], x)
        apart[torch.arange(len(numbers), device=x.device), numbers] = float("inf")
        found.append(apart.topk(k, largest=False))
    return torch.cat([values for values, _ in found]), torch.cat([who for _, who in found])


def recalls(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The recall (), and the recall without each of the samples in turn, (N,).

    Without sample i its own ball is gone, and the balls of those that had it among their k nearest reach to the next.
    """
    import torch

    n = len(x)
    apart, who = nearest(x, k + 1)
    radii, next_radii = apart[:, k - 1], apart[:, k]
    leans = torch.zeros(n, n, dtype=x.dtype, device=x.device).scatter_(1, who[:, :k], 1.0)  # (l, i): i is near l
    covered, without = x.new_zeros(()), x.new_zeros(n)
    for some in y.split(max(1, AT_ONCE // n)):
        away = _distances(some, x)
        inside = (away <= radii).to(x)
        gained = ((away > radii) & (away <= next_radii)).to(x)
        counts = inside.sum(1)
        covered += (counts > 0).sum()
        without += (counts[:, None] - inside + gained @ leans > 0.5).sum(0)
    return covered / len(y), without / len(y)


def _within(x: Tensor, y: Tensor, radii: Tensor) -> Tensor:
    """Whether each x lies in a ball around some y, (N,) in float64."""
    import torch

    parts = [(_distances(some, y) <= radii).any(1) for some in x.split(max(1, AT_ONCE // len(y)))]
    return torch.cat(parts).to(x)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, M), computed as differences, since a ball's edge is another member: rounding must not move it inwards."""
    import torch

    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
