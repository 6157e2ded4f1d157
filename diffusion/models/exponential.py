"""A skewed toy model in closed form: every coordinate is exponential, with and without a prompt.

    p(x_0 | c) = exp(-x_0 / s_c) / s_c,  x_0 > 0,   a coordinate each

The posterior of x_0 given x_t is a Gaussian cut off at 0, whose mean is known:

    E[x_0 | x_t] = sigma_t / alpha_t [k + phi(k) / Phi(k)],     k = x_t / sigma_t - sigma_t / (alpha_t s_c)

Its skew tells a KL divergence from the same with its arguments swapped, which a Gaussian may not.
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

FAR = 30.0  # k from which the cut at 0 is not felt: phi(30) is 1e-196


@dataclass(frozen=True)
class Exponential:
    """`means` holds a mean a coordinate for each prompt; `spread` is the mean of every coordinate without one."""

    means: dict[str, list[float]] = field(default_factory=lambda: {"short": [0.5], "long": [1.0]})
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
        if any(number <= 0 for mean in self.means.values() for number in mean):
            return ["means: the mean of an exponential is greater than 0; write how long the tail is"]
        return []

    def open(self) -> ExponentialModel:
        return ExponentialModel(self)


class ExponentialModel(ToldLogSnr):
    """The opened world. Its numbers are `log_means`, a row a prompt."""

    options: Exponential
    prediction = "sample"

    def __init__(self, options: Exponential, weights: Mapping[str, Tensor] | None = None) -> None:
        import torch

        self.options = options
        self.device, self.dtype = torch.device("cpu"), torch.float64
        numbers = {"log_means": torch.tensor(list(options.means.values()), dtype=self.dtype).log()}
        self.numbers: Mapping[str, Tensor] = weights or numbers
        self.weights: Mapping[str, Tensor] = weights or {}
        self.shape = (numbers["log_means"].shape[1], 1, 1)

    def adapted(self, adapter: Adapter, seed: Seed) -> ExponentialModel:
        return ExponentialModel(self.options, trainable(ExponentialModel(self.options).numbers, adapter))

    def encode(self, prompts: Sequence[str]) -> Condition:
        """The mean of each coordinate, (rows, d)."""
        from genbo.diffusion.process import Condition

        known = self.options.known_prompts
        refuse_strangers(known, prompts)
        log_means = self.numbers["log_means"][[known.index(prompt) for prompt in prompts]]
        return Condition({"mean": log_means.exp()})

    def unconditional(self) -> Condition:
        import torch

        from genbo.diffusion.process import Condition

        return Condition({"mean": torch.full((1, self.shape[0]), self.options.spread, dtype=self.dtype)})

    def __call__(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        alpha, sigma = time.sigmoid().sqrt()[:, None], (-time).sigmoid().sqrt()[:, None]
        k = x_t.flatten(1) / sigma - sigma / (alpha * condition.tensors["mean"])
        return (sigma / alpha * (k + hazard(k))).reshape(x_t.shape)

    def decode(self, x: Tensor) -> Tensor:
        return x


def hazard(k: Tensor) -> Tensor:
    """phi(k) / Phi(k), to many digits far into the lower tail."""
    import math

    import torch

    found: Tensor = math.sqrt(2 / math.pi) / torch.special.erfcx(-k.clamp(max=FAR) / math.sqrt(2))
    return found
