"""Tilted laws by quadrature on a line, and worlds whose noise is turned into samples by a formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from genbo.bilevel.regularization.bank import Bank, bank_of
from genbo.bilevel.regularization.proposal import Shifts, pilot
from genbo.diffusion.models.exponential import Exponential
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.models.mixture import Mixture
from genbo.diffusion.seed import Seed
from genbo.rewards.linear import Linear
from genbo.rewards.quadratic import Quadratic


@dataclass(frozen=True)
class Line:
    """A density on a grid of points x with masses, and both rewards there; nothing here is genbo's."""

    mass: Tensor
    r1: Tensor
    r2: Tensor

    def law(self, lam: float, gamma: float | None = None) -> Tensor:
        tilt = self.r2 / lam if gamma is None else (self.r2 + self.r1 / gamma) / lam
        p = self.mass * torch.exp(tilt - tilt.max())
        return p / p.sum()

    def mean(self, p: Tensor, r: Tensor) -> float:
        return float((p * r).sum())

    def kl(self, p: Tensor, q: Tensor) -> float:
        """KL(p || q)."""
        some = p > 0
        return float((p[some] * (p[some] / q[some]).log()).sum())

    def covariance(self, p: Tensor, *rewards: Tensor) -> float:
        """The central moment of two or three rewards."""
        away = [r - self.mean(p, r) for r in rewards]
        product = away[0]
        for other in away[1:]:
            product = product * other
        return self.mean(p, product)

    def grad(self, lam: float, h: float = 1e-4) -> float:
        """dF / dlog lambda by a fine difference of F itself."""
        up, down = (self.mean(self.law(lam * (1 + s)), self.r1) for s in (h, -h))
        step = float(torch.log(torch.tensor((1 + h) / (1 - h), dtype=torch.float64)))
        return (up - down) / step


@dataclass(frozen=True)
class World:
    """The same world twice: as genbo's model and rewards, and by quadrature."""

    model: Any
    prompt: str
    r1: Any
    r2: Any
    line: Line


def _line(density: Tensor, x: Tensor, r1: Any, r2: Any) -> Line:
    return Line(density / density.sum(), *(r.open()(x.reshape(-1, 1, 1, 1), []) for r in (r1, r2)))


def _world(
    model: Any, prompt: str, r1: Any, r2: Any, density: Callable[[Tensor], Tensor], low: float, high: float
) -> World:
    """By the midpoint rule, which does not feel an edge at 0."""
    n = 100_000
    x = low + (torch.arange(n, dtype=torch.float64) + 0.5) * (high - low) / n
    return World(model, prompt, r1, r2, _line(density(x), x, r1, r2))


def _normal(mean: float, std: float) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.exp(-(((x - mean) / std) ** 2) / 2)


def _three(x: Tensor) -> Tensor:
    parts = ((-1.0, 0.3), (0.5, 0.5), (2.0, 0.2))
    return sum(weight * _normal(mean, 0.4)(x) for mean, weight in parts)  # type: ignore[return-value]


GAUSSIAN = Gaussian(means={"a": [0.0]}, std=1.0)
SKEWED = Exponential(means={"a": [0.5]})
MIXED = Mixture(means=[[-1.0], [0.5], [2.0]], labels=["a"] * 3, weights=[0.3, 0.5, 0.2], std=0.4)
WORLDS = {
    "linear": _world(GAUSSIAN, "a", Linear(0.7), Linear(1.0), _normal(0, 1), -12.0, 12.0),
    "gaussian": _world(GAUSSIAN, "a", Quadratic(1.5, 0.5), Linear(1.0), _normal(0, 1), -12.0, 12.0),
    "quadratic": _world(GAUSSIAN, "a", Quadratic(-0.5, 0.5), Quadratic(1.0, 0.3), _normal(0, 1), -12.0, 12.0),
    "skewed": _world(SKEWED, "a", Quadratic(2.0, 0.5), Linear(1.0), lambda x: torch.exp(-2 * x), 0.0, 150.0),
    "mixture": _world(MIXED, "a", Quadratic(0.8, 0.5), Linear(1.0), _three, -12.0, 12.0),
}


# -- samples -----------------------------------------------------------------------------------------------------------

Rewards = Callable[[Tensor], tuple[Tensor, Tensor]]  # noise (C, n, d) -> r1, r2 (C, n)


class Direct:
    """A source of samples whose sampler is a formula of the noise."""

    def __init__(
        self, rewards: Rewards, d: int, prompts: int = 1, seed: int = 0, *, grad: bool = True, shift: bool = True
    ) -> None:
        self.rewards, self.d, self.seed, self.grad, self.shiftable = rewards, d, Seed(seed), grad, shift
        self.prompts = [f"prompt {c}" for c in range(prompts)]
        self.drawn: list[tuple[int, int, bool]] = []

    def noise(self, samples: int, *role: str | int) -> Tensor:
        generator = self.seed.child(*role).generator()
        return torch.randn(len(self.prompts), samples, self.d, generator=generator, dtype=torch.float64)

    def draw(self, round: int, samples: int, shifts: Shifts | None) -> Bank:
        self.drawn.append((round, samples, shifts is not None))
        z = self.noise(samples, "draw", round)
        if shifts is None:
            return bank_of(*self.rewards(z))
        z = shifts.place(z)
        return bank_of(*self.rewards(z), shifts.log_ratio(z))

    def shifts(self, round: int, samples: int, lam: float) -> Shifts:
        return pilot(self.field, self.noise(samples, "pilot", round), lam)

    def field(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.grad:
            return self.rewards(z)[1], None
        z = z.clone().requires_grad_()
        r2 = self.rewards(z)[1]
        return r2.detach(), torch.autograd.grad(r2.sum(), z)[0]


def gaussian(c: float, d: int) -> Rewards:
    """x = z, r2 = x_1, r1 = -|x - c e_1|^2 / 2: lambda* = 1 / c, Cov = c - 1 / lambda, KL = 1 / (2 lambda^2)."""
    target = torch.zeros(d, dtype=torch.float64)
    target[0] = c
    return lambda z: (-(z - target).square().sum(-1) / 2, z[..., 0])


# -- worlds of noise whose best lambda is known ------------------------------------------------------------------------

TOP = 4.0  # where the bounded world ends


def _quadratic(z: Tensor) -> tuple[Tensor, Tensor]:
    """r2 = -(x - 2)^2 / 2: the tilt is N(2 / (1 + lambda), lambda / (1 + lambda)), and lambda* = 1."""
    x = z[..., 0]
    return -((x - 0.75) ** 2) / 2, -((x - 2) ** 2) / 2


def _exponential(z: Tensor) -> tuple[Tensor, Tensor]:
    """Of mean 1; the tilt has the mean 1 / (1 - 1 / lambda), which is best at 2.5 / 2: lambda* = 5."""
    x = -torch.special.log_ndtr(-z[..., 0])
    return -((x - 2.5) ** 2), x


def _mixture(z: Tensor) -> tuple[Tensor, Tensor]:
    """Three normal laws, as in `WORLDS`, by inverting their distribution function."""
    x = torch.linspace(-5.0, 6.0, 20_001, dtype=torch.float64)
    parts = ((-1.0, 0.3), (0.5, 0.5), (2.0, 0.2))
    cdf = sum(weight * torch.special.ndtr((x - mean) / 0.4) for mean, weight in parts)
    u = torch.special.ndtr(z[..., 0])
    at = torch.searchsorted(cdf, u.detach().contiguous()).clamp(1, len(x) - 1)
    share = (u - cdf[at - 1]) / (cdf[at] - cdf[at - 1])
    drawn = x[at - 1] + share * (x[1] - x[0])
    return -((drawn - 0.8) ** 2) / 2, drawn


def _bounded(z: Tensor) -> tuple[Tensor, Tensor]:
    """Exponential of mean 1, cut off at 4."""
    x = -torch.log1p(-torch.special.ndtr(z[..., 0]) * (1 - math.exp(-TOP)))
    return -((x - 1.6) ** 2), x


NOISE_WORLDS: dict[str, tuple[Rewards, tuple[float, float]]] = {
    "gaussian": (gaussian(1.5, 1), (0.1, 20.0)),
    "quadratic": (_quadratic, (0.1, 20.0)),
    "exponential": (_exponential, (1.5, 100.0)),
    "mixture": (_mixture, (0.3, 30.0)),
    "bounded": (_bounded, (0.2, 60.0)),
}


@cache
def best_of(name: str) -> float:
    """lambda* by quadrature over the noise: where Cov(r1, r2) under the tilt is 0."""
    rewards, (low, high) = NOISE_WORLDS[name]
    z = torch.linspace(-8, 8, 40_001, dtype=torch.float64)
    r1, r2 = rewards(z[:, None])

    def covariance(lam: float) -> float:
        p = (r2 / lam - z**2 / 2).softmax(0)
        return float((p * (r1 - (p * r1).sum()) * (r2 - (p * r2).sum())).sum())

    for _ in range(50):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if covariance(middle) < 0 else (low, middle)
    return math.sqrt(low * high)
