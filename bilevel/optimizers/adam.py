"""Adam (Kingma & Ba 1412.6980), ascending, with a step length that decays late and no weight decay.

Weight decay would drag hyperparameters towards u = 0, which means nothing. The memories are short, because a run has
tens of steps, not thousands, and because gradients fall by orders of magnitude on the way to an optimum: with
beta2 = 0.999 the step would shrink with them and the climb would stop half way.
"""

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
class Adam:
    """`lr` is about the length of the first steps in u; `final` the fraction of it that is left at the end."""

    lr: Annotated[float, Gt(0)] = 0.3
    beta1: Annotated[float, Interval(ge=0, lt=1)] = 0.7
    beta2: Annotated[float, Interval(ge=0, lt=1)] = 0.8
    final: Annotated[float, Interval(ge=0, le=1)] = 0.05

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
        """u + lr m / (sqrt(v) + 1e-12), (P,), with both averages corrected for their start at 0 (Algorithm 1).

        `lr` falls as `_decay.decay` says; `noise` and `width` are not looked at.
        """
        first = self.beta1 * state.get("first", grad.new_zeros(grad.shape)) + (1 - self.beta1) * grad
        second = self.beta2 * state.get("second", grad.new_zeros(grad.shape)) + (1 - self.beta2) * grad**2
        count = state.get("count", grad.new_zeros(1)) + 1
        unbiased = first / (1 - self.beta1**count)
        spread = (second / (1 - self.beta2**count)).sqrt()
        lr = self.lr * decay(progress, self.final)
        return u + lr * unbiased / (spread + 1e-12), {"first": first, "second": second, "count": count}
