"""A Gaussian toy model in closed form: one Gaussian per prompt and one without; guided samples are Gaussian too.

    p(x_0 | c) = N(m_c, s^2 I),    p(x_0) = N(0, S^2 I),    E[x_0 | x_t] linear in x_t

so a guided sampler is a chain of linear maps, and the mean and variance of what it generates follow on paper for any
weight at any step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt

from genbo.diffusion.models._worlds import ToldLogSnr, refuse_strangers, trainable

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.adapt import Adapter
    from genbo.diffusion.process import Condition
    from genbo.diffusion.seed import Seed


@dataclass(frozen=True)
class Gaussian:
    """`means` holds a mean a prompt; `std` is the spread of every prompt, `spread` that of the world without one."""

    means: dict[str, list[float]] = field(default_factory=lambda: {"right": [1.0], "left": [-1.0]})
    std: Annotated[float, Gt(0)] = 0.5
    spread: Annotated[float, Gt(0)] = 1.2
    log_snr_max: Annotated[float, Gt(0)] = 8.0

    @property
    def time_range(self) -> tuple[float, float]:
        """What the network may be told, noisiest first: log-SNRs."""
        return -self.log_snr_max, self.log_snr_max

    @property
    def known_prompts(self) -> list[str]:
        return list(self.means)

    def mistakes(self) -> list[str]:
        if not self.means or len({len(mean) for mean in self.means.values()}) != 1 or [] in self.means.values():
            return ["means: every prompt's mean must have the same number of coordinates, at least one"]
        return []

    def open(self) -> GaussianModel:
        return GaussianModel(self)


class GaussianModel(ToldLogSnr):
    """The opened world. Its numbers are `means`, a row a prompt, and `log_std`."""

    options: Gaussian
    prediction = "sample"

    def __init__(self, options: Gaussian, weights: Mapping[str, Tensor] | None = None) -> None:
        import torch

        self.options = options
        self.device, self.dtype = torch.device("cpu"), torch.float64
        means = torch.tensor(list(options.means.values()), dtype=self.dtype)
        numbers = {"means": means, "log_std": torch.tensor(options.std, dtype=self.dtype).log()}
        self.numbers: Mapping[str, Tensor] = weights or numbers
        self.weights: Mapping[str, Tensor] = weights or {}
        self.shape = (means.shape[1], 1, 1)

    def adapted(self, adapter: Adapter, seed: Seed) -> GaussianModel:
        return GaussianModel(self.options, trainable(GaussianModel(self.options).numbers, adapter))

    def encode(self, prompts: Sequence[str]) -> Condition:
        """The mean and the standard deviation of each prompt's Gaussian: (rows, d) and (rows, 1)."""
        known = self.options.known_prompts
        refuse_strangers(known, prompts)
        means = self.numbers["means"][[known.index(prompt) for prompt in prompts]]
        return self._condition(means, self.numbers["log_std"].exp())

    def unconditional(self) -> Condition:
        import torch

        nowhere = torch.zeros(1, self.shape[0], dtype=self.dtype)
        return self._condition(nowhere, torch.tensor(self.options.spread, dtype=self.dtype))

    def _condition(self, means: Tensor, std: Tensor) -> Condition:
        from genbo.diffusion.process import Condition

        return Condition({"mean": means, "std": std.expand(len(means), 1)})

    def __call__(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        mean, variance = condition.tensors["mean"], condition.tensors["std"] ** 2
        alpha_2, sigma_2 = time.sigmoid()[:, None], (-time).sigmoid()[:, None]
        alpha = alpha_2.sqrt()
        x_0 = mean + alpha * variance / (alpha_2 * variance + sigma_2) * (x_t.flatten(1) - alpha * mean)
        return x_0.reshape(x_t.shape)

    def decode(self, x: Tensor) -> Tensor:
        return x
