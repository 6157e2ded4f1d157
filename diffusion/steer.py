"""Steering as a part of a process: rewards, a strength, and the rule that turns both into a move of every step.

    r = sum_k weight_k reward_k(decode(x_0(x_t))),      g = grad_{x_t} r,      eps <- eps - sigma_t pull g

A file in `diffusion/steering/` is a rule: it says how hard to pull. `diffusion/sample.py` takes the step, and
`diffusion/steer_document.py` stores a steer beside a model and reads it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Score(Protocol):
    """What sampling may climb on its way; a differentiable reward is one."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The images about to be made (B, C, H, W) and their prompts -> (B,), each row from its own image alone."""


class SteeringRule(Protocol):
    """How hard a reward pulls; a file in `diffusion/steering/` each, whose fields are its options."""

    @property
    def most(self) -> float | None:
        """The longest move of eps at a step; its length is the root of its mean square, and that of eps is about 1."""

    @property
    def passes(self) -> int:
        """Samplings after a first one without steering, each by the reward's tangent at the last one's samples.

        With 0 the reward itself is looked at in every step of the one sampling.
        """

    def mistakes(self) -> list[str]:
        """What is wrong with these options, a sentence each, with the remedy."""

    def pull(self, reward: Tensor, variance: Tensor, strength: Tensor) -> Tensor:
        """The factor of the reward's gradient, (B,) in float64, differentiable in every tensor.

        Args:
            reward: Of the image in sight, (B,).
            variance: Of the reward given x_t, (B,), as far as reward and network are linear there; it may come out
                below 0 for a network that is no exact denoiser.
            strength: As the job has it, (B,), at this step.
        """


def looks(rule: SteeringRule, steps: int) -> tuple[int, int]:
    """`Steer.looks` of a rule alone, for the plan, which is made before anything is opened."""
    return (rule.passes, rule.passes) if rule.passes else (steps, 0)


@dataclass(frozen=True)
class Climbed:
    """A reward that is climbed, opened, with its weight; and its options, without which it cannot be stored."""

    weight: float
    reward: Score
    options: Any = None


@dataclass(frozen=True)
class Steer:
    """Rewards to climb by a rule; `strength` is (M, T) in float64 on the CPU."""

    rewards: tuple[Climbed, ...]
    strength: Tensor
    rule: SteeringRule

    def looks(self, steps: int) -> tuple[int, int]:
        """How often the reward of a sample is looked at on its way of so many steps, and the passes beside the first.

        A pass is a sampling that goes back through the network at every step; without any, the first one does.
        """
        return looks(self.rule, steps)

    def total(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The weighted sum of the rewards of each image, (B,) in float64."""
        import torch

        return torch.stack([one.weight * one.reward(images, prompts).double() for one in self.rewards]).sum(0)


@dataclass(frozen=True)
class Tangent:
    """A reward that was linearised at a sample each: its value there less g . x, (B,), and g, (B, *shape)."""

    offset: Tensor
    slope: Tensor

    def __call__(self, x_0: Tensor) -> Tensor:
        """(B, *shape) -> (B,) in float64."""
        return self.offset + (self.slope.double() * x_0.double()).flatten(1).sum(1)
