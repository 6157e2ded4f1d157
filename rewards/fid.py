"""Fréchet distance (FID): the distance of samples to data, as two Gaussians in the features of a network.

    D = |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))                      the score is -D

with means m, m' and covariances S, S' of samples and data. Values: (-inf, 0], and 0 for equal moments; comparable only
where the features, the data and the number of samples N are the same, since D leans upwards by about a constant / N.
Published values are those of `features: inception` at N = 10,000 or 50,000 (Heusel et al. 1706.08500). genbo's formula
carries no licence of its own, the networks have theirs.

The root is never taken. With A the centred samples / sqrt(N - 1) and B any factor of the data, B^T B = S', its trace is
the sum of the singular values of C = A B^T, taken from the smaller of C C^T and C^T C: N x N where samples are fewer
than features. Its derivative in C is the polar factor U V^T, so no eigenvector is differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genbo.rewards._sets import Opened, Stored


@dataclass(frozen=True)
class Fid:
    """`features` is `inception`, `pixels`, a bundled name, a folder, `timm:<name>` or `clip:<name>`.

    `weights` is a safetensors file for those that need one, or `download` to let it be fetched; for a CLIP it is a tag.
    """

    features: str
    weights: str = ""
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

        return Opened(open_extractor(self.features, self.weights, device), Frechet(), device)


@dataclass(frozen=True)
class Frechet:
    """The distance on features. It keeps the data's mean (D,) and a factor (r, D) of their covariance, r <= D."""

    key: str = "frechet"

    def keep(self, data: Tensor) -> Stored:
        mean = data.mean(0)
        return {"mean": mean, "factor": factor(data - mean)}

    def values(self, features: Tensor, kept: Stored) -> Tensor:
        """The gradient is each sample's own share of it; how the shares shift as the others move is left out."""
        n, x = len(features), features.detach()
        distance, grad = frechet(x, kept["mean"], kept["factor"])
        away = x - x.mean(0)
        common = grad.mean(0)
        # D moves with a sample's weight: along the mean, and along the covariance, of which grad - common is a half
        pulled = n * away @ common + (n - 1) / 2 * (away * (grad - common)).sum(1)
        return distance + pulled - pulled.mean() + n * ((features - x) * grad).sum(1)


def factor(centred: Tensor) -> Tensor:
    """B (r, D) with B^T B the covariance of M centred rows, r the smaller of M and D."""
    import torch

    scaled: Tensor = centred / (len(centred) - 1) ** 0.5
    if len(centred) > centred.shape[1]:
        values, vectors = torch.linalg.eigh(scaled.T @ scaled)
        scaled = values.clamp(min=0).sqrt()[:, None] * vectors.T
    return scaled


def frechet(x: Tensor, mean: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """D of samples x (N, D) from a Gaussian, and its gradient in x, (N, D)."""
    import torch

    n, shift = len(x), x.mean(0) - mean
    a = (x - x.mean(0)) / (n - 1) ** 0.5
    c = a @ factor.T
    wide = len(c) <= c.shape[1]
    values, vectors = torch.linalg.eigh(c @ c.T if wide else c.T @ c)
    seen = (
        values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    )  # of a zero singular value none is the polar
    roots = torch.where(seen, values, 1).sqrt()
    inverse = (vectors * (seen / roots)) @ vectors.T
    polar = inverse @ c if wide else c @ inverse
    distance = shift.square().sum() + a.square().sum() + factor.square().sum() - 2 * (roots * seen).sum()
    covariance = a - polar @ factor
    grad = 2 / (n - 1) ** 0.5 * (covariance - covariance.mean(0)) + 2 / n * shift
    return distance, grad
