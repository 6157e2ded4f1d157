"""The gradient of an upper objective through a lower level that has parameters theta of its own.

    theta(q) = argmin L(theta; q),     F(q) = f(q, theta(q)),  here to be made small
    dF/dq    = d_q f  -  d2_{q theta} L  [d2_{theta theta} L]^-1  d_theta f             direct + indirect part

First-order means reach the indirect part by solving the lower level twice, once with the upper objective let in:

    z = argmin L + f / gamma,   y = argmin L:     dF/dq ~ d_q f(z) + gamma [d_q L(z) - d_q L(y)]

which is, for every gamma exactly, the derivative of gamma (min (L + f / gamma) - min L), and leans from dF/dq by
O(1 / gamma). With the upper objective let in from both sides, +1/gamma and -1/gamma, the two leanings cancel:

    dF/dq ~ [d_q f(z+) + d_q f(z-)] / 2 + (gamma / 2) [d_q L(z+) - d_q L(z-)],                     O(1 / gamma^2)

The difference of the two gradients of L is multiplied by gamma, and so is whatever differs in it: both take the same
draws. All of this holds where the lower level is solved and has curvature in every direction; the gradients at gamma
and 2 gamma, which then agree, are the gauge. Where L does not depend on q there is nothing to solve: the indirect part
is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from genbo.bilevel.protocols import TwoLevel
from genbo.bilevel.value_gap import value_gap

S = TypeVar("S")

TRUSTED = 0.05  # relative distance of the gradients at gamma and 2 gamma up to which they are believed


Slope = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]  # f, q -> df/dq (P,)


@dataclass(frozen=True)
class Hypergradient:
    """dF/dq in its two parts, (P,) each: what the sampler does, and what the retrained network does."""

    direct: Tensor
    indirect: Tensor

    @property
    def total(self) -> Tensor:
        return self.direct + self.indirect

    @property
    def opposed(self) -> Tensor:
        """Where the two parts pull in opposite directions, (P,)."""
        return self.direct * self.indirect < 0

    @property
    def overturned(self) -> Tensor:
        """Where the direct part alone would have gone the wrong way, (P,)."""
        return self.direct * self.total < 0

    def distance(self, other: Hypergradient) -> float:
        """Of the totals, relative to the other's length."""
        return float((self.total - other.total).norm() / other.total.norm().clamp(min=1e-300))

    def extrapolated(self, twice: Hypergradient, order: int) -> Hypergradient:
        """Richardson: from gamma (this one) and 2 gamma, what is left when the leading 1 / gamma^order is taken out."""
        a = 2.0**order
        return Hypergradient((a * twice.direct - self.direct) / (a - 1), (a * twice.indirect - self.indirect) / (a - 1))


def by_autograd(f: Callable[[Tensor], Tensor], q: Tensor) -> Tensor:
    """df/dq by reverse mode."""
    with torch.enable_grad():
        q = q.detach().requires_grad_()
        return _grad(f(q), (q,))[0]


@dataclass(frozen=True)
class ByDifferences:
    """df/dq by central differences: for distances without derivatives. f sees the same noise on both sides."""

    h: float = 0.01

    def __call__(self, f: Callable[[Tensor], Tensor], q: Tensor) -> Tensor:
        with torch.no_grad():
            steps = self.h * torch.eye(len(q), dtype=q.dtype, device=q.device)
            both = [(f(q + step) - f(q - step)) / (2 * self.h) for step in steps]
        return torch.stack(both).to(q)


def penalty(
    two: TwoLevel[S],
    q: Tensor,
    gamma: float,
    *,
    symmetric: bool = False,
    upper_slope: Slope = by_autograd,
    direct: Callable[[S], Tensor] | None = None,
) -> Hypergradient:
    """The penalty gradient at q; with `symmetric` from both sides. Two lower solves, or one where L has no q in it.

    `direct` gives d_q f at a theta by means of its own, in place of a slope of `two.upper`.
    """

    def of_upper(theta: S) -> Tensor:
        return direct(theta) if direct else upper_slope(lambda at: two.upper(at, theta), q)

    def of_lower(theta: S) -> Tensor:
        return by_autograd(lambda at: two.lower(at, theta), q)

    if not two.coupled:
        return Hypergradient(of_upper(two.solve(q, 0.0)), torch.zeros_like(q))
    z, y = two.solve(q, 1 / gamma), two.solve(q, -1 / gamma if symmetric else 0.0)
    if symmetric:
        return Hypergradient((of_upper(z) + of_upper(y)) / 2, value_gap(of_lower(z), of_lower(y), gamma / 2))
    return Hypergradient(of_upper(z), value_gap(of_lower(z), of_lower(y), gamma))


@dataclass(frozen=True)
class Gauged:
    """A penalty gradient, and how far the one at half its gamma is from it, where that was asked."""

    gradient: Hypergradient
    apart: float | None

    @property
    def trusted(self) -> bool:
        return self.apart is not None and self.apart <= TRUSTED


def gauged(
    two: TwoLevel[S],
    q: Tensor,
    gamma: float,
    *,
    symmetric: bool = False,
    upper_slope: Slope = by_autograd,
    direct: Callable[[S], Tensor] | None = None,
) -> Gauged:
    """The penalty gradient at gamma and 2 gamma, extrapolated, with the distance of the two."""
    once, twice = (
        penalty(two, q, at, symmetric=symmetric, upper_slope=upper_slope, direct=direct) for at in (gamma, 2 * gamma)
    )
    return Gauged(once.extrapolated(twice, 2 if symmetric else 1), once.distance(twice))


class Smooth(TwoLevel[Tensor], Protocol):
    """A two-level problem whose theta is one tensor (d,), with two derivatives of L."""


def implicit(two: Smooth, q: Tensor, *, iterations: int = 1000, tolerance: float = 1e-12) -> Hypergradient:
    """The exact gradient, by conjugate gradients on the Hessian of L: the reference, and dearer than it looks."""
    theta = two.solve(q, 0.0).detach().requires_grad_()
    q = q.detach().requires_grad_()
    with torch.enable_grad():
        direct, wanted = _grad(two.upper(q, theta), (q, theta))
        (lower_grad,) = torch.autograd.grad(two.lower(q, theta), theta, create_graph=True)

    def curvature(v: Tensor) -> Tensor:
        return torch.autograd.grad(lower_grad, theta, v, retain_graph=True)[0]

    v = conjugate_gradients(curvature, wanted, iterations, tolerance)
    (indirect,) = _grad(lower_grad @ v, (q,))
    return Hypergradient(direct, -indirect)


def conjugate_gradients(matrix: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float) -> Tensor:
    """x with matrix(x) = b, for a symmetric positive definite matrix."""
    x, r = torch.zeros_like(b), b.clone()
    p, size = r.clone(), r @ r
    for _ in range(iterations):
        if size.sqrt() <= tolerance * b.norm():
            break
        image = matrix(p)
        step = size / (p @ image)
        x, r = x + step * p, r - step * image
        p, size = r + (r @ r) / size * p, r @ r
    return x


def _grad(value: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Derivatives, with zeros where the value does not depend on an input."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(x) for x in inputs)
    found = torch.autograd.grad(value, inputs, allow_unused=True)
    return tuple(torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True))
