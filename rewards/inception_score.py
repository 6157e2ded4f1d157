"""Inception score: how sure a classifier is of each sample, and how many classes the samples have together.

    IS = exp( E_x KL(p(y | x) || p(y)) ),      p(y) = E_x p(y | x)                       Salimans et al. 1606.03498

Values: [1, K] for K classes. 1 means that all samples look alike to the classifier; K means that it is sure of each and
that all classes are equally frequent. It compares with no data, and sees the whole set at once. It rises with the
number of samples N towards its limit, so compare sets of one size, one classifier and one number of `splits` only.

Published values are those of `features: inception`, 50,000 samples and `splits: 10`: the samples are divided at random
into as many parts, and the score is the mean over the parts. genbo's standard error comes from the samples' own
influence, so one part is enough. To first order p(y) does not matter for it: a sample moves the exponent of its part by
its own KL less the mean. genbo's formula carries no licence of its own, the networks have theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Ge

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genbo.rewards._sets import Alone, Stored


@dataclass(frozen=True)
class InceptionScore:
    """`features` is `inception`, a bundled classifier, a folder with a classifier, or `timm:<name>`.

    It can also be a CLIP, by name, folder or `clip:<name>`: then `classes` are texts, and p(y | x) is the CLIP's belief
    in each of them. `weights` is a safetensors file for those that need one; InceptionV3 alone also takes `download`;
    for a CLIP it is a tag.
    """

    features: str
    weights: str = ""
    classes: list[str] = field(default_factory=list)
    splits: Annotated[int, Ge(1)] = 1
    differentiable: ClassVar[bool] = True
    of_sets: ClassVar[bool] = True
    needs_data: ClassVar[bool] = False

    def mistakes(self) -> list[str]:
        """What is wrong with these options, a sentence each; looks at files and loads none."""
        from genbo.rewards._beliefs import mistakes

        return mistakes(self.features, self.weights, self.classes)

    def open(self, device: str | torch.device = "cpu") -> Alone:
        """Load the classifier. Raises `Refused` with a sentence for what is wrong."""
        from genbo.rewards._beliefs import open_classifier
        from genbo.rewards._sets import LEAST, Alone

        classifier = open_classifier(self.features, self.weights, self.classes, device)
        parts = f" of {self.splits} splits" * (self.splits > 1)
        name, least = f"an inception score{parts}", LEAST * self.splits
        return Alone(classifier, ExpDivergence(self.splits), {}, name=name, least=least)


@dataclass(frozen=True)
class ExpDivergence:
    """The score on log-probabilities (N, K), as a rule whose D is the smaller the better; it keeps nothing of data."""

    splits: int = 1

    @property
    def key(self) -> str:
        return repr(self)

    def keep(self, data: Tensor) -> Stored:
        return {}

    def values(self, features: Tensor, kept: Stored) -> Tensor:
        """Minus IS - N psi_i, (N,), whose mean is -IS exactly; psi_i is the influence of sample i."""
        import torch

        n, parts = len(features), divided(len(features), self.splits)
        scores, own = [], torch.zeros(n, dtype=features.dtype, device=features.device)
        for part in parts:
            kl = divergences(features[part])
            score = kl.mean().exp()
            scores.append(score)
            share = n / (len(part) * self.splits) * score * (kl - kl.mean())
            own = own.index_add(0, torch.as_tensor(part, device=own.device), share)
        return -(torch.stack(scores).mean() + own)


def divergences(logp: Tensor) -> Tensor:
    """KL(p(y | x_i) || p(y)) of each sample, (N,) in nats, from log-probabilities (N, K)."""
    import math

    import torch

    marginal = torch.logsumexp(logp, 0) - math.log(len(logp))
    found: Tensor = (logp.exp() * (logp - marginal)).sum(1)
    return found


def divided(n: int, splits: int) -> list[Tensor]:
    """Numbers of the samples in each of the splits, at random and the same for every set of n samples."""
    import torch

    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)) if splits > 1 else torch.arange(n)
    return list(order.chunk(splits))
