"""A number that was measured on samples, with what every sample did to it.

A number comes with its influences psi_i, how much sample i pulled it away from the truth:

    estimate - truth  ~  sum_i psi_i,      se^2 = sum_i psi_i^2

Differences and multiples of such numbers keep their influences, so the error of a difference of two numbers from the
same samples is right without a covariance being written down. An exact number has no influences, and no error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MANY_PROMPTS = 8  # from here on the error bar counts prompts, and holds for prompts like these


@dataclass(frozen=True)
class Measured:
    """A number a prompt, (C,), and its influences, (C, n), or (C, 0) where it is exact. Prompts count the same."""

    value: Tensor
    influence: Tensor

    @property
    def mean(self) -> float:
        return self.value.mean().item()

    @property
    def se(self) -> float:
        """Of the mean: over prompts where there are many, which counts their samples too, else over samples."""
        if len(self.value) >= MANY_PROMPTS:
            return self.value.std().item() / math.sqrt(len(self.value))
        return self.influence.square().sum().sqrt().item() / len(self.value)

    def __sub__(self, other: Measured) -> Measured:
        return Measured(self.value - other.value, self.influence - other.influence)

    def __add__(self, other: Measured) -> Measured:
        return Measured(self.value + other.value, self.influence + other.influence)

    def __mul__(self, factor: float) -> Measured:
        return Measured(self.value * factor, self.influence * factor)


@dataclass(frozen=True)
class Relative(Measured):
    """A number that is never below 0, as a KL is: what is not known is its size, so its error bar is one of its log.

    `bilevel.interval.error` is that bar. A difference of two such numbers is an ordinary number.
    """
