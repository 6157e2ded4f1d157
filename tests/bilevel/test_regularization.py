"""The gradient in lambda against quadrature, on worlds of which only some are Gaussian."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from genbo.bilevel.estimators.covariance import Covariance
from genbo.bilevel.estimators.value_gap import ValueGap
from genbo.bilevel.lower.closed_form import ClosedForm, cumulant_of
from genbo.bilevel.measured import Measured
from genbo.bilevel.protocols import Facts
from genbo.bilevel.regularization.curve import matched, optimum, trace
from genbo.bilevel.regularization.tilted import Law, SolveLaw
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.models.exponential import Exponential
from genbo.diffusion.models.gaussian import Gaussian
from genbo.rewards.compressibility import Compressibility
from genbo.rewards.linear import Linear
from genbo.rewards.quadratic import Quadratic
from tests.bilevel.tilted import WORLDS, World

KLS = (0.1, 1.0, 8.0)
NAMES = sorted(WORLDS)


def solver(world: World) -> SolveLaw:
    return partial(ClosedForm().solve, cumulant_of(world.model, [world.prompt], [(1.0, world.r1)], [(1.0, world.r2)]))


def lam_at(world: World, kl: float) -> float:
    lowest = 0.501 if isinstance(world.model, Exponential) else 0.01
    found = matched(solver(world), lambda law: law.kl, kl, (lowest, 100.0))
    assert found is not None or kl > 1, "the quadratic reward holds the law back"
    return found or 0.05


@pytest.mark.parametrize("kl", KLS)
@pytest.mark.parametrize("name", NAMES)
def test_the_closed_form_is_the_quadrature(name, kl):
    world = WORLDS[name]
    lam, line = lam_at(world, kl), world.line
    for gamma in (None, 3.0, 1e3):
        law, p = solver(world)(lam, gamma), line.law(lam, gamma)
        for found, true in (
            (law.r1, line.mean(p, line.r1)),
            (law.r2, line.mean(p, line.r2)),
            (law.kl, line.kl(p, line.mass)),
            (law.covariance, line.covariance(p, line.r1, line.r2)),
        ):
            assert found.mean == pytest.approx(true, rel=1e-5, abs=1e-7)
            assert found.se == 0
        assert law.r1_sd == pytest.approx(line.covariance(p, line.r1, line.r1) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("kl", KLS)
@pytest.mark.parametrize("name", NAMES)
def test_the_covariance_is_the_slope_of_the_upper_objective(name, kl):
    world = WORLDS[name]
    lam = lam_at(world, kl)
    assert Covariance()(solver(world), lam).mean == pytest.approx(world.line.grad(lam), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_value_gap_is_the_derivative_of_the_gap_of_values_for_every_gamma(name):
    """gamma lambda (log E exp((r1 / gamma + r2) / lambda) - log E exp(r2 / lambda)), by differences of quadrature."""
    world, h = WORLDS[name], 1e-4
    lam, line = lam_at(world, 1.0), world.line

    def value(lam: float, gamma: float) -> float:
        logs = [(line.mass * (tilt / lam).exp()).sum().log() for tilt in (line.r1 / gamma + line.r2, line.r2)]
        return gamma * lam * float(logs[0] - logs[1])

    for gamma in (1.0, 30.0):
        slope = (value(lam * (1 + h), gamma) - value(lam * (1 - h), gamma)) / (2 * h)
        assert ValueGap(gamma)(solver(world), lam).mean == pytest.approx(slope, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_value_gap_leans_by_what_its_file_says(name):
    """Its bias falls as 1 / gamma, with the declared factor."""
    world = WORLDS[name]
    lam, line = lam_at(world, 1.0), world.line
    exact, p = Covariance()(solver(world), lam).mean, line.law(lam)
    k3 = line.covariance(p, line.r1, line.r1, line.r2)
    declared = -lam / 2 * (line.covariance(p, line.r1, line.r1) / lam**2 + k3 / lam**3)
    unit = line.covariance(p, line.r1, line.r1) ** 0.5 / lam
    gammas = [unit * 10**k for k in (2.0, 2.5, 3.0, 3.5)]
    bias = [ValueGap(gamma)(solver(world), lam).mean - exact for gamma in gammas]
    slope = torch.linalg.lstsq(
        torch.stack([torch.ones(4), torch.tensor(gammas).log()], 1), torch.tensor(bias).abs().log()[:, None]
    ).solution[1]
    assert slope.item() == pytest.approx(-1, abs=0.02)
    assert bias[-1] * gammas[-1] == pytest.approx(declared, rel=0.01)
    leaning = abs(ValueGap()(solver(world), lam).mean - exact)
    assert leaning <= 0.02 * max(abs(exact), line.covariance(p, line.r1, line.r1) ** 0.5), (
        "the default gamma is too small"
    )


def reversed_kl(world: World, solve: SolveLaw) -> SolveLaw:
    """The same solver with the arguments of its KL swapped."""

    def swapped(lam: float, gamma: float | None = None) -> Law:
        p = world.line.law(lam, gamma)
        kl = torch.tensor([world.line.kl(world.line.mass, p)], dtype=torch.float64)
        return replace(solve(lam, gamma), kl=Measured(kl, kl.new_zeros(1, 0)))

    return swapped


def test_a_reversed_kl_is_seen_where_the_world_is_not_gaussian():
    """Where all is linear and Gaussian it would pass: the skewed world is there to tell the two apart."""
    for name, seen in (("linear", False), ("skewed", True), ("gaussian", True), ("mixture", True)):
        world = WORLDS[name]
        lam = lam_at(world, 1.0)
        exact = world.line.grad(lam)
        right = ValueGap(1e4)(solver(world), lam).mean
        wrong = ValueGap(1e4)(reversed_kl(world, solver(world)), lam).mean
        assert right == pytest.approx(exact, rel=5e-3, abs=5e-3)
        assert (abs(wrong - exact) > 0.3 * abs(exact) + 0.1) is seen


def test_the_reversed_kl_of_the_skewed_world_is_not_the_one_reported():
    world = WORLDS["skewed"]
    lam = lam_at(world, 1.0)
    p, law = world.line.law(lam), solver(world)(lam)
    assert law.kl.mean == pytest.approx(world.line.kl(p, world.line.mass), rel=1e-6)
    assert abs(law.kl.mean - world.line.kl(world.line.mass, p)) > 0.2


# -- the optimum on paper ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [0.5, 1.5, 4.0])
def test_the_optimum_of_the_gaussian_world_is_one_over_c(c):
    world = Gaussian(means={"a": [0.0, 0.0, 0.0]}, std=1.0)
    cumulant = cumulant_of(world, ["a"], [(1.0, Quadratic([c, 0.0, 0.0], 0.5))], [(1.0, Linear([1.0, 0.0, 0.0]))])
    solve = partial(ClosedForm().solve, cumulant)
    found = optimum(solve, Covariance(), trace(solve, Covariance(), (0.05, 20.0)))
    assert found.kind == "interior" and found.lam == pytest.approx(1 / c, rel=1e-3)
    by_gap = optimum(solve, ValueGap(1e6), trace(solve, ValueGap(1e6), (0.05, 20.0)))
    assert by_gap.lam == pytest.approx(found.lam, rel=1e-3)


def test_several_prompts_share_one_lambda():
    """Means m_c and r1 = -(x - t)^2 / 2 under N(m_c, 1): the mean of m_c + 1 / lambda must be t."""
    world = Gaussian(means={"a": [0.0], "b": [0.6]}, std=1.0)
    cumulant = cumulant_of(world, ["a", "b"], [(1.0, Quadratic(1.8, 0.5))], [(1.0, Linear())])
    solve = partial(ClosedForm().solve, cumulant)
    assert solve(1.0).covariance.value.tolist() == pytest.approx([1.8 - 1.0, 1.8 - 1.6])
    found = optimum(solve, Covariance(), trace(solve, Covariance(), (0.05, 20.0)))
    assert found.lam == pytest.approx(1 / (1.8 - 0.3), rel=1e-3)


def test_weighted_sums_of_rewards_are_what_they_say():
    world = WORLDS["mixture"]
    one = cumulant_of(world.model, ["a"], [(2.0, Linear(1.0)), (0.5, Quadratic(1.0, 3.0))], [(1.0, Linear())])
    two = cumulant_of(world.model, ["a"], [(1.0, Linear(2.0)), (1.0, Quadratic(1.0, 1.5))], [(0.5, Linear(2.0))])
    t, u = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)
    torch.testing.assert_close(one(t, u), two(t, u))


# -- no, and a way out -------------------------------------------------------------------------------------------------


def test_what_has_no_closed_form_is_refused_with_a_way_out():
    good = [(1.0, Linear())]
    assert ClosedForm().why_not(WORLDS["skewed"].model, good, [(0.5, Quadratic())]) is None
    for refusal in (
        ClosedForm().why_not(Diffusers("emoji"), good),
        ClosedForm().why_not(WORLDS["skewed"].model, good, [(1.0, Compressibility())]),
        ClosedForm().why_not(WORLDS["skewed"].model, good, [(-1.0, Quadratic())]),
    ):
        assert refusal is not None and "; use lower: reweight" in refusal


def test_a_tilt_that_has_no_law_is_an_error_and_not_a_number():
    with pytest.raises(ValueError, match="no law"):
        solver(WORLDS["skewed"])(0.4)
    with pytest.raises(ValueError, match="greater than 0"):
        solver(WORLDS["gaussian"])(0.0)


@pytest.mark.parametrize("estimator", [Covariance(), ValueGap()])
def test_estimators_of_a_lower_level_refuse_a_sampled_objective(estimator):
    refusal = estimator.why_not(Facts(1))
    assert refusal is not None and "; use estimator: " in refusal
