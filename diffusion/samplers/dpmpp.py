"""DPM-Solver++ (Lu et al. 2211.01095, Alg. 2), a multistep solver of order 1, 2 or 3.

With lambda = log(alpha / sigma), h = lambda_s - lambda_t and D_0 = x_0,

    x_s = (sigma_s / sigma_t) x_t - alpha_s (e^-h - 1) D_0 + alpha_s c_1 D_1 + alpha_s c_2 D_2

    order 1    D_0 alone, which is DDIM's step
    order 2    D_1 = (h / h_last) (x_0 - x_0_last);   c_1 = (1 - e^-h) / 2 (midpoint),  1 + (e^-h - 1) / h (Heun)
    order 3    D_1 and D_2 by the differences of three predictions, c_1 as Heun's, c_2 = 1/2 - (e^-h - 1 + h) / h^2

The order of each step, and Heun's rule, are the model's own scheduler's; where it has none, 2 by the midpoint, and 1 at
the first and the last step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Gt

from genbo.diffusion.traits import SamplerTraits

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.process import Memory, Step, Stepped


@dataclass(frozen=True)
class Dpmpp:
    """`steps` network calls a sample."""

    traits: ClassVar[SamplerTraits] = SamplerTraits(levels_of="dpmpp", in_diffusers=True)

    steps: Annotated[int, Gt(0)] = 10
    stochastic: ClassVar[bool] = False

    def step(self, at: Step, x_t: Tensor, x_0: Tensor, eps: Tensor, memory: Memory, noise: Tensor | None) -> Stepped:
        """Algorithm 2; the memory is the last two predictions of x_0, each with the h of its step."""
        order = min(at.order or (1 if at.last else 2), 1 + len(memory))
        decay = at.sigma_s * at.alpha_t / (at.sigma_t * at.alpha_s)  # e^-h, finite where sigma_s = 0
        h = None if at.last and order == 1 else -decay.log()
        x_s = (at.sigma_s / at.sigma_t) * x_t - at.alpha_s * (decay - 1) * x_0
        if order > 1:
            x_s = x_s + at.alpha_s * _corrected(order, at.heun, decay, h, x_0, memory)
        return x_s, ((x_0, h), *memory[:1])


def _corrected(order: int, heun: bool, decay: Tensor, h: Tensor | None, x_0: Tensor, memory: Memory) -> Tensor:
    """c_1 D_1 + c_2 D_2; `memory` holds the last predictions, the latest first, each with the h of its step."""
    assert h is not None
    (x_0_last, h_last), *before = memory
    by_heun: Tensor = (decay - 1) / h + 1
    d_1: Tensor = h / h_last * (x_0 - x_0_last)
    if order == 2:
        by_midpoint: Tensor = (1 - decay) / 2
        return (by_heun if heun else by_midpoint) * d_1
    ((x_0_before, h_before),) = before
    bend = d_1 - h / h_before * (x_0_last - x_0_before)
    d_1 = d_1 + h_last / (h_last + h_before) * bend
    d_2 = h / (h_last + h_before) * bend
    third: Tensor = (0.5 - (decay - 1 + h) / h**2) * d_2
    return by_heun * d_1 + third
