"""Worlds with answers known on paper, written without any of genbo's own code."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def levels(log_snr_max: float, steps: int) -> tuple[Tensor, Tensor]:
    """alpha and sigma (T + 1,): even in log-SNR, then no noise."""
    log_snr = torch.linspace(-log_snr_max, log_snr_max, steps, dtype=torch.float64)
    alpha = torch.cat([(1 / (1 + (-log_snr).exp())).sqrt(), torch.ones(1, dtype=torch.float64)])
    return alpha, (1 - alpha**2).clamp(min=0).sqrt()


def gaussian_world_moments(
    weight: Tensor, mean: float, std: float, spread: float, log_snr_max: float
) -> tuple[Tensor, Tensor]:
    """Mean and variance of one coordinate of guided DDIM samples, for a weight a step (T,): a chain of linear maps."""
    alpha, sigma = levels(log_snr_max, len(weight))
    mu, variance = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for i, w in enumerate(weight):
        a, s, a_next, s_next = alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]
        gain_c = a * std**2 / (a**2 * std**2 + s**2)
        gain_u = a * spread**2 / (a**2 * spread**2 + s**2)
        slope = gain_u + w * (gain_c - gain_u)  # x_0 = slope x_t + offset
        offset = w * (mean - gain_c * a * mean)
        by = a_next * slope + s_next * (1 - a * slope) / s
        plus = a_next * offset - s_next * a * offset / s
        mu, variance = by * mu + plus, by**2 * variance
    return mu, variance


def mixture_world_samples(z: Tensor, weight: Tensor, world: dict, prompt: str, log_snr_max: float) -> Tensor:
    """Guided DDIM samples (N, d) from noise z (N, d), by the posterior mean of each component."""
    means = torch.tensor(world["means"], dtype=torch.float64)
    prior = torch.tensor(world["weights"], dtype=torch.float64)
    mine = torch.tensor([label == prompt for label in world["labels"]])
    alpha, sigma = levels(log_snr_max, len(weight))
    x = z
    for i, w in enumerate(weight):
        a, s = alpha[i], sigma[i]
        v = a**2 * world["std"] ** 2 + s**2
        density = torch.exp(-((x[:, None] - a * means) ** 2).sum(-1) / (2 * v)) * prior
        component = means + a * world["std"] ** 2 / v * (x[:, None] - a * means)

        def posterior_mean(r: Tensor, component: Tensor = component) -> Tensor:
            return (r[..., None] * component).sum(1) / r.sum(1, keepdim=True)

        uncond, cond = posterior_mean(density), posterior_mean(density * mine)
        x_0 = uncond + w * (cond - uncond)
        x = alpha[i + 1] * x_0 + sigma[i + 1] * (x - a * x_0) / s
    return x


def gauss_hermite_2d(nodes: int) -> tuple[Tensor, Tensor]:
    """Points (nodes^2, 2) and weights of the standard normal in the plane."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    p, w = torch.from_numpy(points), torch.from_numpy(weights / weights.sum())
    return torch.cartesian_prod(p, p), torch.outer(w, w).flatten()


def mixture_world_objective(weight: Tensor, world: dict, prompt: str, log_snr_max: float, target: Tensor) -> Tensor:
    """E_z of -|x - target|^2, by quadrature; differentiable in the weights (T,)."""
    z, w = gauss_hermite_2d(40)
    x = mixture_world_samples(z, weight, world, prompt, log_snr_max)
    return -(w * ((x - target) ** 2).sum(-1)).sum()
