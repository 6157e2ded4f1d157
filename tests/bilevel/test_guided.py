"""Guided sampling as a lower level: what its samples say, where it is the tilt, where it is not, and its true slope."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from genbo.bilevel.estimators.covariance import Covariance
from genbo.bilevel.estimators.difference import Difference
from genbo.bilevel.estimators.value_gap import ValueGap
from genbo.bilevel.lower.closed_form import ClosedForm, cumulant_of
from genbo.bilevel.lower.guided import Guided, law_of
from genbo.bilevel.protocols import Facts
from genbo.bilevel.regularization.bank_sampler import Sampled
from genbo.bilevel.regularization.curve import matched
from genbo.bilevel.regularization.tilted import Law, SolveLaw
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.path_kl import sample_with_kl
from genbo.diffusion.process import process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.seed import Seed
from genbo.rewards.clip import Clip
from genbo.rewards.compressibility import Compressibility
from genbo.rewards.linear import Linear
from genbo.rewards.quadratic import Quadratic
from tests.bilevel.tilted import WORLDS


def source(name: str, *, steps: int = 40, eta: float = 1.0, seed: int = 0, batch: int = 4000, sampler=None) -> Sampled:
    world = WORLDS[name]
    process = process_of(world.model.open(), sampler or Ddim(steps, eta), Plain(1.0), batch=batch)
    return Sampled(process, [world.prompt], [(1.0, world.r1.open())], [(1.0, world.r2.open())], Seed(seed))


def guided(name: str, n: int = 400, **options) -> SolveLaw:
    return partial(Guided(n, most=None).solve, source(name, **options))


def tilt(name: str) -> SolveLaw:
    world = WORLDS[name]
    return partial(ClosedForm().solve, cumulant_of(world.model, [world.prompt], [(1.0, world.r1)], [(1.0, world.r2)]))


def off(law: Law, other: Law, what: str) -> float:
    """How many standard errors of the first the two are apart, with its sign."""
    found = getattr(law, what)
    return (found.mean - getattr(other, what).mean) / found.se


# -- where it is the tilt ----------------------------------------------------------------------------------------------


def test_on_a_gaussian_with_a_linear_reward_it_is_the_pretrained_law_moved():
    """p0 exp(x / lambda) = N(1 / lambda, 1): the same samples as that world's own, and the KL of its path, each."""
    here = source("gaussian", steps=12)
    law = Guided(50, most=None).solve(here, 0.8)
    moved = process_of(Gaussian({"a": [1.25]}, std=1.0).open(), Ddim(12, 1.0), Plain(1.0))
    (chunk,) = Guided(50, most=None)._chunks(here)
    with torch.no_grad():
        x, kl = sample_with_kl(moved, here.process, chunk.batch)
    assert law.r2.mean == pytest.approx(x.mean().item(), abs=1e-9)
    assert law.r1.mean == pytest.approx(-((x - 1.5) ** 2).mean().item() / 2, abs=1e-9)
    assert law.kl.mean == pytest.approx(kl.mean().item(), rel=1e-9)
    assert law.covariance.mean == pytest.approx(
        torch.cov(torch.stack([x.flatten(), -((x - 1.5) ** 2).flatten() / 2]))[0, 1]
    )


def test_with_many_steps_that_is_the_tilt_in_all_its_numbers():
    law, exact = guided("gaussian", 400, steps=200)(0.8), tilt("gaussian")(0.8)
    for what in ("r1", "r2", "covariance"):
        assert abs(off(law, exact, what)) < 3
    assert law.kl.mean == pytest.approx(exact.kl.mean, rel=0.06), "the path's KL, which is a little more"
    assert law.kl.mean > exact.kl.mean


# -- where it is not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "lam", "side"), [("mixture", 0.6, 1), ("quadratic", 0.3, 1), ("skewed", 0.7, -1)])
def test_at_the_same_lambda_it_is_not_the_tilt(name, lam, side):
    """It goes too far where the posterior's spread is what the tilt reckons with, and not far enough in a long tail."""
    law, exact = guided(name, 600)(lam), tilt(name)(lam)
    assert off(law, exact, "r2") * side > 5
    assert abs(off(law, exact, "r1")) > 3


@pytest.mark.parametrize("name", [pytest.param("mixture", marks=pytest.mark.slow), "skewed"])
def test_matched_by_the_mean_of_r2_the_two_are_as_strong(name):
    """At another lambda, and there is a KL to be seen beside it: the guided law pays more for the same r2."""
    exact, solve = tilt(name)(1.0), guided(name, 500, steps=20)
    lam = matched(solve, lambda law: law.r2, exact.r2.mean, (0.2, 5.0))
    assert lam is not None and abs(math.log(lam)) > 0.05
    found, fresh = solve(lam), guided(name, 1000, steps=20, seed=1)(lam)
    assert found.r2.mean == pytest.approx(exact.r2.mean, abs=1e-3)
    assert abs(fresh.r2.mean - exact.r2.mean) < 3 * math.hypot(fresh.r2.se, found.r2.se)
    assert off(fresh, exact, "kl") > 3


def test_it_may_be_matched_by_kl_as_well():
    solve = guided("mixture", 200, steps=20)
    lam = matched(solve, lambda law: law.kl, 0.5, (0.2, 5.0))
    assert lam is not None and solve(lam).kl.mean == pytest.approx(0.5, abs=1e-3)


# -- its slope ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_thedifference_is_the_slope_of_an_exact_law_and_its_error_falls_as_h_squared(name):
    solve, exact = tilt(name), WORLDS[name].line.grad(1.2)
    assert Difference(0.01)(solve, 1.2).mean == pytest.approx(exact, rel=1e-3, abs=1e-4)
    if name != "linear":
        coarse, fine = (abs(Difference(h)(solve, 1.2).mean - exact) for h in (0.1, 0.05))
        assert coarse / fine == pytest.approx(4, rel=0.15)


def test_what_neighbouring_lambdas_share_is_their_noise():
    """So the noise of the slope does not grow as the step falls; with other noise it would, as 1 / h."""

    def spread(h: float, separate: bool) -> float:
        found = []
        for seed in range(8):
            one, two = (guided("mixture", 40, steps=8, seed=s) for s in (seed, 100 + seed if separate else seed))
            found.append((one(math.exp(h)).r1.mean - two(math.exp(-h)).r1.mean) / (2 * h))
        return torch.tensor(found).std().item()

    assert spread(0.01, False) < 1.5 * spread(0.1, False)
    assert spread(0.01, True) > 10 * spread(0.01, False)


def test_the_error_bar_of_adifference_is_its_spread():
    found = [Difference()(guided("mixture", 40, steps=8, seed=seed), 1.0) for seed in range(30)]
    told = torch.tensor([f.se for f in found]).square().mean().sqrt().item()
    assert torch.tensor([f.mean for f in found]).std().item() == pytest.approx(told, rel=0.35)


def test_thedifference_is_the_guided_laws_own_slope():
    """Against its fall over a wide range of lambda on other noise."""
    solve, far = guided("gaussian", 500, steps=30), guided("gaussian", 2000, steps=30, seed=1)
    low, high = (far(lam).r1 for lam in (1.5, 2.7))
    slope, se = (high.mean - low.mean) / math.log(2.7 / 1.5), (high - low).se / math.log(2.7 / 1.5)
    found = Difference()(solve, 2.0)
    assert abs(found.mean - slope) < 3 * math.hypot(found.se, se) < 0.2 * abs(slope)


def test_neither_the_value_gap_nor_the_covariance_is():
    """The envelope theorem is the tilt's alone: at any gamma it is too much, and lower down not even the sign."""
    solve, mixed = guided("gaussian", 400, steps=30), guided("mixture", 400, steps=30)
    slope, y = Difference()(solve, 2.0), solve(2.0)
    for units in (20, 1000):
        gap = ValueGap(units * y.r1_sd / 2.0)(solve, 2.0)
        assert gap.mean + 4 * gap.se < 1.2 * slope.mean - 3 * slope.se
    gap, slope = ValueGap()(solve, 0.6), Difference()(solve, 0.6)
    assert gap.mean + 10 * gap.se < 0 < slope.mean - slope.se
    away = Difference()(mixed, 1.0) - Covariance()(mixed, 1.0)
    assert away.mean > 4 * away.se


def test_adifference_refuses_a_sampled_objective():
    assert Difference().why_not(Facts(1, slope="difference")) is None
    assert "; use estimator: " in (Difference().why_not(Facts(1)) or "")


# -- what samples say --------------------------------------------------------------------------------------------------


def test_every_number_is_within_its_error_bars_and_small_groups_do_not_lean():
    """Four samples of each of 500 prompts of one law: a covariance over n would be a quarter low."""
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    law = law_of(-((x - 1.5) ** 2) / 2, x, x**2, 0.7, 3.0)
    truth = {"r1": -(1 + 1.5**2) / 2, "r2": 0.0, "kl": 1.0, "covariance": 1.5}
    for what, true in truth.items():
        found = getattr(law, what)
        assert abs(found.mean - true) < 3 * found.se < 0.4
    one = law_of(-((x - 1.5) ** 2).reshape(1, -1) / 2, x.reshape(1, -1), (x**2).reshape(1, -1), 0.7, 3.0)
    assert one.kl.se == pytest.approx((x**2).std().item() / math.sqrt(2000), rel=1e-3)
    assert one.covariance.se == pytest.approx(math.sqrt((1.5**2 * 2 + 15 / 4 - 0.0) / 2000), rel=0.2)
    assert (law.lam, law.gamma) == (0.7, 3.0)


def test_samples_of_the_law_itself_are_reliable_where_there_are_a_hundred():
    x = torch.randn(2, 60, dtype=torch.float64)
    fit = law_of(x, x, x, 1.0, None).fit
    assert (fit.ess, fit.max_weight, fit.khat, fit.samples) == (120.0, 1 / 120, -math.inf, 60)
    assert fit.verdict == "reliable" and law_of(x[:, :40], x[:, :40], x[:, :40], 1.0, None).fit.verdict == "doubtful"


def test_a_step_is_no_longer_than_it_may_be():
    """Where it is that long, a smaller lambda goes no farther."""
    here = source("gaussian", steps=12)
    laws = [Guided(20).solve(here, lam) for lam in (0.01, 0.001)]
    assert laws[0].kl.mean == pytest.approx(laws[1].kl.mean) and laws[0].kl.mean < 10
    assert Guided(20, most=None).solve(here, 0.01).kl.mean > 1000
    torch.testing.assert_close(Guided(20).solve(here, 9.0).kl.value, Guided(20, most=None).solve(here, 9.0).kl.value)


def test_a_large_lambda_guides_nothing():
    here = source("mixture", steps=12)
    law = Guided(300, most=None).solve(here, 1e9)
    exact = tilt("mixture")(1e9)
    assert law.kl.mean == pytest.approx(0, abs=1e-9)
    assert abs(off(law, exact, "r2")) < 4


def test_it_does_not_depend_on_how_it_is_cut_into_calls():
    cut, whole = (Guided(9, most=None).solve(source("skewed", steps=8, batch=batch), 0.9, 7.0) for batch in (4, 64))
    for what in ("r1", "r2", "kl", "covariance"):
        torch.testing.assert_close(getattr(cut, what).value, getattr(whole, what).value)
    more = Guided(12, most=None).solve(source("skewed", steps=8), 0.9, 7.0)
    assert more.r2.influence.shape == (1, 12)


def test_prompts_are_by_themselves():
    world = Gaussian({"a": [0.0], "b": [2.0]}, std=1.0)
    process = process_of(world.open(), Ddim(12, 1.0), Plain(1.0))
    both = Sampled(process, ["a", "b"], [(1.0, Quadratic(1.0).open())], [(2.0, Linear().open())], Seed(0))
    law, alone = Guided(40, most=None).solve(both, 2.0), Guided(40, most=None).solve(replace(both, prompts=["a"]), 2.0)
    assert law.r2.value[0].item() == pytest.approx(alone.r2.value[0].item())
    assert law.r2.value[1].item() - law.r2.value[0].item() == pytest.approx(4.0, abs=1.0)


def test_the_upper_reward_is_let_in_by_gamma():
    """Linear rewards on a Gaussian add up: r2 / lambda + r1 / (gamma lambda)."""
    world = Gaussian({"a": [0.0]}, std=1.0)
    process = process_of(world.open(), Ddim(12, 1.0), Plain(1.0))
    here = Sampled(process, ["a"], [(3.0, Linear(0.5).open())], [(1.0, Linear().open())], Seed(0))
    y, z = Guided(20, most=None).solve(here, 2.0), Guided(20, most=None).solve(here, 2.0, 4.0)
    same = Guided(20, most=None).solve(here, 1 / (1 / 2 + 1.5 / 8))
    assert z.r2.mean == pytest.approx(same.r2.mean) and z.kl.mean == pytest.approx(same.kl.mean)
    assert z.r2.mean > y.r2.mean + 0.1


def test_a_solve_costs_its_samples_times_its_steps_and_every_lambda_as_much_again():
    here = source("mixture", steps=10, batch=16)
    for k in (1, 2):
        Guided(40, most=None).solve(here, 1.0 / k)
        spent = here.process.meter.as_dict()
        there = {"denoiser_calls": k * 3 * 10, "image_forwards": k * 400, "reward_images": k * (400 + 40)}
        assert spent == {**there, "image_backwards": k * 400}, "every step goes back to what it is given"


# -- a target --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [0, 2])
def test_with_a_target_it_is_the_conditional_law_on_a_gaussian_with_a_linear_reward(passes):
    """N(0, 1) exp(-(y - x)^2 / (2 lambda)) is another Gaussian: sample by sample what its own world draws."""
    lam, y = 0.8, 1.6
    here = source("gaussian", sampler=Dpmpp(12))
    law = Guided(50, most=None, target=y, passes=passes).solve(here, lam)
    (chunk,) = Guided(50)._chunks(here)
    world = Gaussian({"a": [y / (1 + lam)]}, std=(lam / (1 + lam)) ** 0.5)
    with torch.no_grad():
        x = sample(process_of(world.open(), Dpmpp(12), Plain(1.0)), chunk.batch)
    assert law.r2.mean == pytest.approx(x.mean().item(), abs=1e-9)


def test_a_path_by_tangents_has_no_kl_that_is_known():
    """Each step of it has seen the end of another path; without passes the KL is there."""
    here = source("mixture", steps=8)
    plain, passes = (Guided(20, most=None, target=1.0, passes=k).solve(here, 1.0) for k in (0, 1))
    assert math.isfinite(plain.kl.mean) and math.isnan(passes.kl.mean) and math.isfinite(passes.r2.mean)


def test_a_target_refuses_what_it_has_no_place_for():
    assert Guided(passes=2).mistakes() == ["passes: are those of a target; give target, or delete this"]
    assert Guided(target=math.inf).mistakes() == ["target: must be a finite number; give the reward to reach"]
    assert not Guided(target=1.0, passes=2).mistakes()
    refusal = Guided(target=1.0).why_no_gap(Ddim(eta=1.0), [(1.0, Linear())])
    assert refusal is not None and refusal.endswith("; use estimator: difference")


# -- what it cannot do -------------------------------------------------------------------------------------------------


def test_without_noise_in_the_sampler_there_is_no_kl_and_the_rest_stands():
    law = Guided(200, most=None).solve(source("gaussian", sampler=Dpmpp(24)), 0.8)
    assert math.isnan(law.kl.mean) and math.isnan(law.kl.se)
    assert abs(off(law, tilt("gaussian")(0.8), "r2")) < 4
    assert math.isfinite(law.covariance.mean)
    refusal = Guided().why_no_gap(Dpmpp(), [(1.0, Linear())])
    assert refusal is not None and "; use model.sampler: {kind: ddim, eta: 1.0}" in refusal


def test_rewards_without_gradients_are_refused_before_anything_is_loaded():
    size, good = [(1.0, Compressibility())], [(1.0, Linear()), (0.5, Clip("emoji-clip"))]
    assert Guided().why_not(None, size, good) is None, "the upper reward is only looked at"
    refusal = Guided().why_not(None, good, [*good, *size])
    assert refusal is not None and refusal.startswith("compressibility has no gradient") and "; use lower: " in refusal
    assert Guided().why_no_gap(Ddim(eta=1.0), good) is None
    refusal = Guided().why_no_gap(Ddim(eta=1.0), size)
    assert refusal is not None and "compressibility has no gradient" in refusal and "; use another" in refusal


def test_and_again_when_they_are_climbed():
    here = source("gaussian", steps=4)
    size = [(1.0, Compressibility().open())]
    with pytest.raises(ValueError, match="compressibility has no gradient"):
        Guided(4, most=None).solve(replace(here, lower=[*here.lower, *size]), 1.0)
    with pytest.raises(ValueError, match="compressibility has no gradient"):
        Guided(4, most=None).solve(replace(here, upper=size), 1.0, 10.0)


class BrokenReward:
    differentiable = True

    def __call__(self, images: Tensor, prompts) -> Tensor:
        return images.flatten(1).sum(1) * float("nan")


@pytest.mark.parametrize("lam", [0.0, -1.0, math.nan])
def test_a_lambda_of_nothing_is_refused(lam):
    with pytest.raises(ValueError, match="greater than 0"):
        guided("gaussian", 4, steps=4)(lam)


def test_numbers_that_are_not_finite_end_in_a_sentence():
    with pytest.raises(ValueError, match=r"the lower reward is not a finite number .* lambda = 1;"):
        Guided(4, most=None).solve(replace(source("gaussian", steps=4), lower=[(1.0, BrokenReward())]), 1.0)
    with pytest.raises(ValueError, match=r"not a finite number .* a larger lambda guides less"):
        guided("mixture", 4, steps=8)(1e-300)


def test_it_says_which_law_its_numbers_belong_to():
    assert "not the tilt" in Guided().traits.meaning
