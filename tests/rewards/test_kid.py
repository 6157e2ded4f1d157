"""The kernel distance against torchmetrics and against moments that are known on paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from genbo.rewards._kernels import means_of_others, polynomial, values
from genbo.rewards.kid import Polynomial

CUBIC = Polynomial()


def distance(x: torch.Tensor, y: torch.Tensor, rule: Polynomial = CUBIC) -> torch.Tensor:
    return rule.values(x, rule.keep(y)).mean()


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    """Exponential: skewed, with moments k!."""
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return -torch.log1p(-uniform)


@pytest.mark.parametrize("rule", [Polynomial(), Polynomial(degree=2, gamma=0.3, coefficient=0.5)])
def test_it_is_what_torchmetrics_says(rule):
    from torchmetrics.image.kid import KernelInceptionDistance

    x, y = draws(40, 12), draws(40, 12, seed=1) * 1.2
    metric = KernelInceptionDistance(
        feature=torch.nn.Identity(),
        subsets=1,
        subset_size=40,
        degree=rule.degree,
        gamma=rule.gamma,
        coef=rule.coefficient,
    )
    metric.update(y, real=True)
    metric.update(x, real=False)
    assert distance(x, y, rule).item() == pytest.approx(metric.compute()[0].item(), rel=1e-9)


def test_a_linear_kernel_sees_the_means_alone():
    x, y = draws(300, 5), draws(200, 5, seed=1) + 0.4
    rule = Polynomial(degree=1, gamma=1.0)
    lean = x.var(0).sum() / 300 + y.var(0).sum() / 200
    assert distance(x, y, rule).item() == pytest.approx(
        ((x.mean(0) - y.mean(0)).square().sum() - lean).item(), rel=1e-9
    )


def cubic_between(x_moments: list[float], y_moments: list[float]) -> float:
    """E (x y + 1)^3 of independent numbers."""
    return sum(math.comb(3, k) * x_moments[k] * y_moments[k] for k in range(4))


def test_it_is_right_on_average_with_very_few_samples():
    """Exponential samples, Gaussian data, one feature: E (x y + 1)^3 is known by moments."""
    exponential, normal = [1.0, 1.0, 2.0, 6.0], [1.0, 0.0, 1.0, 0.0]
    truth = cubic_between(exponential, exponential) + cubic_between(normal, normal)
    truth -= 2 * cubic_between(exponential, normal)
    x = draws(20000, 3, 1)
    y = torch.randn(20000, 4, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    k = polynomial(3, 1.0, 1.0)
    found = torch.vmap(lambda a, b: values(a, b, means_of_others(b, k).mean(), k).mean())(x, y)
    se = found.std() / len(found) ** 0.5
    assert abs(found.mean() - truth) < 4 * se
    kept_diagonal = x.square().add(1).pow(3).mean().item() / 3  # what a biased estimate adds, at the least
    assert kept_diagonal > 8 * se


def test_its_variance_falls_as_one_over_the_number_of_samples():
    rule = Polynomial()
    kept = rule.keep(draws(100, 6, seed=9) * 0.7)
    sizes = (16, 32, 64, 128)
    generator = torch.Generator().manual_seed(3)
    variance = []
    for n in sizes:
        sets = torch.rand(500, n, 6, generator=generator, dtype=torch.float64) * 3
        variance.append(torch.vmap(lambda x: rule.values(x, kept).mean())(sets).var().item())
    slope = np.polyfit(np.log(sizes), np.log(variance), 1)[0]
    assert slope == pytest.approx(-1, abs=0.1)


@pytest.mark.parametrize(("scale", "low", "high"), [(3.0, 0.9, 1.1), (1.0, 1.0, 1.6)])
def test_the_rows_say_how_uncertain_the_distance_is(scale, low, high):
    """Between different laws the error bar is right; between equal ones (scale 1) it is too wide, and says so."""
    rule, generator = Polynomial(), torch.Generator().manual_seed(4)
    kept = rule.keep(torch.rand(1000, 6, generator=generator, dtype=torch.float64))
    sets = torch.rand(400, 50, 6, generator=generator, dtype=torch.float64) * scale
    rows = torch.vmap(lambda x: rule.values(x, kept), chunk_size=50)(sets)
    ratio = rows.std(1).square().mean().sqrt() / 50**0.5 / rows.mean(1).std()
    assert low < ratio < high


def test_the_rows_are_the_jackknife():
    rule = Polynomial()
    x, kept = draws(12, 3), rule.keep(draws(20, 3, seed=1))
    rows, n = rule.values(x, kept), 12
    left = torch.stack([rule.values(x[torch.arange(n) != i], kept).mean() for i in range(n)])
    torch.testing.assert_close(rows, n * rows.mean() - (n - 1) * left)


def test_gradients_are_those_of_a_finite_difference():
    rule = Polynomial()
    x, kept = draws(10, 4), rule.keep(draws(20, 4, seed=1))
    assert torch.autograd.gradcheck(lambda z: rule.values(z, kept), x.requires_grad_())


def test_large_sets_are_taken_in_blocks(monkeypatch):
    x, y = draws(33, 4), draws(29, 4, seed=1)
    whole = Polynomial().values(x, Polynomial().keep(y))
    monkeypatch.setattr("genbo.rewards._kernels.AT_ONCE", 100)
    torch.testing.assert_close(Polynomial().values(x, Polynomial().keep(y)), whole)


def test_two_samples_are_enough():
    assert distance(draws(2, 4), draws(2, 4, seed=1)).isfinite()
