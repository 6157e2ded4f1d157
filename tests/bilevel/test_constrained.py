"""The best lambda that keeps other rewards at their levels: roots that are known on paper."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from genbo.bilevel.estimators.covariance import Covariance
from genbo.bilevel.lower.closed_form import ClosedForm
from genbo.bilevel.lower.reweight import Reweight
from genbo.bilevel.problem import Constraint
from genbo.bilevel.regularization.bank import Bank, bank_of, joined, mistakes
from genbo.bilevel.regularization.constrained import Gap, constrained, gaps_of
from genbo.bilevel.regularization.context import ExactWorld, LawContext
from genbo.bilevel.regularization.curve import Optimum, optimum, trace
from genbo.diffusion.models.gaussian import Gaussian
from genbo.rewards.linear import Linear
from genbo.rewards.quadratic import Quadratic

BOUNDS = (0.05, 20.0)
START = 3.0
SLOPE = Covariance()


def normal(seed: int, samples: int, *kept) -> Bank:
    """N(0, I): r2 = x1, r1 = x1 + x2 rises with r2 for ever; `kept` are rewards of x."""
    x = torch.randn(samples, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    bank = bank_of(x.sum(1), x[:, 0])
    return replace(bank, kept=torch.stack([f(x) for f in kept], dim=-1)[None])


def near(target: float):
    """-(x1 - target)^2 / 2, whose mean at lambda is -((1 / lambda - target)^2 + 1) / 2."""
    return lambda x: -((x[:, 0] - target) ** 2) / 2


def keep(name: str, at_least: float, *, relative: bool = False) -> Constraint:
    return Constraint(name, Linear(direction=[1.0]).open(None), at_least, relative)  # the bank has its scores already


def found(banks: list[Bank], *constraints: Constraint) -> Optimum:
    solve = Reweight().begin(LawContext(banks=banks))
    curve = trace(solve, SLOPE, BOUNDS, 31)
    return constrained(optimum(solve, SLOPE, curve), solve, curve, gaps_of(Reweight(), constraints, banks, START))


def test_where_r1_rises_for_ever_the_level_is_the_optimum_and_its_interval_holds_it():
    """-((1 / lambda - 0.5)^2 + 1) / 2 = -1 at lambda = 2/3, below which it is less."""
    best = found([normal(0, 40000, near(0.5))], keep("near", -1.0))
    assert best.kind == "constrained" and best.interval is not None and best.log_se is not None
    assert best.interval[0] < 2 / 3 < best.interval[1] and best.lam == pytest.approx(2 / 3, rel=0.05)
    assert best.reason.startswith("near is kept down to lambda = ") and best.reason.endswith(
        "below it r1 would be higher"
    )


@pytest.mark.slow
def test_intervals_of_a_kept_level_hold_it():
    held = [found([normal(seed, 4096, near(0.0))], keep("near", -0.75)).interval for seed in range(30)]
    lam = math.sqrt(2)  # (1 / lambda)^2 = 0.5
    assert sum(ends is not None and ends[0] < lam < ends[1] for ends in held) >= 26


def test_a_level_relative_to_the_start_is_that_of_the_start_on_the_same_samples():
    """E[x1] = 1 / lambda: 0.5 more than at lambda = 3 is reached at 1 / (1/3 + 0.5) = 1.2, and kept below it."""
    best = found([normal(1, 20000, lambda x: -x[:, 0])], keep("less", -0.5, relative=True))
    assert best.kind == "constrained" and best.interval is not None
    assert best.interval[0] < 1.2 < best.interval[1]
    absolute = found([normal(1, 20000, lambda x: -x[:, 0])], keep("less", -1 / 3 - 0.5))
    assert absolute.lam == pytest.approx(best.lam, rel=0.03)


def test_of_several_levels_the_nearest_binds():
    bank = normal(2, 20000, near(0.5), lambda x: -x[:, 0])
    best = found([bank], keep("near", -1.0), keep("less", -1.0))
    assert best.lam == pytest.approx(1.0, rel=0.05) and best.reason.startswith("less")


def test_an_optimum_that_keeps_every_level_stays_the_optimum():
    bank = normal(3, 20000, near(0.5))
    bank = replace(bank, r1=bank.kept[..., 0])  # highest at lambda = 2
    free, kept = found([bank]), found([bank], keep("near", -2.0))
    assert kept == free and kept.kind == "interior"


def test_a_level_that_is_never_reached_is_named():
    best = found([normal(4, 20000, near(0.5))], keep("near", 1.0))
    assert best.kind == "infeasible" and "no lambda within reach keeps near at its level" in best.reason


def test_a_level_at_a_start_that_samples_do_not_know_is_named():
    bank = normal(5, 200, near(0.5))
    solve = Reweight().begin(LawContext(banks=[bank]))
    curve = trace(solve, SLOPE, BOUNDS)
    gaps = gaps_of(Reweight(), [keep("near", 0.0, relative=True)], [bank], 0.06)
    best = constrained(optimum(solve, SLOPE, curve), solve, curve, gaps)
    assert best.kind == "infeasible" and "too few to tell whether near is kept" in best.reason


def test_on_paper_the_root_is_exact():
    world = Gaussian(means={"a": [0.0, 0.0]}, std=1.0)
    lower = [(1.0, Linear(direction=[1.0, 0.0]))]

    def law(reward):
        return ClosedForm().begin(LawContext(exact=ExactWorld(world, ("a",), [(1.0, reward)], lower)))

    solve = law(Linear(direction=[1.0, 1.0]))
    curve = trace(solve, SLOPE, BOUNDS)
    gap = Gap("near", -1.5, None, (law(Quadratic(target=[0.5, 0.0], scale=0.5)),))
    best = constrained(optimum(solve, SLOPE, curve), solve, curve, [gap])
    assert best.lam == pytest.approx(2 / 3, rel=1e-12) and best.log_se == 0


def test_banks_are_joined_with_what_is_kept_and_a_score_that_is_no_number_is_named():
    a, b = normal(6, 10, near(0.0)), normal(7, 30, near(0.0))
    both = joined(a, b)
    assert both.kept is not None and both.kept.shape == (1, 40, 1) and not mistakes(both, ["p"])
    both.kept[0, 3] = math.nan
    assert "a reward under keep: is not a finite number for 1 of 40 scores" in mistakes(both, ["p"])[0]
