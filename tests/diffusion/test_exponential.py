"""The skewed world: its denoiser against quadrature, its samples against the law they are meant to have."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.exponential import Exponential, hazard
from genbo.diffusion.process import process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.seed import Batch, Seed


def posterior_mean(x_t: float, log_snr: float, mean: float) -> float:
    """E[x_0 | x_t] by a fine sum over x_0 > 0, in logarithms."""
    alpha, sigma = (torch.tensor(s * log_snr, dtype=torch.float64).sigmoid().sqrt() for s in (1, -1))
    x = (torch.arange(400_000, dtype=torch.float64) + 0.5) * (60 * mean / 400_000)
    log_p = -x / mean - (x_t - alpha * x) ** 2 / (2 * sigma**2)
    return float((torch.softmax(log_p, 0) * x).sum())


@pytest.mark.parametrize("log_snr", [-8.0, -2.0, 0.0, 3.0])
def test_the_denoiser_is_the_posterior_mean(log_snr):
    model = Exponential(means={"a": [0.5], "b": [2.0]}).open()
    for prompt, mean in (("a", 0.5), ("b", 2.0)):
        for x_t in (-3.0, -0.5, 0.0, 0.8, 4.0):
            x = torch.full((1, 1, 1, 1), x_t, dtype=torch.float64)
            time = torch.full((1,), log_snr, dtype=torch.float64)
            found = model(x, time, model.encode([prompt])).item()
            assert found == pytest.approx(posterior_mean(x_t, log_snr, mean), rel=1e-4, abs=1e-9)


def test_far_tails_are_finite_with_their_gradients():
    k = torch.tensor([-1e4, -50.0, 0.0, 29.0, 31.0, 1e4], dtype=torch.float64, requires_grad=True)
    found = hazard(k)
    (grad,) = torch.autograd.grad(found.sum(), k)
    assert found.isfinite().all() and grad.isfinite().all()
    assert found[0].item() == pytest.approx(1e4, rel=1e-6) and found[-1].item() == pytest.approx(0, abs=1e-190)
    assert found[2].item() == pytest.approx(math.sqrt(2 / math.pi))


def drawn(n: int, prompt: str, weight: float = 1.0, steps: int = 40) -> Tensor:
    process = process_of(Exponential().open(), Dpmpp(steps=steps), Plain(weight=weight))
    return sample(process, Batch((prompt,) * n, tuple(Seed(0).child(i).value for i in range(n)))).flatten()


@pytest.mark.parametrize(("prompt", "mean"), [("short", 0.5), ("long", 1.0)])
def test_samples_are_exponential(prompt, mean):
    x = (drawn(4000, prompt) / mean).sort().values
    error = 1 / math.sqrt(4000)
    assert x.mean().item() == pytest.approx(1, abs=4 * error)
    assert x.square().mean().item() == pytest.approx(2, abs=4 * math.sqrt(20) * error)
    levels = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    assert ((1 - torch.exp(-x.clamp(min=0))) - levels).abs().max() < 1.63 * error + 0.01, "Kolmogorov and Smirnov"
    assert (x > -0.01).all()


def test_guidance_draws_towards_the_prompt():
    """Away from the world without a prompt, whose mean is larger than either prompt's."""
    assert drawn(500, "short", weight=2.0).mean() < drawn(500, "short").mean() < drawn(500, "short", weight=0.0).mean()


@pytest.mark.parametrize(
    ("means", "said"),
    [
        ({}, "same number of coordinates"),
        ({"a": [1.0], "b": [1.0, 2.0]}, "same number of coordinates"),
        ({"a": [0.0]}, "greater than 0"),
    ],
)
def test_mistakes_of_the_skewed_world(means, said):
    (mistake,) = Exponential(means=means).mistakes()
    assert mistake.startswith("means: ") and said in mistake


def test_strangers_are_named():
    with pytest.raises(ValueError, match="does not know 'middle'"):
        Exponential().open().encode(["middle"])
