"""Closeness of a sample to what the same noise gives in many steps.

    squared     - mean over numbers d of (x_d - teacher_d)^2
    absolute    - mean over numbers d of |x_d - teacher_d|
    psnr        - 10 log10 of the mean square: the peak signal-to-noise ratio in dB, of pixels, whose peak is 1

in pixels, in the latents that the model draws, or in what a CLIP sees in both images (its embeddings are of length 1,
so the mean square there is 2 - 2 cos, over their width). With few steps some samples become another drawing than the
teacher's, far from it. Their squares outweigh all others, and a mean of squares says little of the rest; `psnr` counts
a change by its ratio, of a near sample as of a far one.

It reads no prompt itself: the teacher is the job's own model, prompt and guidance as `model:` has them, whatever is
tuned. Values: up to 0, which is no distance at all; of psnr up to 120. Weights, where it sees features, are the user's
own or bundled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge

from genbo.rewards._tower import ImageTower, Tower

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NO_DISTANCE = 1e-12  # a mean square that is as good as none: 120 dB


@dataclass(frozen=True)
class Teacher:
    """`steps` of the teacher, by the job's own sampler or another kind of it; `pretrained` is the CLIP of features."""

    steps: Annotated[int, Ge(2)] = 100
    space: Literal["pixels", "latents", "features"] = "pixels"
    distance: Literal["squared", "absolute", "psnr"] = "squared"
    sampler: Literal["ddim", "euler", "dpmpp"] | None = None
    pretrained: str = ""
    differentiable: ClassVar[bool] = True

    def mistakes(self) -> list[str]:
        """What is wrong with these options, a sentence each."""
        if self.space != "features":
            return ["pretrained: only space: features looks through a CLIP; leave it out"] if self.pretrained else []
        if not self.pretrained:
            return ["pretrained: space: features needs a CLIP to look through; emoji-clip is bundled"]
        return Tower(self.pretrained).mistakes()

    @property
    def lesson(self) -> tuple[int, str | None]:
        """What a teacher of these options draws, for the plan: those who agree on it draw once."""
        return self.steps, self.sampler

    @property
    def folder(self) -> Path | None:
        """Where the weights lie, if there are any."""
        return Tower(self.pretrained).folder if self.pretrained else None

    def open(self, device: str | torch.device = "cpu") -> _ToTeacher:
        tower = ImageTower(Tower(self.pretrained).load(), device) if self.space == "features" else None
        return _ToTeacher(self, tower)


class _ToTeacher:
    """The opened reward, which wants the teacher's samples beside the others."""

    differentiable: bool = True

    def __init__(self, options: Teacher, tower: ImageTower | None) -> None:
        self.steps, self.sampler, self.folder = options.steps, options.sampler, options.folder
        self.latent = options.space == "latents"
        self.distance, self.tower = options.distance, tower

    def beside(self, mine: Tensor, teachers: Tensor) -> Tensor:
        """Images of both, (B, C, H, W) in [0, 1], or samples where `latent` -> (B,)."""
        x, y = (images if images.dtype.itemsize == 8 else images.float() for images in (mine, teachers))
        if self.tower is not None:
            x, y = self.tower.embed(x), self.tower.embed(y)
        away = (x - y).flatten(1)
        if self.distance == "absolute":
            return -away.abs().mean(1)
        square = away.square().mean(1)
        return -square if self.distance == "squared" else -10 * (square + NO_DISTANCE).log10()

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        raise ValueError("the reward teacher needs to know the noise of each image, which is not known here")
