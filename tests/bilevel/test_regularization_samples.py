"""What samples say of the tilted law: weights, their tails, their error bars, and banks of them."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from genbo.bilevel.estimators.covariance import Covariance
from genbo.bilevel.estimators.value_gap import ValueGap
from genbo.bilevel.lower.reweight import Reweight, fit_of
from genbo.bilevel.measured import Measured
from genbo.bilevel.regularization.bank import Bank, bank_of, mistakes
from genbo.bilevel.regularization.bank_sampler import Sampled
from genbo.bilevel.regularization.pareto import quantile, shape, smoothed, tail_length
from genbo.bilevel.regularization.search import SearchBudget, search
from genbo.bilevel.regularization.tilted import Fit
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.exponential import Exponential
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.process import process_of
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.seed import Seed
from genbo.rewards.linear import Linear
from genbo.rewards.quadratic import Quadratic
from tests.bilevel.tilted import WORLDS

PLAIN, SMOOTH, JACKKNIFE = Reweight("plain"), Reweight("smoothed"), Reweight("jackknife")


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bank_from(x: Tensor, c: float = 1.5) -> Bank:
    """r2 = x, r1 = -(x - c)^2 / 2 of samples x (C, n)."""
    return bank_of(-((x - c) ** 2) / 2, x)


def drawn(name: str, n: int, seed: int) -> Bank:
    """Samples of a world of the line, by inverting its distribution function."""
    line = WORLDS[name].line
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    at = torch.searchsorted(line.mass.cumsum(0), uniform).clamp(max=len(line.mass) - 1)
    return bank_of(line.r1[at], line.r2[at])


# -- tails -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "k", "top"),
    [
        ("normal", -0.48000747977296204, [-4.4237075, -4.4237075]),
        ("heavy", 0.8183704168942159, [-2.77578206, -1.87321009]),
        ("light", -1.4684547478057912, [-5.23357513, -5.23357513]),
    ],
)
def test_smoothed_weights_are_those_of_arviz(name, k, top):
    """Figures of arviz-stats 0.8.0 on the same log-weights."""
    i = torch.arange(400, dtype=torch.float64)
    logw = {
        "normal": 1.5 * math.sqrt(2) * torch.sin(i) * torch.cos(0.37 * i),
        "heavy": -0.9 * torch.log1p(-(i + 0.5) / 400),
        "light": torch.sin(0.7 * i),
    }[name]
    found, khat = smoothed(logw[None])
    assert khat.item() == pytest.approx(k, abs=1e-9)
    assert found.log_softmax(1)[0].sort().values[-2:].tolist() == pytest.approx(top, abs=1e-7)


@pytest.mark.parametrize("k", [-0.3, 0.2, 0.5, 0.9])
def test_the_shape_of_a_pareto_law_is_found(k):
    uniform = torch.rand(20, 2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = quantile(uniform, torch.tensor(k), torch.tensor(3.0)).sort(1).values
    found, scale = shape(x)
    spread = (1 + k) / math.sqrt(2000)  # of the maximum likelihood estimate
    assert found.mean().item() == pytest.approx(k, abs=0.01)
    assert found.std().item() < 1.6 * max(spread, 0.01)
    assert scale.mean().item() == pytest.approx(3.0, rel=0.03)


def test_a_row_of_tails_does_not_know_the_others():
    logw = 2 * normal(5, 300)
    together, k = smoothed(logw)
    for row in range(5):
        alone, k_alone = smoothed(logw[row : row + 1])
        torch.testing.assert_close(alone[0], together[row])
        torch.testing.assert_close(k_alone[0], k[row])


def test_smoothing_keeps_order_scale_and_the_largest_weight():
    logw = 2.5 * normal(1, 1000)
    found, k = smoothed(logw)
    moved, k_moved = smoothed(logw + 700.0)
    torch.testing.assert_close(moved - 700, found)
    torch.testing.assert_close(k_moved, k)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(smoothed(logw[:, order])[0], found[:, order])
    assert (found[0, logw[0].argsort()].diff() >= -1e-12).all()
    assert found.max() <= logw.max()
    tail = tail_length(1000)
    assert tail - 1 <= (found != logw).sum() <= tail == math.ceil(3 * math.sqrt(1000))


def test_what_has_no_tail_says_so():
    assert smoothed(normal(1, 10))[1].item() == math.inf  # two weights are no tail
    assert smoothed(torch.zeros(1, 100, dtype=torch.float64))[1].item() == -math.inf
    few_values = (torch.arange(400) % 3).double()[None]
    assert smoothed(few_values)[1].item() < 0.5, "weights of a reward that takes three values are bounded"
    assert fit_of(few_values).verdict == "reliable"


# -- the law by samples ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["plain", "smoothed", "jackknife"])
@pytest.mark.parametrize(("name", "lam"), [("gaussian", 1.2), ("quadratic", 0.8), ("skewed", 1.4), ("mixture", 1.5)])
def test_every_number_is_within_its_error_bars(name, lam, weights):
    """And with a gamma: forty banks, so that a lean of the size of an error bar would be seen."""
    line = WORLDS[name].line
    for gamma in (None, 5.0):
        p = line.law(lam, gamma)
        laws = [Reweight(weights).solve(drawn(name, 2000, seed), lam, gamma) for seed in range(40)]
        truth = {
            "r1": line.mean(p, line.r1),
            "r2": line.mean(p, line.r2),
            "kl": line.kl(p, line.mass),
            "covariance": line.covariance(p, line.r1, line.r2),
        }
        for what, true in truth.items():
            found = torch.tensor([getattr(law, what).mean for law in laws])
            told = torch.tensor([getattr(law, what).se for law in laws]).square().mean().sqrt()
            assert abs(found.mean() - true) < 0.6 * told, f"{what} leans"
            assert 0.65 < found.std() / told < 1.5, f"{what}: the error bar is not its spread"


def test_differences_of_measured_numbers_know_what_they_share():
    bank = bank_from(normal(1, 500))
    law = PLAIN.solve(bank, 1.0)
    assert (law.r2 - law.r2).se == 0
    x, y = bank.r1[0] - law.r1.mean, bank.r2[0] - law.r2.mean
    w = (bank.r2[0] / 1.0).softmax(0)
    assert (law.r1 - law.r2).se == pytest.approx((w * (x - y)).square().sum().sqrt().item())
    assert (law.r1 * -3.0).se == pytest.approx(3 * law.r1.se)


def test_rewards_may_be_moved_and_scaled():
    bank = bank_from(normal(2, 300))
    law = SMOOTH.solve(bank, 0.8)
    other = SMOOTH.solve(bank_of(3 * bank.r1 + 5, 10 * bank.r2 - torch.tensor([[1e6], [-1e6]])), 8.0)
    torch.testing.assert_close(other.covariance.value, 30 * law.covariance.value, rtol=1e-6, atol=0)
    torch.testing.assert_close(other.kl.value, law.kl.value, rtol=1e-6, atol=1e-8)
    assert other.fit.khat == pytest.approx(law.fit.khat, abs=1e-6)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    shuffled = SMOOTH.solve(bank_of(bank.r1[:, order], bank.r2[:, order]), 0.8)
    torch.testing.assert_close(shuffled.covariance.value, law.covariance.value)


@pytest.mark.parametrize("lam", [1e-8, 1e8])
def test_no_lambda_overflows(lam):
    law = Reweight().solve(bank_from(100 * normal(1, 200)), lam)
    for found in (law.r1, law.r2, law.kl, law.covariance):
        assert math.isfinite(found.mean) and math.isfinite(found.se)


def test_a_lambda_of_nothing_is_refused():
    for lam in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="greater than 0"):
            Reweight().solve(bank_from(normal(1, 10)), lam)


def test_weights_are_normalised_within_each_prompt():
    """Prompts with high r2 and low r1: the slope within each is the same, and one softmax over all turns its sign."""
    x = normal(2, 40_000)
    offset = torch.tensor([[-1.5], [1.5]], dtype=torch.float64)
    bank = bank_of(x - 3 * offset, x + offset)
    within = PLAIN.solve(bank, 2.0).covariance
    assert within.value.tolist() == pytest.approx([1.0, 1.0], abs=0.05)
    pooled = PLAIN.solve(Bank(*(getattr(bank, n).reshape(1, -1) for n in ("r1", "r2", "log_ratio"))), 2.0).covariance
    assert pooled.mean < -1


def test_more_prompts_are_their_mean():
    x = normal(3, 200)
    parts = [PLAIN.solve(bank_from(x[c : c + 1]), 1.0).covariance for c in range(3)]
    together = PLAIN.solve(bank_from(x), 1.0).covariance
    assert together.mean == pytest.approx(sum(p.mean for p in parts) / 3)
    assert together.se == pytest.approx(math.sqrt(sum(p.se**2 for p in parts)) / 3)


def test_with_many_prompts_the_error_bar_counts_prompts():
    """Their own differences are in it: the same as the spread of many banks of other prompts."""
    found = []
    for seed in range(60):
        mean = 0.7 * normal(16, 1, seed=seed)
        found.append(JACKKNIFE.solve(bank_from(mean + normal(16, 100, seed=1000 + seed)), 1.2).covariance)
    told = torch.tensor([f.se for f in found]).mean().item()
    assert torch.tensor([f.mean for f in found]).std().item() == pytest.approx(told, rel=0.25)
    assert math.sqrt(found[0].influence.square().sum().item()) / 16 < 0.7 * told


# -- small groups ------------------------------------------------------------------------------------------------------


def test_the_jackknife_is_leaving_each_sample_out():
    bank, lam, n = bank_from(normal(2, 7), c=0.5), 0.9, 7
    plain, found = PLAIN.solve(bank, lam), JACKKNIFE.solve(bank, lam)
    for what in ("r1", "r2", "covariance", "kl"):
        without = []
        for i in range(n):
            rest = [j for j in range(n) if j != i]
            without.append(getattr(PLAIN.solve(bank_of(bank.r1[:, rest], bank.r2[:, rest]), lam), what).value)
        expected = n * getattr(plain, what).value - (n - 1) * torch.stack(without).mean(0)
        torch.testing.assert_close(getattr(found, what).value, expected)


def test_the_lean_of_small_groups_does_not_average_out_and_the_jackknife_takes_most_of_it():
    """Four samples a prompt: a fifth of the covariance is missing, however many prompts there are."""
    lam, c = math.sqrt(5), 1.5  # KL 0.1
    bank, exact = bank_from(normal(20_000, 4), c), c - 1 / lam
    assert PLAIN.solve(bank, lam).covariance.mean == pytest.approx(0.8 * exact, rel=0.05)
    assert JACKKNIFE.solve(bank, lam).covariance.mean == pytest.approx(exact, rel=0.06)


def test_auto_takes_the_jackknife_over_many_prompts_and_smooths_few():
    for prompts, like in ((1, SMOOTH), (64, JACKKNIFE)):
        bank = bank_from(normal(prompts, 64))
        assert torch.equal(Reweight().solve(bank, 0.7).covariance.value, like.solve(bank, 0.7).covariance.value)


# -- verdicts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fit", "verdict"),
    [
        (Fit(1000, 0.01, 0.5, 1000), "reliable"),
        (Fit(1000, 0.011, 0.5, 1000), "doubtful"),
        (Fit(1000, 0.01, 0.51, 1000), "doubtful"),
        (Fit(1000, 0.05, 0.6, 1000), "doubtful"),
        (Fit(1000, 0.051, 0.2, 1000), "refuse"),
        (Fit(1000, 0.003, 0.71, 10_000), "refuse"),
        (Fit(1000, 0.003, 0.5, 199), "doubtful"),  # 10^(1 / (1 - k)) = 100 samples, and twice that
        (Fit(1000, 0.003, 0.5, 99), "refuse"),
        (Fit(1000, 0.003, math.inf, 10_000), "refuse"),
        (Fit(1000, 0.003, math.nan, 10_000), "refuse"),
        (Fit(1000, 0.002, 0.9, 20), "reliable"),  # nearly even weights have no tail that matters
        (Fit(1000, 0.002, 0.9, 19), "doubtful"),
        (Fit(1000, 0.002, 0.9, 9), "refuse"),
        (Fit(1000, 0.001, math.nan, 10_000), "refuse"),
    ],
)
def test_verdicts(fit, verdict):
    assert fit.verdict == verdict


def test_the_silent_failure_is_refused():
    """At a KL of 8 one weight stands for all: covariance and error bar are small together, and both are wrong."""
    law = Reweight().solve(bank_from(normal(1, 4000)), 0.25)
    assert abs(law.covariance.mean - (1.5 - 4)) > 5 * law.covariance.se
    assert law.fit.verdict == "refuse" and law.fit.max_weight > 0.05


@pytest.mark.parametrize(("samples", "reliable", "doubtful"), [(1024, 0.25, 0.5), (16_384, 0.5, 1.5)])
def test_samples_reach_as_far_as_was_measured(samples, reliable, doubtful):
    """KLs up to which the typical bank of a single prompt can speak."""
    banks = [bank_from(normal(1, samples, seed=s)) for s in range(9)]
    for kl, worst in ((reliable, {"reliable"}), (doubtful, {"reliable", "doubtful"}), (4.0, {"refuse"})):
        said = [Reweight().solve(bank, 1 / math.sqrt(2 * kl)).fit.verdict for bank in banks]
        assert sum(v in worst for v in said) >= 6


def test_many_prompts_with_few_samples_do_not_hide_their_tails():
    """64 prompts, 16 samples each, KL 1: no weight is large in the mean, and every prompt leans the same way."""
    law = Reweight().solve(bank_from(normal(64, 16)), 0.7)
    assert law.fit.max_weight < 0.02
    assert abs(law.covariance.mean - (1.5 - 1 / 0.7)) > 2 * law.covariance.se
    assert law.fit.verdict == "refuse"


def test_verdicts_rank_how_often_intervals_hold_the_truth():
    """Over r1 linear and quadratic and KLs from 0.02 to 8; the rest of the way to 0.95 is luck at the edge."""
    hits: dict[str, list[bool]] = {"reliable": [], "doubtful": [], "refuse": []}
    for seed in range(40):
        x = normal(1, 2048, seed=seed)
        noisy = bank_of(x + normal(1, 2048, seed=1000 + seed), x)
        for kl in (0.02, 0.05, 0.12, 0.3, 0.8, 2.0, 5.0, 8.0):
            lam = 1 / math.sqrt(2 * kl)
            for bank, exact in ((bank_from(x), 1.5 - 1 / lam), (noisy, 1.0)):
                law = Reweight().solve(bank, lam)
                hits[law.fit.verdict].append(abs(law.covariance.mean - exact) <= 1.96 * law.covariance.se)
    covered = {verdict: sum(h) / len(h) for verdict, h in hits.items()}
    assert covered["reliable"] > 0.9 and 0.6 < covered["doubtful"] < 0.9 and covered["refuse"] < 0.6


# -- the value gap on samples ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gaussian", "skewed", "mixture"])
def test_on_one_bank_the_value_gap_tends_to_the_covariance(name):
    solve = partial(PLAIN.solve, drawn(name, 1000, 0))
    limit = Covariance()(solve, 1.4).mean
    errors = [abs(ValueGap(gamma)(solve, 1.4).mean - limit) for gamma in (1e2, 1e3, 1e4)]
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.1)


def test_the_value_gap_of_one_bank_has_the_error_bar_of_its_spread():
    found = [ValueGap(50.0)(partial(PLAIN.solve, bank_from(normal(1, 1000, seed=s))), 1.2) for s in range(80)]
    told = torch.tensor([f.se for f in found]).mean().item()
    assert torch.tensor([f.mean for f in found]).std().item() == pytest.approx(told, rel=0.3)


def test_separate_samples_multiply_the_noise_by_gamma():
    spread = {}
    for gamma in (10.0, 100.0, 1000.0):
        shared, separate = [], []
        for seed in range(30):
            here, there = (partial(PLAIN.solve, bank_from(normal(1, 500, seed=s))) for s in (seed, 1000 + seed))

            def two_banks(lam: float, gamma: float | None = None, here=here, there=there):
                return (here if gamma is None else there)(lam, gamma)

            shared.append(ValueGap(gamma)(here, 1.2).mean)
            separate.append(ValueGap(gamma)(two_banks, 1.2).mean)
        spread[gamma] = torch.tensor(shared).std().item(), torch.tensor(separate).std().item()
    assert spread[1000.0][0] < 1.5 * spread[10.0][0]
    assert spread[1000.0][1] / spread[10.0][1] == pytest.approx(100, rel=0.2)


def test_a_reward_without_spread_has_a_gap_of_nothing():
    x = normal(1, 200)
    assert ValueGap()(partial(PLAIN.solve, bank_of(0 * x + 2, x)), 1.0).mean == pytest.approx(0, abs=1e-9)


# -- banks -------------------------------------------------------------------------------------------------------------


def pretrained(model: object, batch: int = 64):
    return process_of(model.open(), Dpmpp(steps=24), Plain(weight=1.0), batch=batch)  # type: ignore[attr-defined]


def test_a_sample_depends_on_its_own_number_alone():
    """Not on the size of a call, nor on how many samples there are."""
    world = Gaussian(means={"a": [0.0, 1.0], "b": [1.0, 0.0]}, std=1.0)
    upper, lower = [(1.0, Quadratic(1.5, 0.5).open())], [(2.0, Linear().open()), (1.0, Linear([1.0, 0.0]).open())]
    whole, part = (
        Sampled(pretrained(world, batch=batch), ("a", "b"), upper, lower, Seed(3), samples_too=True).draw(0, n, None)
        for batch, n in ((7, 9), (64, 4))
    )
    for name in ("r1", "r2", "log_ratio", "x"):
        torch.testing.assert_close(getattr(whole, name)[:, :4], getattr(part, name))
    assert whole.x.shape == (2, 9, 2, 1, 1)  # type: ignore[union-attr]
    assert whole.prompts == 2 and whole.samples == 9
    assert not torch.equal(whole.r1[0], whole.r1[1])


def test_a_bank_costs_what_its_samples_cost_and_no_lambda_more():
    process = pretrained(Gaussian(means={"a": [0.0]}, std=1.0), batch=50)
    upper, lower = [(1.0, Quadratic(1.5, 0.5).open())], [(1.0, Linear().open())]
    bank = Sampled(process, ("a",), upper, lower, Seed(0)).draw(0, 120, None)
    spent = process.meter.as_dict()
    there = {"denoiser_calls": 3 * 24, "image_forwards": 120 * 24, "reward_images": 120}
    assert spent == {**there, "image_backwards": 0}
    for lam in (0.5, 1.0, 2.0):
        Reweight().solve(bank, lam)
    assert process.meter.as_dict() == spent


def test_the_gaussian_chain_is_shifted_by_what_stein_says():
    """r2 = x1 through the linear chain of a Gaussian has one gradient everywhere: the shift is it, over lambda."""
    process = pretrained(Gaussian(means={"a": [0.0, 0.0]}, std=1.0))
    upper, lower = [(1.0, Quadratic(1.5, 0.5).open())], [(1.0, Linear([1.0, 0.0]).open())]
    source = Sampled(process, ("a",), upper, lower, Seed(0), gradients=True)
    shifts = source.shifts(1, 12, 0.5)
    reached = shifts.means[0, -1]
    assert reached.tolist() == pytest.approx([2.0, 0.0], rel=0.05)
    bank = source.draw(1, 2000, shifts)
    assert bank.r2.mean().item() == pytest.approx(0.2 * shifts.means[0, 1, 0].item() + 0.6 * reached[0].item(), abs=0.1)
    law = Reweight(weights="plain").solve(bank, 0.5)
    assert law.fit.verdict == "reliable" and abs(law.r2.mean - 2.0) < 4 * law.r2.se + 0.04
    by_mean = Sampled(process, ("a",), upper, lower, Seed(0)).shifts(1, 3000, 0.5).means[0, -1]
    assert by_mean[0].item() == pytest.approx(2.0, abs=0.3)


def test_the_whole_search_through_a_sampler_ends_at_the_optimum():
    process = pretrained(Gaussian(means={"a": [0.0, 0.0]}, std=1.0), batch=4000)
    upper, lower = [(1.0, Quadratic([1.5, 0.0], 0.5).open())], [(1.0, Linear([1.0, 0.0]).open())]
    source = Sampled(process, ("a",), upper, lower, Seed(0), gradients=True)
    *_, end = search(source, Reweight(), Covariance(), (0.05, 20.0), SearchBudget(samples=4000, rounds=2))
    assert end.after == "done" and end.optimum is not None and end.optimum.interval is not None
    low, high = end.optimum.interval
    assert low < 2 / 3 < high and end.optimum.lam == pytest.approx(2 / 3, rel=0.03)


@pytest.mark.parametrize(
    ("model", "name", "lam"),
    [(Gaussian(means={"a": [0.0]}, std=1.0), "gaussian", 1.5), (Exponential(means={"a": [0.5]}), "skewed", 1.6)],
)
def test_a_bank_of_the_shipped_model_is_its_world(model, name, lam):
    """Through the sampler: rewards of what the network really generates."""
    world = WORLDS[name]
    line, p = world.line, world.line.law(lam)
    process = pretrained(model, batch=4000)
    bank = Sampled(process, ("a",), [(1.0, world.r1.open())], [(1.0, world.r2.open())], Seed(0)).draw(0, 4000, None)
    law = Reweight().solve(bank, lam)
    for found, true in ((law.r2, line.mean(p, line.r2)), (law.covariance, line.covariance(p, line.r1, line.r2))):
        assert abs(found.mean - true) < 4 * found.se + 0.02 * abs(true)


@pytest.mark.parametrize(
    ("r1", "r2", "said"),
    [
        ([[1.0]], [[2.0]], "1 sample a prompt has no spread to learn from; draw at least 2"),
        ([[1.0, math.nan]], [[1.0, 2.0]], "the upper reward is not a finite number for 1 of 2 samples"),
        ([[1.0, 2.0], [1.0, 3.0]], [[0.0, 1.0], [math.inf, -math.inf]], "most often for 'b'; mend"),
        ([[1.0, 2.0], [0.0, 1.0]], [[3.0, 3.0], [4.0, 4.0]], "the lower reward is the same for every sample"),
    ],
)
def test_a_bank_that_says_nothing_says_why(r1, r2, said):
    (sentence,) = mistakes(bank_of(torch.tensor(r1), torch.tensor(r2)), ("a", "b"))
    assert said in sentence and "; " in sentence


def test_one_prompt_of_constant_reward_among_others_is_no_mistake():
    assert mistakes(bank_of(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[3.0, 3.0], [4.0, 5.0]])), "ab") == []


def test_exact_numbers_have_no_error():
    exact = Measured(torch.tensor([1.0, 2.0]), torch.zeros(2, 0))
    assert exact.mean == 1.5 and exact.se == 0
