"""An exact world: every prompt is a Gaussian, and so is the world without a prompt; guided samples are Gaussian too.

    p(x_0 | c) = N(m_c, s^2 I),    p(x_0) = N(0, S^2 I),    E[x_0 | x_t] linear in x_t

so a guided sampler is a chain of linear maps, and the mean and variance of what it generates follow on paper for any
weight at any step.
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


@dataclass(frozen=True)
class Gaussian:
    """`means` holds a mean a prompt; `std` is the spread of every prompt, `spread` that of the world without one."""

    means: dict[str, list[float]] = field(default_factory=lambda: {"right": [1.0], "left": [-1.0]})
    std: Annotated[float, Gt(0)] = 0.5
    spread: Annotated[float, Gt(0)] = 1.2
    log_snr_max: Annotated[float, Gt(0)] = 8.0

    @property
    def known_prompts(self) -> list[str]:
        return list(self.means)

    def mistakes(self) -> list[str]:
        if not self.means or len({len(mean) for mean in self.means.values()}) != 1 or [] in self.means.values():
            return ["means: every prompt's mean must have the same number of coordinates, at least one"]
        return []

    def open(self) -> GaussianModel:
        return GaussianModel(self)


class GaussianModel:
    """The opened world."""

    prediction = "sample"

    def __init__(self, options: Gaussian) -> None:
        import torch

        self.options = options
        self.device, self.dtype = torch.device("cpu"), torch.float64
        self.shape = (len(next(iter(options.means.values()))), 1, 1)

    def encode(self, prompts: Sequence[str]) -> Condition:
        """The mean and the standard deviation of each prompt's Gaussian: (rows, d) and (rows, 1)."""
        known = self.options.means
        refuse_strangers(self.options.known_prompts, prompts)
        return self._condition([known[prompt] for prompt in prompts], self.options.std)

    def unconditional(self) -> Condition:
        return self._condition([[0.0] * self.shape[0]], self.options.spread)

    def _condition(self, means: list[list[float]], std: float) -> Condition:
        import torch

        from genbo.diffusion.process import Condition

        mean = torch.tensor(means, dtype=self.dtype)
        return Condition({"mean": mean, "std": torch.full((len(mean), 1), std, dtype=self.dtype)})

    def __call__(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        mean, variance = condition.tensors["mean"], condition.tensors["std"] ** 2
        alpha_2, sigma_2 = time.sigmoid()[:, None], (-time).sigmoid()[:, None]
        alpha = alpha_2.sqrt()
        x_0 = mean + alpha * variance / (alpha_2 * variance + sigma_2) * (x_t.flatten(1) - alpha * mean)
        return x_0.reshape(x_t.shape)

    def decode(self, x: Tensor) -> Tensor:
        return x

    def grid(self, sampler: Sampler) -> Grid:
        return log_snr_grid(self.options.log_snr_max, sampler.steps)
