"""The tilt: sampling climbs strength times the reward of the image in sight, towards p0 exp(strength r).

    pull = strength        (1 / lambda, where lambda is the strength of a KL term)

The law p0 exp(strength r) itself asks for the mean of exp(strength r) over x_0 given x_t; read at the mean of x_0 it is
exact where p0 is Gaussian and r linear, and an approximation elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Gt

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Tilt:
    """`most` is the longest move of a step, where the noise in x_t is 1; null, as theory has it, suits exact worlds."""

    most: Annotated[float, Gt(0)] | None = 0.3
    passes: ClassVar[int] = 0

    def mistakes(self) -> list[str]:
        return []

    def pull(self, reward: Tensor, variance: Tensor, strength: Tensor) -> Tensor:
        """`strength` itself, (B,)."""
        return strength
