"""An exact world that is not symmetric: every coordinate is exponential, and so is the world without a prompt.

    p(x_0 | c) = exp(-x_0 / s_c) / s_c,  x_0 > 0,   a coordinate each

The posterior of x_0 given x_t is a Gaussian cut off at 0, whose mean is known:

    E[x_0 | x_t] = sigma_t / alpha_t [k + phi(k) / Phi(k)],     k = x_t / sigma_t - sigma_t / (alpha_t s_c)

Its skew tells a KL divergence from the same with its arguments swapped, which a Gaussian may not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt

from genbo.diffusion.models._worlds import log_snr_grid, refuse_strangers

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.process import Condition, Sampler
    from genbo.schedules.grid import Grid

FAR = 30.0  # k from which the cut at 0 is not felt: phi(30) is 1e-196


@dataclass(frozen=True)
class Exponential:
    """`means` holds a mean a coordinate for each prompt; `spread` is the mean of every coordinate without one."""

    means: dict[str, list[float]] = field(default_factory=lambda: {"short": [0.5], "long": [1.0]})
    spread: Annotated[float, Gt(0)] = 1.2
    log_snr_max: Annotated[float, Gt(0)] = 8.0

    @property
    def known_prompts(self) -> list[str]:
        return list(self.means)

    def mistakes(self) -> list[str]:
        if not self.means or len({len(mean) for mean in self.means.values()}) != 1 or [] in self.means.values():
            return ["means: every prompt's mean must have the same number of coordinates, at least one"]
        if any(number <= 0 for mean in self.means.values() for number in mean):
            return ["means: the mean of an exponential is greater than 0; write how long the tail is"]
        return []

    def open(self) -> ExponentialModel:
        return ExponentialModel(self)


class ExponentialModel:
    """The opened world."""

    prediction = "sample"

    def __init__(self, options: Exponential) -> None:
        import torch

        self.options = options
        self.device, self.dtype = torch.device("cpu"), torch.float64
        self.shape = (len(next(iter(options.means.values()))), 1, 1)

    def encode(self, prompts: Sequence[str]) -> Condition:
        """The mean of each coordinate, (rows, d)."""
        known = self.options.means
        refuse_strangers(self.options.known_prompts, prompts)
        return self._condition([known[prompt] for prompt in prompts])

    def unconditional(self) -> Condition:
        return self._condition([[self.options.spread] * self.shape[0]])

    def _condition(self, means: list[list[float]]) -> Condition:
        import torch

        from genbo.diffusion.process import Condition

        return Condition({"mean": torch.tensor(means, dtype=self.dtype)})

    def __call__(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        alpha, sigma = time.sigmoid().sqrt()[:, None], (-time).sigmoid().sqrt()[:, None]
        k = x_t.flatten(1) / sigma - sigma / (alpha * condition.tensors["mean"])
        return (sigma / alpha * (k + hazard(k))).reshape(x_t.shape)

    def decode(self, x: Tensor) -> Tensor:
        return x

    def grid(self, sampler: Sampler) -> Grid:
        return log_snr_grid(self.options.log_snr_max, sampler.steps)


def hazard(k: Tensor) -> Tensor:
    """phi(k) / Phi(k), to many digits far into the lower tail."""
    import math

    import torch

    found: Tensor = math.sqrt(2 / math.pi) / torch.special.erfcx(-k.clamp(max=FAR) / math.sqrt(2))
    return found
