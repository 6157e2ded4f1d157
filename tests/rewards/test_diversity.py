"""Diversity against torch's own pairwise distances, and against laws whose mean distance is known."""

from __future__ import annotations

import math

import pytest
import torch

from genbo.rewards import Refused
from genbo.rewards.diversity import Diversity, Spread


def law(n: int, seed: int, dimensions: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dimensions, generator=generator, dtype=torch.float64)


def score(x: torch.Tensor, metric: str = "euclidean") -> torch.Tensor:
    return -Spread(metric).values(x, {})


def test_is_the_mean_of_the_pairwise_distances():
    x = law(17, 0)
    assert score(x).mean().item() == pytest.approx(torch.nn.functional.pdist(x).mean().item())
    pairs = [(i, j) for i in range(17) for j in range(i)]
    cosines = torch.stack([torch.cosine_similarity(x[i], x[j], dim=0) for i, j in pairs])
    assert score(x, "cosine").mean().item() == pytest.approx(1 - cosines.mean().item())


def test_two_gaussians_are_known_on_paper():
    """In three dimensions the distance of two standard normals has mean 4 / sqrt(pi); at any number of samples."""
    for n in (5, 200):
        found = torch.stack([score(law(n, seed)).mean() for seed in range(200 if n == 5 else 20)])
        assert found.mean().item() == pytest.approx(
            4 / math.sqrt(math.pi), abs=4 * found.std().item() / len(found) ** 0.5
        )


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_shares_are_those_of_the_jackknife(metric):
    x = law(11, 1)
    rows, whole = score(x, metric), score(x, metric).mean()
    left = torch.stack([score(torch.cat([x[:i], x[i + 1 :]]), metric).mean() for i in range(11)])
    torch.testing.assert_close(rows, 11 * whole - 10 * left, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_gradient_is_that_of_the_mean(metric):
    x = law(6, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: score(x, metric).mean(), x)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_copies_have_none_and_a_finite_gradient(metric):
    x = law(1, 3).expand(5, -1).clone().requires_grad_()
    found = score(x, metric)
    assert found.abs().max() < 1e-12
    (grad,) = torch.autograd.grad(found.sum(), x)
    assert grad.isfinite().all()


def test_as_a_reward_of_sets_it_needs_no_data():
    reward = Diversity("pixels").open()
    assert reward.of_sets and reward.differentiable and not Diversity.needs_data
    images = torch.rand(7, 1, 3, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    found = reward(images)
    assert found.shape == (7,) and found.dtype == torch.float64
    assert found.mean().item() == pytest.approx(torch.nn.functional.pdist(images.detach().flatten(1)).mean().item())
    (grad,) = torch.autograd.grad(found.sum(), images)
    features = reward.features(images.detach())
    torch.testing.assert_close(grad.flatten(1).double(), reward.pull(features), atol=1e-5, rtol=1e-5)
    assert not hasattr(reward, "against")


def test_what_cannot_be_scored():
    reward = Diversity("pixels").open()
    with pytest.raises(Refused, match="the diversity of a set needs at least 2 samples, not 1"):
        reward(torch.rand(1, 1, 2, 2))
    assert reward(torch.full((3, 1, 2, 2), float("nan"))).isnan().all()
    assert Diversity("nowhere").mistakes() != []
