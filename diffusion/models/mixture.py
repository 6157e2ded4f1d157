"""A toy model in closed form: a mixture of Gaussians with one class per prompt.

    p(x_0 | c) = sum of the components labelled c,     p(x_0) = all of them
    E[x_0 | x_t] = sum_k r_k(x_t) [m_k + alpha_t s^2 / (alpha_t^2 s^2 + sigma_t^2) (x_t - alpha_t m_k)]

with r_k the posterior weight of component k at level t. The network is told the log-SNR, log(alpha_t^2 / sigma_t^2), in
place of a time; everything is in float64, so gradients of guidance through it are known to many digits.
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
class Mixture:
    """`labels` are the prompts this world knows, one a component; a label may stand at several components.

    Samples are (d, 1, 1), d the length of a mean. Levels are even in log-SNR over [-log_snr_max, log_snr_max], then
    the sample itself.
    """

    means: list[list[float]] = field(default_factory=lambda: [[1.5, 0.0], [-0.75, 1.3], [-0.75, -1.3]])
    labels: list[str] = field(default_factory=lambda: ["east", "north", "south"])
    weights: list[float] = field(default_factory=lambda: [0.4, 0.3, 0.3])
    std: Annotated[float, Gt(0)] = 0.6
    log_snr_max: Annotated[float, Gt(0)] = 8.0

    @property
    def time_range(self) -> tuple[float, float]:
        """What the network may be told, noisiest first: log-SNRs."""
        return -self.log_snr_max, self.log_snr_max

    @property
    def known_prompts(self) -> list[str]:
        return list(dict.fromkeys(self.labels))

    def mistakes(self) -> list[str]:
        found = []
        lengths = {len(self.means), len(self.labels), len(self.weights)}
        if len(lengths) > 1:
            found.append("means, labels and weights must be lists of one length, an entry a component")
        if not self.means or len({len(mean) for mean in self.means}) != 1 or not self.means[0]:
            found.append("means: every mean must have the same number of coordinates, at least one")
        if any(weight <= 0 for weight in self.weights):
            found.append("weights: every weight must be greater than 0")
        return found

    def open(self) -> MixtureModel:
        return MixtureModel(self)


class MixtureModel(ToldLogSnr):
    """The opened world. Its numbers are `means` and `log_weights`, a row a component, and `log_std`.

    Where they are trained, the world without a prompt keeps the weights that it had: how large one prompt's share of it
    is, no prompt can say.
    """

    options: Mixture
    prediction = "sample"

    def __init__(self, options: Mixture, weights: Mapping[str, Tensor] | None = None) -> None:
        import torch

        self.options = options
        self.device, self.dtype = torch.device("cpu"), torch.float64
        numbers = {
            "means": torch.tensor(options.means, dtype=self.dtype),  # (K, d)
            "log_weights": torch.tensor(options.weights, dtype=self.dtype).log(),
            "log_std": torch.tensor(options.std, dtype=self.dtype).log(),
        }
        self.all_log_weights = numbers["log_weights"]
        self.numbers: Mapping[str, Tensor] = weights or numbers
        self.weights: Mapping[str, Tensor] = weights or {}
        self.shape = (numbers["means"].shape[1], 1, 1)

    def adapted(self, adapter: Adapter, seed: Seed) -> MixtureModel:
        return MixtureModel(self.options, trainable(MixtureModel(self.options).numbers, adapter))

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Log-weights of the components, -inf for those of another class: (rows, K)."""
        import torch

        from genbo.diffusion.process import Condition

        refuse_strangers(self.options.known_prompts, prompts)
        mask = torch.tensor([[label == prompt for label in self.options.labels] for prompt in prompts])
        return Condition({"log_weights": self.numbers["log_weights"].where(mask, -torch.inf)})

    def unconditional(self) -> Condition:
        from genbo.diffusion.process import Condition

        return Condition({"log_weights": self.all_log_weights[None]})

    def __call__(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        means, var_0 = self.numbers["means"], (2 * self.numbers["log_std"]).exp()
        x = x_t.flatten(1)[:, None]  # (B, 1, d)
        alpha_2, sigma_2 = time.sigmoid()[:, None, None], (-time).sigmoid()[:, None, None]
        alpha, variance = alpha_2.sqrt(), alpha_2 * var_0 + sigma_2
        away = x - alpha * means  # (B, K, d)
        log_r = condition.tensors["log_weights"] - (away**2).sum(-1) / (2 * variance[..., 0])
        x_0 = means + alpha * var_0 / variance * away
        return (log_r.softmax(-1)[..., None] * x_0).sum(1).reshape(x_t.shape)

    def decode(self, x: Tensor) -> Tensor:
        return x
