"""The value gap: the one formula by which two lower solves give a gradient.

    y(q) = argmin L(.; q),      z(q) = argmin L(.; q) + f / gamma
    d/dq gamma [min (L + f / gamma) - min L]  =  d_q f(z)  +  gamma [d_q L(z; q) - d_q L(y; q)]

The second part is the value gap. It is the derivative of a difference of minima for every gamma exactly, and tends to
the part of dF/dq that the lower level answers with as gamma grows, F(q) = f(q, y(q)), with an error of O(1 / gamma)
(the first-order gradient of Xiao et al., arXiv 2502.08808). Whatever y and z do not share is multiplied by gamma: both
are solved on the same samples.

    lambda      L = -E[r2] + lambda KL,  so d_lambda L = KL         `bilevel/estimators/value_gap.py`
    schedules   L is a denoising loss, d_q L by autograd            `bilevel/training/penalty.py`
"""

from __future__ import annotations

from typing import Protocol, Self, TypeVar


class Scalable(Protocol):
    """What can be subtracted and scaled: a tensor, or a measured number with its influences."""

    def __sub__(self, other: Self, /) -> Self: ...
    def __mul__(self, factor: float, /) -> Self: ...


G = TypeVar("G", bound=Scalable)


def value_gap(at_z: G, at_y: G, gamma: float) -> G:
    """gamma [d_q L(z) - d_q L(y)], from the slopes of L at both solutions, z and y held fixed."""
    return (at_z - at_y) * gamma
