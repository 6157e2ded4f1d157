"""A number for every step of the sampling, as a scalar, a value a step, or K knots.

    phi = low + (high - low) sigmoid(u)

so that phi stays inside (low, high) whatever the optimiser does. Knots stand evenly over the steps, the first on the
first step and the last on the last, and are joined by straight lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from annotated_types import Ge

from genbo.bilevel.tunables._defaults import TunableDefaults
from genbo.schedules.link import Bounded

if TYPE_CHECKING:
    from torch import Tensor

N = TypeVar("N", bound=Any)  # a float, or a tensor with a row a member
EDGE = 1e-4  # of the range: a number on a bound is measured this far inside, where it has coordinates
NUDGED = 1e-2  # of the range: steps along a gradient begin this far inside, where the link still moves


@dataclass(frozen=True)
class Knots:
    knots: Annotated[int, Ge(2)]


@dataclass(frozen=True)
class OverSteps(TunableDefaults):
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
        """phi at the start."""
        return list(self.start) if isinstance(self.start, list) else [self.start] * self.size(steps)

    def spread(self, numbers: Sequence[float], steps: int) -> list[float]:
        """phi -> a value a step, by plain numbers: the plan is made without torch."""
        return self._at_steps(numbers.__getitem__, steps)

    def bounds_of(self, steps: int) -> list[tuple[float, float] | None]:
        return [self.bounds] * self.size(steps)

    @property
    def _link(self) -> Bounded:
        return Bounded(*self.bounds, edge=EDGE)

    def coordinates(self, phi: Tensor) -> Tensor:
        return self._link.coordinates(phi)

    def value(self, u: Tensor) -> Tensor:
        return self._link.value(u)

    def over_steps(self, phi: Tensor, steps: int) -> Tensor:
        """phi (M, P) -> a value a step, (M, T)."""
        import torch

        return torch.stack(self._at_steps(lambda k: phi[:, k], steps), dim=1)

    def _at_steps(self, number: Callable[[int], N], steps: int) -> list[N]:
        """The value at each step, from number k of phi: itself, or on the straight line between two knots."""
        if not isinstance(self.shape, Knots):
            return [number(i if self.shape == "per_step" else 0) for i in range(steps)]
        position = [i * (self.shape.knots - 1) / max(steps - 1, 1) for i in range(steps)]
        left = [min(int(p), self.shape.knots - 2) for p in position]
        return [number(k) + (p - k) * (number(k + 1) - number(k)) for p, k in zip(position, left, strict=True)]

    def shown(self, phi: Tensor, steps: int) -> dict[str, list[Any]]:
        return {"over_steps": self.over_steps(phi[None], steps)[0].tolist()} if len(phi) > 1 else {}

    def spoken(self, phi: Tensor) -> float | list[float]:
        return float(phi[0]) if self.shape == "scalar" and len(phi) == 1 else [float(p) for p in phi]
