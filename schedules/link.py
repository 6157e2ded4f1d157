"""Links: from unconstrained coordinates u to parameters that stay in their domain.

    a number in [a, b]            phi = a + (b - a) sigmoid(u)                 or the same for log phi
    0 < w_1 < ... < w_n < 1       log of neighbouring gaps' ratio = B tanh(u / B),      gaps summing to 1

Every u has a phi, infinities included, and every phi inside its domain has a u; derivatives are finite everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

EDGE = 1e-2  # of the range: a start on a bound begins this far inside, where the link still moves
STEEPEST = 12.0  # log of the largest ratio of two neighbouring gaps


class Link(Protocol):
    """One parameter of a family, a number or several."""

    @property
    def size(self) -> int:
        """How many numbers it has."""

    def value(self, u: Tensor) -> Tensor:
        """u (..., size) -> phi, inside its domain for every u."""

    def coordinates(self, phi: Tensor) -> Tensor:
        """phi (..., size) -> u, the inverse of `value`."""

    def why_not(self, phi: Sequence[float]) -> str | None:
        """None, or why these numbers are none of the parameter's."""


@dataclass(frozen=True)
class Bounded:
    """Numbers that each stay between two bounds, spaced evenly or, with `log`, by their logarithm.

    phi = low + (high - low) sigmoid(u), or the same of log phi. `edge` is the share of the range by which a start on a
    bound begins inside.
    """

    low: float
    high: float
    log: bool = False
    edge: float = EDGE

    size = 1

    def value(self, u: Tensor) -> Tensor:
        """low + (high - low) sigmoid(u), or the same of the logarithm: (..., 1)."""
        share = u.sigmoid()
        if not self.log:
            return self.low + (self.high - self.low) * share
        low, high = math.log(self.low), math.log(self.high)
        return (low + (high - low) * share).exp().clamp(self.low, self.high)

    def coordinates(self, phi: Tensor) -> Tensor:
        """The inverse of `value`, held `edge` inside the bounds: (..., 1)."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        at = phi.log() if self.log else phi
        return ((at - low) / (high - low)).clamp(self.edge, 1 - self.edge).logit()

    def why_not(self, phi: Sequence[float]) -> str | None:
        """None, or why these are not one number within the bounds."""
        if len(phi) != 1:
            return f"one number is wanted, not {len(phi)}"
        if not self.low <= phi[0] <= self.high:
            return f"{phi[0]:g} is outside [{self.low:g}, {self.high:g}]"
        return None


@dataclass(frozen=True)
class Rising:
    """`size` numbers that rise from 0 to 1; u = 0 spaces them evenly, and u_j widens the gap after number j."""

    size: int

    def value(self, u: Tensor) -> Tensor:
        """Cumulative shares of a softmax, (..., size): they rise strictly in (0, 1)."""
        import torch

        ratio = STEEPEST * (u / STEEPEST).tanh()
        logits = torch.cat([torch.zeros_like(ratio[..., :1]), ratio.cumsum(-1)], dim=-1)
        return logits.softmax(-1).cumsum(-1)[..., :-1]

    def coordinates(self, phi: Tensor) -> Tensor:
        """The inverse of `value`, (..., size)."""
        import torch

        all_of_it = torch.cat([torch.zeros_like(phi[..., :1]), phi, torch.ones_like(phi[..., :1])], dim=-1)
        ratio = all_of_it.diff(dim=-1).clamp(min=1e-12).log().diff(dim=-1)
        most = 1 - EDGE**2
        return STEEPEST * (ratio / STEEPEST).clamp(-most, most).atanh()

    def why_not(self, phi: Sequence[float]) -> str | None:
        """None, or why these are not `size` numbers that rise from 0 to 1."""
        if len(phi) != self.size:
            return f"{self.size} numbers are wanted, not {len(phi)}"
        if any(b < a for a, b in zip([0.0, *phi], [*phi, 1.0], strict=True)):
            return "the numbers must rise, from 0 to 1"
        return None
