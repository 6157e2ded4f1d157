"""Newton's steps to the root of the gradient field that all steps so far have measured, inside a trust region.

    s = argmax over |s_j| <= stride of   g's + s'Hs / 2,     u <- u + s

g and H are the expected gradient and Hessian at u of `bilevel/field.py`, a Gaussian process that is fitted to every
gradient of the run with its noise. So the noise of single steps averages out, and curvature sets the length of a step:
where Adam overshoots and comes back, this stops. The stride grows by half when a step of full length was right, and
shrinks as much when the next gradient points back.

For few numbers and differences or exact gradients of the same objective at every step. A network in training or a
constraint whose multiplier moves changes the objective; take adam there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.protocols import Facts

MOST = 24  # numbers that it is meant for
REMEMBERED = 320  # gradient entries that the field is fitted to: the last ones
LONGEST = 1.0  # in u, of a stride
GROWTH = 1.5  # of the stride
FLAT = 0.02  # of the largest curvature: no direction is thought to be flatter


@dataclass(frozen=True)
class Newton:
    """`stride` is the longest that any number may move in u by the first steps."""

    stride: Annotated[float, Gt(0)] = 0.4

    def why_not(self, facts: Facts) -> str | None:
        """None, or a sentence: it wants few numbers, and gradients of one and the same objective."""
        if facts.coupled:
            return "the network is trained along the way, so each gradient is of another objective; use optimizer: adam"
        if facts.constrained:
            return "the multipliers of keep change the objective at every step; use optimizer: adam"
        if facts.parameters > MOST:
            return f"newton is for at most {MOST} numbers, and these are {facts.parameters}; use optimizer: adam"
        return None

    def step(
        self,
        u: Tensor,
        grad: Tensor,
        state: Mapping[str, Tensor],
        progress: float,
        *,
        noise: Tensor | None = None,
        width: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The next point (P,) and the state; `noise` (P,) is the standard error of `grad`, where it is known.

        `width` is half the stretch of u over which each coordinate of `grad` is an average.
        """
        seen = _with(state, u, grad, noise)
        stride = _stride(state, grad, self.stride)
        move = _move(seen, u, stride, width) if grad.any() else u.new_zeros(u.shape)
        return u + move, {**seen, "stride": stride, "move": move}


def _with(state: Mapping[str, Tensor], u: Tensor, grad: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
    """The steps so far and this one: points, gradients and standard errors, (n, P) each; 0 where one is not known."""
    import torch

    rows = {"u": u, "grad": grad, "noise": u.new_zeros(u.shape) if noise is None else noise.nan_to_num(0.0, 0.0, 0.0)}
    most = max(4, REMEMBERED // len(u))
    return {n: torch.cat([state[n], x[None]])[-most:] if n in state else x[None].clone() for n, x in rows.items()}


def _stride(state: Mapping[str, Tensor], grad: Tensor, first: float) -> Tensor:
    """Longer where a step of full length was right, shorter where the gradient now points back along it."""
    if "move" not in state:
        return grad.new_full((1,), first)
    stride, move = state["stride"], state["move"]
    if (grad * move).sum() < 0:
        return (stride / GROWTH).clamp(min=first / 4)
    was_full = move.abs().max() > 0.99 * stride
    return (stride * GROWTH).clamp(max=LONGEST) if was_full else stride


def _move(seen: Mapping[str, Tensor], u: Tensor, stride: Tensor, width: float) -> Tensor:
    """The Newton step (P,), or the gradient's direction while a single gradient is known."""
    import torch

    from genbo.bilevel.field import field

    grad = seen["grad"][-1]
    if len(seen["u"]) == 1:
        return stride * grad / grad.abs().max()
    g, hessian = field(seen["u"], seen["grad"], seen["noise"], width).mean(u)
    values, vectors = torch.linalg.eigh(hessian)
    size = values.abs().max().clamp(min=1e-300)
    along = vectors.T @ g
    step = vectors @ (along / values.abs().clamp(min=(FLAT * size).item()))
    shortened: Tensor = step * (stride / step.abs().max().clamp(min=stride.item()))
    return shortened
