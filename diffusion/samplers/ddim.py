"""DDIM (Song et al. 2010.02502, eq. 12): eta = 0 is deterministic, eta = 1 is DDPM's ancestral step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Gt, Interval

from genbo.diffusion.traits import SamplerTraits

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.process import Memory, Step, Stepped


@dataclass(frozen=True)
class Ddim:
    """`steps` network calls a sample; `eta` in [0, 1] is the share of fresh noise at each step."""

    traits: ClassVar[SamplerTraits] = SamplerTraits(levels_of="ddim", in_diffusers=True, call_options=("eta",))

    steps: Annotated[int, Gt(0)] = 20
    eta: Annotated[float, Interval(ge=0, le=1)] = 0.0

    @property
    def stochastic(self) -> bool:
        """Whether `eta` is above 0."""
        return self.eta > 0

    def step(self, at: Step, x_t: Tensor, x_0: Tensor, eps: Tensor, memory: Memory, noise: Tensor | None) -> Stepped:
        """Eq. 12: alpha_s x_0 + sigma_s eps without noise, else the mean of `transition` and its scale times noise."""
        if noise is None:
            return (at.alpha_s * x_0).addcmul(at.sigma_s, eps), memory
        mean, scale = self.transition(at, x_t, x_0, eps)
        return mean + scale * noise, memory

    def transition(self, at: Step, x_t: Tensor, x_0: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """x_s given x_t: the mean, eq. 12, and sigma_{t|s}, eq. 16, the part of x_s's noise that is drawn anew."""
        ratio = (at.alpha_t / at.alpha_s) ** 2
        fresh = self.eta * (at.sigma_s / at.sigma_t) * (1 - ratio).clamp(min=0).sqrt()
        kept = (at.sigma_s**2 - fresh**2).clamp(min=0).sqrt()
        return at.alpha_s * x_0 + kept * eps, fresh
