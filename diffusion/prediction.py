"""What a network returns, and the x_0 and the noise that follow from it: x_t = alpha_t x_0 + sigma_t eps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """A raw network output and what it says of x_0 and eps: x_t = alpha_t x_0 + sigma_t eps."""

    kind: str
    x_t: Tensor
    alpha_t: Tensor
    sigma_t: Tensor

    def x_0(self, output: Tensor) -> Tensor:
        """The clean samples (B, *shape) that a raw output predicts."""
        import torch

        x, a, s = self.x_t, self.alpha_t, self.sigma_t
        match self.kind:
            case "epsilon":
                return torch.addcmul(x, s, output, value=-1) / a
            case "v_prediction":
                return (a * x - s * output) / (a**2 + s**2)
            case "flow_prediction":
                return (x - s * output) / (a + s)
            case "sample":
                return output
        raise ValueError(f"no prediction is called {self.kind!r}")

    def eps(self, output: Tensor) -> Tensor:
        """The noise (B, *shape) that a raw output predicts."""
        if self.kind == "epsilon":
            return output
        return (self.x_t - self.alpha_t * self.x_0(output)) / self.sigma_t

    def output(self, x_0: Tensor) -> Tensor:
        """The raw output that says x_0; the inverse of `x_0`."""
        x, a, s = self.x_t, self.alpha_t, self.sigma_t
        match self.kind:
            case "epsilon":
                return (x - a * x_0) / s
            case "v_prediction":
                return (a * x - (a**2 + s**2) * x_0) / s
            case "flow_prediction":
                return (x - (a + s) * x_0) / s
            case "sample":
                return x_0
        raise ValueError(f"no prediction is called {self.kind!r}")
