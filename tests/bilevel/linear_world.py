"""A denoiser that is linear in its parameters, trained by solving its normal equations: retraining without an error.

Data on a line, skewed and with two humps; a fixed minibatch stands for the expectation, so L, F and all their
derivatives are functions, and a finite difference with retraining knows nothing of the formulas that it checks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor
from torch.autograd.functional import hessian

from genbo.bilevel.tunables.noise_schedule import NoiseSchedule
from genbo.diffusion.denoising import DenoisingLoss, Minibatch
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.network import Network, log_snr_of_told
from genbo.diffusion.process import process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Batch

STEPS = 6
HATS = 5  # features in log-SNR
DECAY = 1e-3
SOLVED: dict[tuple[object, ...], Tensor] = {}


def quantiles(n: int) -> Tensor:
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


@cache
def data(n: int) -> Tensor:
    """Quantiles of 0.7 N(-0.6, 0.3^2) and 0.3 (0.4 + an exponential of mean 0.8), by bisection of the distribution."""
    p, low, high = quantiles(n), torch.full((n,), -6.0).double(), torch.full((n,), 20.0).double()
    for _ in range(80):
        x = (low + high) / 2
        share = 0.7 * torch.special.ndtr((x + 0.6) / 0.3) + 0.3 * (1 - (-(x - 0.4).clamp(min=0) / 0.8).exp())
        low, high = x.where(share < p, low), high.where(share < p, x)
    return (low + high) / 2


@cache
def minibatch() -> Minibatch:
    """Every one of 40 quantiles of the data at every level, each with a noise of its own."""
    generator = torch.Generator().manual_seed(0)
    x = data(40).repeat_interleave(STEPS)[:, None]
    at = (torch.arange(STEPS, dtype=torch.float64) + 1).repeat(40) / STEPS
    return Minibatch(x, torch.randn(x.shape, generator=generator, dtype=torch.float64), at)


class LinearDenoiser(torch.nn.Module):
    """theta . psi(x_t, time): (1, x, tanh, a bump) times hats in log-SNR, or an entry a step of the table."""

    def __init__(self, theta: Tensor, conditioning: str) -> None:
        super().__init__()
        self.theta, self.conditioning = theta, conditioning

    def forward(self, x_t: Tensor, told: Tensor) -> Tensor:
        x = x_t.flatten()
        of_x = torch.stack([torch.ones_like(x), x, (1.5 * x).tanh(), (-2 * (x - 0.5) ** 2).exp()], dim=1)
        if self.conditioning == "index":
            at = torch.nn.functional.one_hot(told.round().long(), STEPS).to(x)
        else:
            centres = torch.linspace(-8, 8, HATS, dtype=x.dtype)
            at = (-((log_snr_of_told(told)[:, None] - centres) ** 2) / 8).exp()
        psi = (of_x[:, :, None] * at[:, None, :]).flatten(1)
        return (psi @ self.theta).reshape(x_t.shape)


class Held(torch.nn.Module):
    """The linear denoiser as a module that can be trained."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = torch.nn.Parameter(theta[None].clone())  # a matrix, which weight decay reaches

    def forward(self, x_t: Tensor, told: Tensor) -> Tensor:
        return LinearDenoiser(self.theta[0], "log_snr")(x_t, told)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class LinearWorld:
    """A `genbo.bilevel.training.penalty.TwoLevel` whose q is the tunable's own phi."""

    conditioning: str = "log_snr"
    noise_levels: str = "schedule"
    tunable: NoiseSchedule = field(
        default_factory=lambda: NoiseSchedule(start={"start": 0.08, "end": 0.9, "tau": 1.3, "eps": 0.02})
    )

    @property
    def loss(self) -> DenoisingLoss:
        return DenoisingLoss("v_prediction", self.conditioning, self.noise_levels, train_steps=STEPS)  # type: ignore[arg-type]

    @property
    def coupled(self) -> bool:
        return self.loss.coupled

    @property
    def size(self) -> int:
        return 4 * (STEPS if self.conditioning == "index" else HATS)

    @property
    def draws(self) -> Minibatch:
        return minibatch()

    def lower(self, q: Tensor, theta: Tensor) -> Tensor:
        module = LinearDenoiser(theta, self.conditioning)
        return self.loss(module, self.tunable.schedule(q), self.draws) + DECAY / 2 * theta.square().sum()

    def upper(self, q: Tensor, theta: Tensor) -> Tensor:
        """The squared Wasserstein distance of the samples from the data, both by their quantiles."""
        module = LinearDenoiser(theta, self.conditioning)
        network = Network(
            module,
            (1,),
            self.tunable.schedule(q),
            prediction="v_prediction",
            conditioning=self.conditioning,  # type: ignore[arg-type]
            train_steps=STEPS,
            dtype=torch.float64,
        )
        process = self.tunable.embed(process_of(network, Ddim(steps=STEPS), Plain(weight=1.0)), q)
        noise = torch.special.ndtri(quantiles(128))[:, None]
        x = sample(process, Batch(("",) * 128, tuple(range(128))), start=noise).flatten()
        return (x.sort().values - data(128)).square().mean()

    def solve(self, q: Tensor, tilt: float) -> Tensor:
        """Normal equations; and with a tilt Newton's method from there. What was solved once is remembered."""
        key = (self.conditioning, self.noise_levels, tilt, *q.tolist())
        if key not in SOLVED:
            SOLVED[key] = self._solve(q.detach(), tilt)
        return SOLVED[key]

    def _solve(self, q: Tensor, tilt: float) -> Tensor:
        zero = torch.zeros(self.size, dtype=torch.float64)
        curvature = hessian(lambda at: self.lower(q, at), zero, vectorize=True)
        slope = torch.autograd.functional.jacobian(lambda at: self.lower(q, at), zero)
        theta = -torch.linalg.solve(curvature, slope)
        if not tilt:
            return theta
        for _ in range(20):
            by_upper = torch.autograd.functional.jacobian(lambda at: self.upper(q, at), theta)
            tilted = curvature + tilt * hessian(lambda at: self.upper(q, at), theta, vectorize=True)
            step = torch.linalg.solve(tilted, slope + curvature @ theta + tilt * by_upper)
            theta = theta - step
            if step.norm() <= 1e-12 * theta.norm():
                return theta
        raise AssertionError("the tilted lower level was not solved")
