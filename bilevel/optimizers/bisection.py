"""Bracketing and bisection on the sign of the gradient, for a single coordinate; no learning rate.

    grad > 0: low = u,   grad < 0: high = u;        u <- (low + high) / 2, or a doubled stride while a side is open

For a single parameter whose gradient is the same each time it is asked for. A sign that noise turned round is believed
for ever, so where samples are drawn anew for every step use adam.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.protocols import Facts


@dataclass(frozen=True)
class Bisection:
    """`stride` is the first step in u; it doubles until the sign of the gradient has changed."""

    stride: Annotated[float, Gt(0)] = 0.7

    def why_not(self, facts: Facts) -> str | None:
        """None, or a sentence: it wants one number, and a gradient that says the same each time it is asked."""
        if not facts.tilted:
            return "bisection believes a sign for ever, and each step draws samples of its own; use optimizer: adam"
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
        """The middle of the bracket, (P,), or a stride uphill while a side is open, by the signs of `grad`."""
        import torch

        open_side = u.new_full(u.shape, torch.inf)
        low = u.where(grad > 0, state.get("low", -open_side))
        high = u.where(grad < 0, state.get("high", open_side))
        stride = state.get("stride", u.new_full(u.shape, self.stride))
        between = low.isfinite() & high.isfinite()
        middle = (low.nan_to_num(posinf=0, neginf=0) + high.nan_to_num(posinf=0, neginf=0)) / 2
        moved = torch.where(between, middle, u + stride * grad.sign())
        at = torch.where(grad == 0, u, moved)
        return at, {"low": low, "high": high, "stride": torch.where(between | (grad == 0), stride, 2 * stride)}
