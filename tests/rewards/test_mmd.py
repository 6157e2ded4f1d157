"""The Gaussian discrepancy against laws for which it is known on paper, and CMMD against its authors' formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from genbo.rewards import Refused
from genbo.rewards._kernels import gaussian, means_of_others, median_distance, values
from genbo.rewards.cmmd import BANDWIDTH, SCALE, Cmmd
from genbo.rewards.mmd import Gaussian, Mmd


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def between(a: float, b: float, variance: float, s: float) -> float:
    """E k(x, y) where x - y is normal with mean a - b."""
    return s / math.sqrt(s * s + variance) * math.exp(-((a - b) ** 2) / (2 * (s * s + variance)))


def test_it_is_right_on_average_between_normal_laws():
    """Samples N(1, 0.5^2), data N(0, 1); three of the one and four of the other are enough on average."""
    s = 0.8
    truth = between(0, 0, 0.5, s) + between(0, 0, 2, s) - 2 * between(1, 0, 1.25, s)
    k = gaussian(torch.tensor([s], dtype=torch.float64))
    estimate = torch.vmap(lambda x, y: values(x, y, means_of_others(y, k).mean(), k).mean())
    found = estimate(1 + 0.5 * normal(20000, 3, 1), normal(20000, 4, 1, seed=1))
    se = found.std().item() / len(found) ** 0.5
    assert abs(found.mean().item() - truth) < 4 * se
    assert (1 - between(0, 0, 2, s)) / 4 > 8 * se, "a biased estimate would not be told from this one"


def test_it_is_right_between_a_uniform_and_a_normal_law():
    """One law is not normal; the truth is an integral over a fine grid."""
    s = 0.5
    grid = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    uniform, bell = (grid.abs() <= 1).double(), torch.exp(-grid.square() / 2)
    difference = uniform / uniform.sum() - bell / bell.sum()
    k = torch.exp(-(grid[:, None] - grid).square() / (2 * s * s))
    truth = (difference @ k @ difference).item()
    x = torch.rand(1500, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1
    rule = Gaussian((s,))
    rows = rule.values(x, rule.keep(normal(1500, 1, seed=3)))
    assert truth > 0.03
    assert rows.mean().item() == pytest.approx(truth, abs=6 * rows.std().item() / 1500**0.5)


def test_equal_laws_are_at_no_distance_and_others_of_equal_moments_are():
    rule = Gaussian((0.5,))
    kept = rule.keep(normal(2000, 1))
    signs = normal(2000, 1, seed=1).sign()
    same, other = (rule.values(x, kept) for x in (normal(2000, 1, seed=2), signs))
    assert abs(same.mean()) < 4 * same.std() / 2000**0.5
    assert other.mean() > 20 * other.std() / 2000**0.5


def test_without_a_bandwidth_it_is_the_median_of_the_data():
    y = normal(60, 5)
    expected = torch.pdist(y).median()
    torch.testing.assert_close(Gaussian().keep(y)["bandwidths"], expected.reshape(1))
    torch.testing.assert_close(median_distance(normal(3000, 5)), expected, rtol=0.1, atol=0)


def test_data_without_a_median_distance_are_refused():
    with pytest.raises(Refused, match="give a bandwidth"):
        Gaussian().keep(torch.zeros(10, 3, dtype=torch.float64))


def test_several_bandwidths_are_averaged():
    x, y = normal(10, 3), normal(12, 3, seed=1) + 1
    one, two, both = (Gaussian(s) for s in ((0.5,), (2.0,), (0.5, 2.0)))
    apart = [rule.values(x, rule.keep(y)) for rule in (one, two)]
    torch.testing.assert_close(both.values(x, both.keep(y)), (apart[0] + apart[1]) / 2)


def test_gradients_are_those_of_a_finite_difference():
    rule = Gaussian()
    kept = rule.keep(normal(20, 4, seed=1) + 0.5)
    assert torch.autograd.gradcheck(lambda z: rule.values(z, kept), normal(10, 4).requires_grad_())


def test_samples_that_coincide_have_gradients():
    rule = Gaussian((1.0,))
    x = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(rule.values(x, rule.keep(normal(9, 3))).mean(), x)
    assert grad.isfinite().all() and grad.any()


def test_its_variance_falls_as_one_over_the_number_of_samples():
    rule, sizes = Gaussian((1.5,)), (16, 32, 64, 128)
    kept = rule.keep(normal(100, 3) + 1)
    generator = torch.Generator().manual_seed(5)
    variance = []
    for n in sizes:
        sets = torch.randn(500, n, 3, generator=generator, dtype=torch.float64)
        variance.append(torch.vmap(lambda x: rule.values(x, kept).mean())(sets).var().item())
    assert np.polyfit(np.log(sizes), np.log(variance), 1)[0] == pytest.approx(-1, abs=0.12)


def test_cmmd_is_its_authors_formula_without_the_diagonal():
    """Theirs: mean k_xx + mean k_yy - 2 mean k_xy over all pairs, times 1,000."""
    x, y = (torch.nn.functional.normalize(normal(n, 16, seed=n), dim=1) for n in (30, 40))
    k = [torch.exp(-torch.cdist(a, b).square() / (2 * BANDWIDTH**2)) for a, b in ((x, x), (y, y), (x, y))]
    theirs = SCALE * (k[0].mean() + k[1].mean() - 2 * k[2].mean())
    off = [(m.sum() - len(m)) / (len(m) * (len(m) - 1)) for m in k[:2]]
    lean = SCALE * ((1 - off[0]) / 30 + (1 - off[1]) / 40)
    rule = Gaussian((BANDWIDTH,), SCALE)
    torch.testing.assert_close(rule.values(x, rule.keep(y)).mean(), theirs - lean, rtol=1e-9, atol=1e-9)


def test_cmmd_on_a_clip_model(tiny_clip, tmp_path):
    options = Cmmd(str(tiny_clip))
    assert options.mistakes() == []
    data = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    reward = options.open().against(data, tmp_path)
    torch.testing.assert_close(reward.kept["features"].norm(dim=1), torch.ones(12, dtype=torch.float64))
    assert reward(data * 0.2).mean() < reward(data[:6]).mean()


def test_mistakes():
    assert Mmd("pixels", bandwidth=[]).mistakes() == [
        "bandwidth: the list is empty; give a number, or leave it out for the data's median"
    ]
    assert "greater than 0" in Mmd("pixels", bandwidth=-1.0).mistakes()[0]
    assert "no CLIP model" in Cmmd("pixels").mistakes()[0]
    with pytest.raises(Refused, match="greater than 0"):
        Mmd("pixels", bandwidth=[1.0, 0.0]).open()
