"""Best-of-n against exact order statistics: a normal world, one that is not normal, and rewards with ties."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from genbo.bilevel.interval import interval
from genbo.bilevel.regularization.bank import bank_of
from genbo.bilevel.regularization.best_of_n import at_most, best_of_n, line, numbers

NUMBERS = (2, 3, 4, 6, 8, 12, 16)


def normal_bank(seed: int, samples: int = 16384):
    """N(0, I) in two dimensions, r2 = x1, r1 = -|x - (1.5, 0)|^2 / 2."""
    x = torch.randn(samples, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return bank_of(-(x - torch.tensor([1.5, 0.0])).square().sum(1) / 2, x[:, 0])


def of_the_largest(n: int, f) -> float:
    """E f(x) for x the largest of n standard normal numbers, by quadrature."""
    return quad(lambda x: f(x) * n * norm.cdf(x) ** (n - 1) * norm.pdf(x), -10, 10)[0]


def continuous_kl(n: int) -> float:
    return math.log(n) - (n - 1) / n


@pytest.mark.parametrize("n", NUMBERS)
def test_it_is_within_three_percent_of_the_order_statistics_of_a_normal_law(n):
    found = best_of_n(normal_bank(0), n)
    r1 = of_the_largest(n, lambda x: -((x - 1.5) ** 2 + 1) / 2)
    r2 = of_the_largest(n, lambda x: x)
    assert found.r1.mean == pytest.approx(r1, rel=0.03) and found.r2.mean == pytest.approx(r2, rel=0.03)
    assert found.kl.mean == pytest.approx(continuous_kl(n), rel=1e-9) and found.kl.se == 0


def test_at_eight_it_beats_every_tilt_of_the_normal_world():
    """The tilt's best r1 is -1, at lambda = 2/3 and a KL of 1.125; the best of eight has -0.689 at 1.204."""
    exact = of_the_largest(8, lambda x: -((x - 1.5) ** 2 + 1) / 2)
    low, high = interval(best_of_n(normal_bank(1), 8).r1)
    assert exact == pytest.approx(-0.689, abs=5e-4) and low < exact < high and low > -1 + 0.2


@pytest.mark.parametrize("n", NUMBERS)
def test_the_best_of_n_of_an_exponential_law_is_a_harmonic_number(n):
    samples = torch.distributions.Exponential(torch.tensor(1.0, dtype=torch.float64))
    torch.manual_seed(3)
    x = samples.sample((2, 20000))
    found = best_of_n(bank_of(x**2, x), n)
    first, second = (sum(k**-power for k in range(1, n + 1)) for power in (1.0, 2.0))
    assert found.r2.mean == pytest.approx(first, rel=0.03)
    assert found.r1.mean == pytest.approx(second + first**2, rel=0.06), "the variance of the largest is sum k^-2"


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("r2", [[0.3, -1.0, 2.0, 0.7, 5.0, -3.0, 0.1], [1.0, 0.0, 1.0, 1.0, 0.0, 2.0, 2.0]])
def test_it_is_the_mean_over_all_choices_of_n(n, r2):
    """Of equal samples each is taken equally often; without a sample the mean moves as its influence says."""
    r1 = [2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0]

    def over_choices(kept) -> float:
        means = []
        for chosen in combinations(kept, n):
            top = max(r2[i] for i in chosen)
            best = [r1[i] for i in chosen if r2[i] == top]
            means.append(sum(best) / len(best))
        return sum(means) / len(means)

    found, m = best_of_n(bank_of(torch.tensor(r1), torch.tensor(r2)), n).r1, len(r1)
    assert found.mean == pytest.approx(over_choices(range(m)), rel=1e-12)
    for i in range(m):
        without = over_choices([j for j in range(m) if j != i])
        assert found.influence[0, i].item() == pytest.approx((m - 1) / m * (found.mean - without), abs=1e-12)


@pytest.mark.parametrize("n", [2, 4, 8, 16])
def test_of_two_values_it_takes_the_better_one_where_there_is_one(n):
    """P(1) = 0.3: the best of n is 1 with 1 - 0.7^n, and the KL is that of two coins, far below log n - (n-1)/n."""
    draws = torch.rand(4, 50000, generator=torch.Generator().manual_seed(5), dtype=torch.float64) < 0.3
    found = best_of_n(bank_of(-draws.double(), draws.double()), n)
    one = 1 - 0.7**n
    kl = one * math.log(one / 0.3) + (1 - one) * math.log((1 - one) / 0.7)
    assert found.r2.mean == pytest.approx(one, rel=0.01) and found.r1.mean == pytest.approx(-one, rel=0.01)
    assert found.kl.mean == pytest.approx(kl, rel=0.01) and kl < continuous_kl(n)
    assert abs(found.kl.mean - kl) < 4 * found.kl.se


def test_the_error_of_a_kl_with_ties_is_the_spread_over_banks():
    kls, errors = [], []
    for seed in range(300):
        draws = torch.rand(1, 2000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found = best_of_n(bank_of(draws, (draws * 5).floor()), 4).kl
        kls.append(found.mean)
        errors.append(found.se)
    assert torch.tensor(errors).mean() == pytest.approx(torch.tensor(kls).std().item(), rel=0.1)


@pytest.mark.parametrize(
    ("samples", "n"),
    [(64, 4), (256, 32), *(pytest.param(1024, n, marks=pytest.mark.slow) for n in (64, 128))],
)
def test_its_intervals_hold_the_truth(samples, n):
    exact = of_the_largest(n, lambda x: -((x - 1.5) ** 2 + 1) / 2)
    held = 0
    for seed in range(400):
        low, high = interval(best_of_n(normal_bank(1000 + seed, samples), n).r1)
        held += low < exact < high
    assert held >= 0.92 * 400


def test_prompts_count_the_same_and_do_not_mix():
    """One prompt's r2 lies far above the other's: ranks are those within a prompt."""
    a, b = normal_bank(7, 1000), normal_bank(8, 1000)
    both = best_of_n(bank_of(torch.cat([a.r1, b.r1]), torch.cat([a.r2, b.r2 + 100])), 4)
    alone = [best_of_n(bank, 4) for bank in (a, b)]
    assert both.r1.value.tolist() == pytest.approx([one.r1.mean for one in alone])
    assert both.r2.mean == pytest.approx(sum(one.r2.mean for one in alone) / 2 + 50)


def test_only_numbers_that_the_samples_are_enough_for_are_on_the_line():
    assert numbers(15) == () and numbers(16) == (2,) and numbers(512)[-1] == 64
    assert [one.n for one in line(normal_bank(0, 64))] == [2, 3, 4, 5, 6, 7, 8]


def test_the_choice_has_no_more_kl_than_is_allowed():
    found = line(normal_bank(0))
    chosen = at_most(found, 1.125)
    assert chosen is not None and chosen.n == 7 and at_most(found, 0.19) is None


def test_what_has_no_best_of_n_is_refused():
    bank = normal_bank(0, 8)
    with pytest.raises(ValueError, match="draw more than n"):
        best_of_n(bank, 8)
    with pytest.raises(ValueError, match="shifted noise"):
        best_of_n(bank_of(bank.r1, bank.r2, torch.full((1, 8), 0.1)), 2)
