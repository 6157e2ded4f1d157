"""Shifted noise: exact densities, and how much farther it reaches than plain samples do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from genbo.bilevel.lower.reweight import Reweight
from genbo.bilevel.regularization.bank import bank_of
from genbo.bilevel.regularization.proposal import SHARES, Shifts, pilot, unshifted
from genbo.bilevel.regularization.tilted import Law
from tests.bilevel.tilted import Direct, Rewards, gaussian

DIM, BUDGET = 48, 2048


def at(source: Direct, lam: float, how: str) -> Law:
    """The law at lambda from the same number of sampler calls: all plain, or a quarter of them for the pilot."""
    if how == "plain":
        return Reweight().solve(source.draw(1, BUDGET, None), lam)
    shifts = source.shifts(1, BUDGET // 4, lam)
    return Reweight().solve(source.draw(1, BUDGET * 3 // 4, shifts), lam)


def errors(
    rewards: Rewards, exact: float, scale: float, lam: float, how: str, seeds: int = 8
) -> tuple[float, list[Law]]:
    """Root mean square error of the covariance, in units of sd(r1) sd(r2), and the laws."""
    laws = [at(Direct(rewards, DIM, seed=s, grad=how == "stein"), lam, how) for s in range(seeds)]
    square = sum((law.covariance.mean - exact) ** 2 for law in laws) / seeds
    return math.sqrt(square) / scale, laws


# -- densities ---------------------------------------------------------------------------------------------------------


def shifts_of(*means: list[float]) -> Shifts:
    return Shifts(torch.tensor([means], dtype=torch.float64), torch.tensor(SHARES, dtype=torch.float64))


def test_the_ratio_of_densities_is_the_ratio_of_densities():
    shifts = shifts_of([0.0, 0.0], [1.0, -0.5], [2.0, 0.3])
    z = torch.randn(1, 7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def normal(mean: Tensor) -> Tensor:
        return torch.exp(-(z - mean).square().sum(-1) / 2)

    q = sum(share * normal(mean) for share, mean in zip(SHARES, shifts.means[0], strict=True))
    torch.testing.assert_close(shifts.log_ratio(z), (normal(torch.zeros(2, dtype=torch.float64)) / q).log())


def test_no_sample_counts_for_more_than_the_defence_allows():
    z = 10 * torch.randn(1, 5000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert shifts_of([0.0, 0.0], [3.0, 0.0], [6.0, 0.0]).log_ratio(z).max() <= math.log(1 / SHARES[0]) + 1e-12


def test_without_shifts_nothing_is_shifted():
    z = torch.randn(3, 5, 4, dtype=torch.float64)
    assert torch.equal(unshifted(3, 4).place(z), z)
    assert (unshifted(3, 4).log_ratio(z) == 0).all()


def test_each_component_gets_its_share_of_the_samples():
    placed = shifts_of([0.0], [100.0], [200.0]).place(torch.zeros(1, 10, 1, dtype=torch.float64))
    assert placed.flatten().tolist() == [0.0] * 2 + [100.0] * 2 + [200.0] * 6
    assert shifts_of([0.0], [1.0], [2.0]).place(torch.zeros(1, 1, 1, dtype=torch.float64)).shape == (1, 1, 1)


@pytest.mark.parametrize("samples", [50, 5000])
def test_reweighted_means_of_shifted_samples_are_those_of_the_plain_law(samples):
    """Under the ratio alone, moments are those of N(0, 1), for a fifty-sample and a long draw alike."""
    shifts = shifts_of([0.0], [0.8], [1.6])
    found = []
    for seed in range(200):
        z = shifts.place(torch.randn(1, samples, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
        found.append(
            [(shifts.log_ratio(z).exp() * m).mean().item() for m in (1 + 0 * z[..., 0], z[..., 0], z[..., 0] ** 2)]
        )
    mean, error = torch.tensor(found).mean(0), torch.tensor(found).std(0) / math.sqrt(200)
    assert ((mean - torch.tensor([1.0, 0.0, 1.0])).abs() < 4 * error).all()


# -- the pilot ---------------------------------------------------------------------------------------------------------


def test_steins_shift_of_a_linear_reward_is_exact():
    """grad r2 = e_1 everywhere: the mean of the tilted noise is e_1 / lambda, whatever the samples."""
    source = Direct(gaussian(1.5, DIM), DIM)
    shifts = source.shifts(0, 30, 0.25)
    expected = torch.zeros(DIM, dtype=torch.float64)
    expected[0] = 4.0
    torch.testing.assert_close(shifts.means[0, -1], expected)
    assert 1 < shifts.means[0, 1, 0] < 4


def test_without_gradients_the_shift_is_not_the_noise_of_many_dimensions():
    """Of 400 dimensions one is shifted: the plain weighted mean has a square of 1.4^2 and of several units of noise."""
    d, lam = 400, 0.7
    shifts = Direct(gaussian(1.5, d), d, grad=False).shifts(0, 1500, lam)
    found = shifts.means[0, -1]
    assert found[0] > 0.3
    assert found[1:].square().sum() < 0.6 * d * 2.5 / 500


def test_prompts_are_shifted_each_their_own_way():
    sign = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)

    def rewards(z: Tensor) -> tuple[Tensor, Tensor]:
        return -((z[..., 0] - 1) ** 2), sign * z[..., 0]

    shifts = Direct(rewards, 3, prompts=2).shifts(0, 60, 0.5)
    torch.testing.assert_close(shifts.means[0, -1], -shifts.means[1, -1])
    assert shifts.means[0, -1, 0] == pytest.approx(2.0)


def test_the_pilot_is_told_only_by_its_own_noise():
    source = Direct(gaussian(1.5, 4), 4)
    z = source.noise(60, "p")
    first, second = pilot(source.field, z, 0.5), pilot(source.field, z, 0.5)
    assert torch.equal(first.means, second.means)


# -- how far it reaches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kl", "gain"), [(1.0, 2.0), (2.0, 5.0), (4.0, 8.0), (8.0, 8.0)])
def test_at_these_kls_shifted_samples_err_less_than_plain_ones(kl, gain):
    """N(0, I) and a quadratic r1; the error is that of the same number of sampler calls."""
    lam = 1 / math.sqrt(2 * kl)
    exact, scale = 1.5 - 1 / lam, math.sqrt((1 / lam - 1.5) ** 2 + DIM / 2)
    plain, _ = errors(gaussian(1.5, DIM), exact, scale, lam, "plain")
    stein, laws = errors(gaussian(1.5, DIM), exact, scale, lam, "stein")
    assert stein < plain / gain and stein < 0.06
    assert all(law.fit.verdict == "reliable" for law in laws)
    held = sum(abs(law.covariance.mean - exact) <= 1.96 * law.covariance.se for law in laws)
    assert held >= 6
    assert sum(law.kl.mean for law in laws) / len(laws) == pytest.approx(kl, rel=0.03)


@pytest.mark.parametrize("kl", [1.0, 2.0])
def test_without_gradients_it_still_reaches_farther(kl):
    lam = 1 / math.sqrt(2 * kl)
    exact = 1.5 - 1 / lam
    plain, _ = errors(gaussian(1.5, DIM), exact, 1.0, lam, "plain")
    mean, laws = errors(gaussian(1.5, DIM), exact, 1.0, lam, "mean")
    assert mean < plain / 1.7
    assert sum(law.fit.verdict != "refuse" for law in laws) >= 6


def bent(z: Tensor) -> tuple[Tensor, Tensor]:
    """r2 = a sum of tanh, r1 falling beyond it: the tilt is no shift, and not Gaussian."""
    r2 = torch.tanh(z[..., :8]).sum(-1)
    return -((r2 - 3) ** 2) / 2, r2


@pytest.mark.parametrize(("lam", "kl"), [(1.0, 1.4), (0.5, 4.1)])
def test_where_the_tilt_is_no_shift_it_reaches_as_far(lam, kl):
    """Against a quadrature of one coordinate, convolved eight times."""
    exact, exact_kl = _bent_exactly(lam)
    assert exact_kl == pytest.approx(kl, rel=0.1)
    plain, _ = errors(bent, exact, 1.0, lam, "plain")
    stein, laws = errors(bent, exact, 1.0, lam, "stein")
    assert stein < plain / 1.5
    assert all(law.fit.verdict != "refuse" for law in laws)


def _bent_exactly(lam: float) -> tuple[float, float]:
    """Cov(-(s - 3)^2 / 2, s) and KL: by the cumulants of s, a sum of eight independent equal terms under the tilt."""
    z = torch.linspace(-10, 10, 200_001, dtype=torch.float64)
    p0 = torch.exp(-(z**2) / 2)
    p0 = p0 / p0.sum()
    t = torch.tanh(z)
    p = p0 * torch.exp(t / lam)
    total = p.sum()
    p = p / total
    mean = (p * t).sum()
    k2, k3 = (8 * (p * (t - mean) ** n).sum() for n in (2, 3))
    kl = 8 * (mean / lam - total.log())
    return float(-(k3 + 2 * k2 * (8 * mean - 3)) / 2), float(kl)


def test_two_opposite_modes_are_not_seen_and_the_verdict_says_so():
    """r2 = |z_1|: any one shift leaves half of the law out."""

    def opposite(z: Tensor) -> tuple[Tensor, Tensor]:
        return -((z[..., 0] - 2) ** 2) / 2, z[..., 0].abs()

    for how in ("stein", "mean"):
        laws = [at(Direct(opposite, DIM, seed=s, grad=how == "stein"), 0.25, how) for s in range(8)]
        assert sum(law.fit.verdict == "refuse" for law in laws) >= 7
        assert sum(law.fit.khat > 0.7 for law in laws) >= 5


def test_a_shifted_bank_speaks_of_large_lambdas_too():
    source = Direct(gaussian(1.5, 4), 4)
    bank = source.draw(0, 4000, source.shifts(0, 300, 0.4))
    for lam in (0.4, 0.8, 3.0, 50.0):
        law = Reweight().solve(bank, lam)
        assert law.fit.verdict == "reliable"
        assert abs(law.covariance.mean - (1.5 - 1 / lam)) < 4 * law.covariance.se
        assert abs(law.kl.mean - 1 / (2 * lam**2)) < 4 * law.kl.se + 1e-6


def test_samples_in_any_precision_make_a_bank():
    bank = bank_of(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.1], dtype=torch.bfloat16), torch.zeros(1, 2))
    assert bank.r1.dtype == bank.r2.dtype == bank.log_ratio.dtype == torch.float64
    assert bank.r1.shape == (1, 2)
