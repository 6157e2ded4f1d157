"""Weighted sums of both rewards against closed forms, at the KL of a tilt."""

from __future__ import annotations

from dataclasses import replace

import pytest

from genbo.bilevel.lower.closed_form import ClosedForm
from genbo.bilevel.lower.reweight import Reweight
from genbo.bilevel.regularization.context import ExactWorld, LawContext
from genbo.bilevel.regularization.weighted_sum import WEIGHTS, at_kl
from genbo.diffusion.models.gaussian import Gaussian
from genbo.rewards.linear import Linear
from genbo.rewards.quadratic import Quadratic
from tests.bilevel.test_best_of_n import normal_bank

KL = 0.3
WORLD = ExactWorld(
    Gaussian(means={"a": [0.0, 0.0]}, std=1.0),
    ("a",),
    [(1.0, Quadratic(target=[1.5, 0.0], scale=0.5))],
    [(1.0, Linear(direction=[1.0, 0.0]))],
)


def test_it_is_the_closed_form_at_every_weight():
    """Of N(0, I): what the samples give is the exact law of the sum at the same weight and KL."""
    bank = normal_bank(0)
    sampled = at_kl(Reweight().begin(LawContext(banks=[bank])), bank, KL)
    exact = at_kl(ClosedForm().begin(LawContext(exact=WORLD)), bank, KL)
    assert len(sampled) == len(exact) == len(WEIGHTS)
    for one, known in zip(sampled, exact, strict=True):
        assert one.weight == known.weight and known.law.kl.mean == pytest.approx(KL, rel=1e-3)
        assert one.law.r1.mean == pytest.approx(known.law.r1.mean, abs=5 * one.law.r1.se)
        assert one.law.r2.mean == pytest.approx(known.law.r2.mean, abs=5 * one.law.r2.se)
        assert one.strength == pytest.approx(known.strength, rel=0.05)


def test_its_law_is_the_product_that_it_promises():
    """(r1 + w r2) / tau of a normal law stays normal: variance tau / (tau + 1), mean (1.5 + w) / (tau + 1)."""
    for one in at_kl(ClosedForm().begin(LawContext(exact=WORLD)), normal_bank(0), KL):
        mean = (1.5 + one.weight) / (one.strength + 1)
        assert one.law.r2.mean == pytest.approx(mean, rel=1e-9)


def test_a_larger_weight_trades_the_upper_reward_for_the_lower_one():
    found = at_kl(ClosedForm().begin(LawContext(exact=WORLD)), normal_bank(0), KL)
    r1, r2 = ([getattr(one.law, name).mean for one in found] for name in ("r1", "r2"))
    assert r1 == sorted(r1, reverse=True) and r2 == sorted(r2)


def test_a_kl_that_the_samples_do_not_reach_has_no_row():
    bank = normal_bank(0, 64)
    assert at_kl(Reweight().begin(LawContext(banks=[bank])), bank, 4.0) == ()


def test_a_sum_that_is_the_same_for_every_sample_has_no_row():
    """r1 = -r2 at equal weights; the other weights tilt by r2 up or down."""
    bank = normal_bank(0)
    bank = replace(bank, r1=-bank.r2)
    assert len(at_kl(Reweight().begin(LawContext(banks=[bank])), bank, KL)) == len(WEIGHTS) - 1
