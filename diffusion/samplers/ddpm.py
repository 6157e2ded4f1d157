"""DDPM's ancestral step (Ho et al. 2006.11239, eq. 7): the posterior of x_s given x_t and the predicted x_0.

    mean  = alpha_s n / sigma_t^2 x_0 + alpha_t / alpha_s sigma_s^2 / sigma_t^2 x_t
    scale = sigma_s / sigma_t sqrt(n)  (small),  or  sqrt(n)  (large)

where n = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2 is the noise between s and t, beta_t in one step of training.
`small` is the posterior's own spread for data of one point, `large` that for data of variance 1; DDIM with eta = 1 is
the first. The two differ where predictions of x_0 are clipped: here the mean follows the clipped one alone.

The last step, to no noise at all, draws none. diffusers' DDPMScheduler draws none at time 0 alone: with large variance,
and a last time above 0 (trailing, or steps_offset), its images keep sqrt(n) of noise, and so they do here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Gt

from genbo.diffusion.traits import SamplerTraits

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.process import Memory, Step, Stepped


@dataclass(frozen=True)
class Ddpm:
    """`variance: own` is as the model's own scheduler has it, and small where it has none."""

    traits: ClassVar[SamplerTraits] = SamplerTraits(
        levels_of="ddpm",
        in_diffusers=True,
        settings={"variance": {size: {"variance_type": f"fixed_{size}"} for size in ("small", "large")}},
    )

    steps: Annotated[int, Gt(0)] = 100
    variance: Literal["own", "small", "large"] = "own"
    stochastic: ClassVar[bool] = True

    def step(self, at: Step, x_t: Tensor, x_0: Tensor, eps: Tensor, memory: Memory, noise: Tensor | None) -> Stepped:
        """The mean of `transition`, and its scale times the noise."""
        mean, scale = self.transition(at, x_t, x_0, eps)
        return mean if noise is None else mean + scale * noise, memory

    def transition(self, at: Step, x_t: Tensor, x_0: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """x_s given x_t."""
        ratio, left = at.alpha_t / at.alpha_s, (at.sigma_s / at.sigma_t) ** 2
        new = (at.sigma_t**2 - ratio**2 * at.sigma_s**2).clamp(min=0)
        mean = at.alpha_s * new / at.sigma_t**2 * x_0 + ratio * left * x_t
        small = (at.variance if self.variance == "own" else self.variance) == "small"
        share = at.sigma_s / at.sigma_t if small else ((at.sigma_s > 0) | at.noisy_end).to(new)
        return mean, share * new.sqrt()
