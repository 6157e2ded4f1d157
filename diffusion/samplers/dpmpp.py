"""DPM-Solver++(2M) (Lu et al. 2211.01095, Alg. 2), midpoint form, first order at the first and the last step.

With lambda = log(alpha / sigma) and h = lambda_s - lambda_t,

    x_s = (sigma_s / sigma_t) x_t - alpha_s (e^-h - 1) D,      D = x_0 + (h / 2 h_last) (x_0 - x_0_last)

and D = x_0 alone is the first-order step, which is DDIM's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.process import Memory, Step, Stepped


@dataclass(frozen=True)
class Dpmpp:
    steps: Annotated[int, Gt(0)] = 10
    stochastic = False

    def step(self, at: Step, x_t: Tensor, x_0: Tensor, eps: Tensor, memory: Memory, noise: Tensor | None) -> Stepped:
        decay = at.sigma_s * at.alpha_t / (at.sigma_t * at.alpha_s)  # e^-h, finite where sigma_s = 0
        target = x_0
        h = None
        if not at.last:
            h = -decay.log()
            if memory:
                x_0_last, h_last = memory
                target = x_0 + h / (2 * h_last) * (x_0 - x_0_last)
        return (at.sigma_s / at.sigma_t) * x_t - at.alpha_s * (decay - 1) * target, (x_0, h)
