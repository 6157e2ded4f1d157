"""What a reward promises, and weighted sums of rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


class Reward(Protocol):
    """How good an image is; higher is better. Files in `rewards/` hold options and open such an object.

    Attributes:
        differentiable: whether gradients of the score in the images mean anything.
    """

    differentiable: bool

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, C, H, W) in [0, 1] and B prompts -> (B,) in float32 or float64, each row by itself."""


@runtime_checkable
class Taught(Reward, Protocol):
    """A reward that compares each sample with what the same noise becomes in more steps.

    Attributes:
        steps: of the teacher's sampler.
        sampler: its kind, where it is another than the job's.
        latent: whether samples are compared, and not the images that they decode to.
    """

    steps: int
    sampler: str | None
    latent: bool

    def beside(self, mine: Tensor, teachers: Tensor) -> Tensor:
        """Both (B, ...), row by row of the same noise -> (B,); differentiable in `mine`."""


@runtime_checkable
class OfSets(Reward, Protocol):
    """A reward of all samples together, such as a distance to data, given to each in shares whose mean is the reward.

    Called with images it takes them for the whole set.
    """

    of_sets: bool

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D), each image by itself: a set may be seen in parts."""

    def rows(self, features: Tensor) -> Tensor:
        """(N, D) of the whole set -> (N,)."""

    def pull(self, features: Tensor) -> Tensor:
        """N times the gradient of the reward in every feature, (N, D)."""

    def shares(self, live: Tensor, rows: Tensor, pull: Tensor) -> Tensor:
        """`rows` and `pull` of the whole set at these n samples -> (n,), with their gradients in `live` (n, D)."""


@dataclass(frozen=True)
class WholeSet:
    """What rewards of sets say of a whole batch, by their place among the scorers: rows (N,) and pulls (N, D)."""

    rows: Mapping[int, Tensor]
    pulls: Mapping[int, Tensor]

    def part(self, here: slice) -> WholeSet:
        """At these samples."""
        return WholeSet({k: v[here] for k, v in self.rows.items()}, {k: v[here] for k, v in self.pulls.items()})


Weighted = Sequence[tuple[float, Reward]]  # rewards, each with its weight


def total(rewards: Weighted, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """The weighted sum of rewards of each image, (B,) in float64."""
    import torch

    return torch.stack([weight * reward(images, prompts).double() for weight, reward in rewards]).sum(0)
