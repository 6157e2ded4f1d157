"""The Fréchet distance against what is known of it on paper, against scipy and against torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genbo.rewards.fid import Frechet, factor, frechet

SHAPES = [(20, 50, 64), (200, 300, 16), (30, 20, 64), (200, 20, 64), (40, 400, 40)]  # samples, data, features


def sets(samples: int, data: int, features: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Skewed and correlated, of different means."""
    generator = torch.Generator().manual_seed(samples + data)
    mix = torch.randn(features, features, generator=generator, dtype=torch.float64) / features**0.5
    x = torch.rand(samples, features, generator=generator, dtype=torch.float64).square() * 3
    y = torch.randn(data, features, generator=generator, dtype=torch.float64) @ mix + 0.2
    return x, y


def distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return Frechet().values(x, Frechet().keep(y)).mean()


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_formula_with_a_matrix_root(shape):
    linalg = pytest.importorskip("scipy.linalg")
    x, y = sets(*shape)
    a, b = np.cov(x.numpy().T), np.cov(y.numpy().T)
    shift = (x.mean(0) - y.mean(0)).square().sum().item()
    expected = shift + np.trace(a + b) - 2 * np.trace(linalg.sqrtm(a @ b)).real
    assert distance(x, y).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_what_torchmetrics_says(shape):
    from torchmetrics.image.fid import FrechetInceptionDistance

    x, y = sets(*shape)
    metric = FrechetInceptionDistance(feature=torch.nn.Identity(), input_img_size=(shape[2],), normalize=True)
    metric.update(y, real=True)
    metric.update(x, real=False)
    assert distance(x, y).item() == pytest.approx(metric.compute().item(), rel=1e-6)


def test_gaussians_whose_distance_is_known():
    """Diagonal covariances: sum (s - s')^2 + (m - m')^2, by samples that have exactly these moments."""
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    unbiased = (len(corners) / (len(corners) - 1)) ** 0.5
    s, t = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 0.5, 1.0])
    found = distance(corners * s / unbiased + 1, corners * t / unbiased - 1)
    assert found.item() == pytest.approx((s - t).square().sum().item() + 3 * 4, rel=1e-9)


def test_a_shift_costs_its_square_and_nothing_else():
    x, _ = sets(50, 40, 6)
    assert distance(x + 0.3, x).item() == pytest.approx(6 * 0.09, rel=1e-9)
    assert distance(x, x).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_is_that_of_a_finite_difference(shape):
    x, y = sets(*shape)
    kept = Frechet().keep(y)
    live = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(Frechet().values(live, kept).mean(), live)
    step = 1e-5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = [frechet(x + sign * step, kept["mean"], kept["factor"])[0] for sign in (1, -1)]
    assert (grad * step).sum().item() == pytest.approx((ends[0] - ends[1]).item() / 2, rel=1e-5)


def test_samples_that_are_all_the_same_have_a_distance_and_a_gradient():
    _, y = sets(20, 300, 8)
    x = torch.ones(5, 8, dtype=torch.float64, requires_grad=True)
    found = Frechet().values(x, Frechet().keep(y))
    expected = (1 - y.mean(0)).square().sum() + y.var(0).sum()
    torch.testing.assert_close(found, expected.expand(5).detach(), check_dtype=False)
    (grad,) = torch.autograd.grad(found.mean(), x)
    torch.testing.assert_close(grad, (2 / 5 * (1 - y.mean(0))).expand(5, 8))


@pytest.mark.parametrize("data", [10, 100])
def test_the_factor_is_one_of_the_covariance(data):
    _, y = sets(4, data, 24)
    b = factor(y - y.mean(0))
    assert len(b) == min(data, 24)
    torch.testing.assert_close(b.T @ b, torch.cov(y.T))


def test_it_leans_upwards_by_one_over_the_number_of_samples():
    generator = torch.Generator().manual_seed(1)
    mean, b = torch.zeros(6, dtype=torch.float64), torch.eye(6, dtype=torch.float64)
    sizes = (32, 64, 128, 256)
    lean = []
    for n in sizes:
        draws = torch.randn(400, n, 6, generator=generator, dtype=torch.float64)
        lean.append(torch.stack([frechet(x, mean, b)[0] for x in draws]).mean().item())
    slope = np.polyfit(np.log(sizes), np.log(lean), 1)[0]
    assert slope == pytest.approx(-1, abs=0.08)
    # by hand: E|m|^2 = d/N, and E tr (S^(1/2) - I)^2 is E tr (S - I)^2 / 4 = d (d + 1) / 4 (N - 1) to first order
    assert lean[-1] == pytest.approx(6 / 256 + 6 * 7 / 4 / 255, rel=0.05)


def test_the_rows_say_how_uncertain_the_distance_is():
    """Their spread over the root of N is the spread of the distance over sets of samples, here skewed ones."""
    generator = torch.Generator().manual_seed(2)
    kept = Frechet().keep(torch.randn(500, 4, generator=generator, dtype=torch.float64))
    draws = torch.rand(300, 200, 4, generator=generator, dtype=torch.float64).square() * 2
    rows = torch.stack([Frechet().values(x, kept) for x in draws])
    said = rows.std(1).mean().item() / 200**0.5
    assert said == pytest.approx(rows.mean(1).std().item(), rel=0.12)


def test_a_row_is_what_leaving_the_sample_out_does():
    x, y = sets(200, 300, 16)
    kept = Frechet().keep(y)
    rows = Frechet().values(x, kept)
    left = torch.stack([Frechet().values(x[torch.arange(200) != i], kept).mean() for i in range(0, 200, 10)])
    assert np.corrcoef(rows[::10], -left)[0, 1] > 0.99


# -- data that do not fill their space -------------------------------------------------------------------------------


def with_dead(samples: int, data: int, dead: int, seen: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Sets of 24 features of which the first `dead` are one number in all the data, as borders of digits are.

    In the samples they are another number, or, where `seen`, they vary.
    """
    x, y = sets(samples, data, 24)
    y[:, :dead] = 0.25
    if not seen:
        x[:, :dead] = 0.75
    return x, y


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("shape", [(40, 400), (200, 30), (12, 15), (12, 400)])
def test_dead_pixels_leave_the_formula_as_it_is(shape, seen):
    """Both covariances are singular: what is left is the distance of the living part, and what the dead ones add.

    A feature that is one number in the data adds its own variance and its shift; checked against scipy's root of the
    living block, which is not taken of a singular matrix where there are samples enough.
    """
    linalg = pytest.importorskip("scipy.linalg")
    x, y = with_dead(*shape, dead=9, seen=seen)
    alive_x, alive_y = x[:, 9:].numpy(), y[:, 9:].numpy()
    a, b = np.cov(alive_x.T), np.cov(alive_y.T)
    cross = np.sqrt(np.clip(linalg.eigvals(a @ b).real, 0, None)).sum()
    expected = ((alive_x.mean(0) - alive_y.mean(0)) ** 2).sum() + np.trace(a + b) - 2 * cross
    expected += (x[:, :9].mean(0) - 0.25).square().sum().item() + x[:, :9].var(0).sum().item()
    assert distance(x, y).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seen", [False, True])
def test_dead_pixels_have_a_gradient_too(seen):
    """Where both sets are dead it is that of the shift alone; elsewhere a finite difference tells it."""
    x, y = with_dead(40, 400, dead=9, seen=seen)
    kept = Frechet().keep(y)
    live = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(Frechet().values(live, kept).mean(), live)
    assert grad.isfinite().all()
    if not seen:
        torch.testing.assert_close(grad[:, :9], torch.full((40, 9), 2 / 40 * 0.5, dtype=torch.float64))
    step = 1e-5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step[:, :9] *= seen
    ends = [frechet(x + sign * step, kept["mean"], kept["factor"])[0] for sign in (1, -1)]
    assert (grad * step).sum().item() == pytest.approx((ends[0] - ends[1]).item() / 2, rel=1e-5)


def test_features_of_which_only_one_lives():
    """Standard deviations 1 and 3 along one axis, means 2 apart: (3 - 1)^2 + 2^2."""
    line = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)[:, None] * torch.eye(1, 7, dtype=torch.float64)
    assert distance(3 * line + 2 * torch.eye(1, 7), line).item() == pytest.approx(8, rel=1e-9)


def test_channels_that_repeat_each_other_count_once_each():
    """Grey images as colour ones: every eigenvalue of the data but a third is 0 up to roundings of either sign."""
    x, y = sets(60, 500, 8)
    assert distance(x.repeat(1, 3), y.repeat(1, 3)).item() == pytest.approx(3 * distance(x, y).item(), rel=1e-6)
    live = x.repeat(1, 3).requires_grad_()
    (grad,) = torch.autograd.grad(Frechet().values(live, Frechet().keep(y.repeat(1, 3))).mean(), live)
    alone = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(Frechet().values(alone, Frechet().keep(y)).mean(), alone)
    torch.testing.assert_close(grad, wanted.repeat(1, 3), rtol=1e-6, atol=1e-10)
