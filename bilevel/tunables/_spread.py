"""A number for every step of the sampling, as a scalar, a value a step, or K knots.

    phi = low + (high - low) sigmoid(u)

so that phi stays inside (low, high) whatever the optimiser does. Knots stand evenly over the steps, the first on the
first step and the last on the last, and are joined by straight lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge

if TYPE_CHECKING:
    from torch import Tensor

EDGE = 1e-4  # of the range: a start on a bound begins this far inside, where the link still moves


@dataclass(frozen=True)
class Knots:
    knots: Annotated[int, Ge(2)]


@dataclass(frozen=True)
class Spread:
    """`start` is a number, or a list of one number a step (per_step) or a knot (knots)."""

    start: float | list[float]
    bounds: tuple[float, float] = (0.0, 20.0)
    shape: Literal["scalar", "per_step"] | Knots = "scalar"

    def mistakes(self, steps: int) -> list[str]:
        """What is wrong with these options, a sentence each."""
        low, high = self.bounds
        found = []
        if not low < high:
            return [f"bounds: the lower bound {low:g} must be less than the upper bound {high:g}"]
        starts = self.start if isinstance(self.start, list) else [self.start]
        outside = [s for s in starts if not low <= s <= high]
        if outside:
            found.append(f"start: {outside[0]:g} is outside the bounds [{low:g}, {high:g}]; move it or widen them")
        if isinstance(self.start, list) and len(self.start) != self.size(steps):
            found.append(
                f"start: {len(self.start)} numbers, but this shape has {self.size(steps)}; give one or all of them"
            )
        if isinstance(self.shape, Knots) and self.shape.knots > steps:
            found.append(f"shape: {self.shape.knots} knots over {steps} steps; use at most {steps}, or shape: per_step")
        return found

    def size(self, steps: int) -> int:
        if isinstance(self.shape, Knots):
            return self.shape.knots
        return steps if self.shape == "per_step" else 1

    def numbers(self, steps: int) -> list[float]:
        """phi at the start without torch, for the plan; `first` is the same as a tensor."""
        return list(self.start) if isinstance(self.start, list) else [self.start] * self.size(steps)

    def spread(self, numbers: Sequence[float], steps: int) -> list[float]:
        """phi -> a value a step without torch, for the plan; `over_steps` is the same for tensors."""
        if not isinstance(self.shape, Knots):
            return list(numbers) if self.shape == "per_step" else [numbers[0]] * steps
        position = [i * (self.shape.knots - 1) / max(steps - 1, 1) for i in range(steps)]
        left = [min(int(p), self.shape.knots - 2) for p in position]
        return [numbers[k] + (p - k) * (numbers[k + 1] - numbers[k]) for p, k in zip(position, left, strict=True)]

    def first(self, steps: int) -> Tensor:
        import torch

        return torch.as_tensor(self.start, dtype=torch.float64).expand(self.size(steps)).clone()

    def coordinates(self, phi: Tensor) -> Tensor:
        low, high = self.bounds
        return ((phi - low) / (high - low)).clamp(EDGE, 1 - EDGE).logit()

    def value(self, u: Tensor) -> Tensor:
        low, high = self.bounds
        return low + (high - low) * u.sigmoid()

    def over_steps(self, phi: Tensor, steps: int) -> Tensor:
        """phi (M, P) -> a value a step, (M, T)."""
        import torch

        if not isinstance(self.shape, Knots):
            return phi.expand(-1, steps)
        position = torch.linspace(0, self.shape.knots - 1, steps, dtype=phi.dtype)
        left = position.floor().clamp(max=self.shape.knots - 2).long()
        return phi[:, left] + (position - left) * (phi[:, left + 1] - phi[:, left])

    def spoken(self, phi: Tensor) -> float | list[float]:
        return float(phi[0]) if self.shape == "scalar" else [float(p) for p in phi]
