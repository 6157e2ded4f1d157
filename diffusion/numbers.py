"""Arithmetic that one formula needs for plain numbers and for tensors alike: `check` plans without torch.

A formula written with these, `+ - * /` and `**` gives a float for floats and a differentiable tensor for tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

N = TypeVar("N", float, "Tensor")


def least(a: N, b: float) -> N:
    """The smaller of a and the number b; where they are equal, half of the gradient goes to a."""
    if isinstance(a, (int, float)):
        return min(a, b)
    import torch

    return torch.minimum(a, a.new_tensor(b))


def greatest(a: N, b: float) -> N:
    """The larger of a and the number b; where they are equal, half of the gradient goes to a."""
    if isinstance(a, (int, float)):
        return max(a, b)
    import torch

    return torch.maximum(a, a.new_tensor(b))


def clamped(a: N, low: float, high: float) -> N:
    """a held in [low, high]; on a bound the gradient passes."""
    if isinstance(a, (int, float)):
        return min(max(a, low), high)
    return a.clamp(low, high)
