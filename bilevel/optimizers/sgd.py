"""Gradient ascent with a step length that decays late."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt, Interval

from genbo.bilevel.optimizers._decay import decay

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.protocols import Facts


@dataclass(frozen=True)
class Sgd:
    """`lr` multiplies the gradient; `final` is the fraction of it that is left at the end."""

    lr: Annotated[float, Gt(0)] = 1.0
    final: Annotated[float, Interval(ge=0, le=1)] = 0.1

    def why_not(self, facts: Facts) -> str | None:
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
        """u + lr grad, (P,), with no state; `lr` falls as `_decay.decay` says."""
        lr = self.lr * decay(progress, self.final)
        return u + lr * grad, {}
