"""Euler in sigma / alpha (Karras et al. 2206.00364, Alg. 1 without churn).

Written in x_t / alpha_t it is x_s = x_t + (sigma_s - sigma_t) eps, which is DDIM's step with eta = 0: the two differ in
the levels at which they stop, not in the step.
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
class Euler:
    """`steps` network calls a sample."""

    traits: ClassVar[SamplerTraits] = SamplerTraits(levels_of="euler", in_diffusers=True)

    steps: Annotated[int, Gt(0)] = 20
    stochastic: ClassVar[bool] = False

    def step(self, at: Step, x_t: Tensor, x_0: Tensor, eps: Tensor, memory: Memory, noise: Tensor | None) -> Stepped:
        """alpha_s x_0 + sigma_s eps, (B, *shape); nothing is remembered."""
        return (at.alpha_s * x_0).addcmul(at.sigma_s, eps), memory
