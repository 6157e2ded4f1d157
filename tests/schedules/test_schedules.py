"""Noise schedules: their formulas against the papers', and what holds for any parameters at all."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from genbo.schedules.cosine import Cosine
from genbo.schedules.linear import Linear
from genbo.schedules.link import Bounded, Rising
from genbo.schedules.piecewise import Piecewise, like
from genbo.schedules.schedule import ENDS, LINE, LOWEST, Schedule, schedule_of
from genbo.schedules.sigmoid import Sigmoid

FAMILIES: list[Any] = [
    Cosine(),
    Cosine(start=0.1, end=0.8, tau=2.0, eps=0.03),
    Cosine(end=0.6, normalised=False),
    Sigmoid(),
    Sigmoid(start=0.0, end=3.0, tau=0.3),
    Sigmoid(normalised=False),
    Linear(),
    Linear(beta_start=2.0, beta_end=7.0, normalised=False),
    Piecewise(),
    Piecewise([0.1, 0.2, 0.9], 12.0, -6.0),
]
T = torch.linspace(0, 1, 1001, dtype=torch.float64)
any_number = st.floats(allow_nan=False)  # infinities included


def at(family: Any, u: dict[str, torch.Tensor], **options: Any) -> Schedule:
    return Schedule(family, {name: link.value(u[name]) for name, link in family.links.items()}, **options)


# -- for any parameters ------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(data=st.data(), zero_terminal=st.booleans())
@pytest.mark.parametrize("family", [Cosine(), Sigmoid(), Linear(), Piecewise(), Cosine(normalised=False)], ids=repr)
def test_every_coordinate_is_a_valid_schedule(family, data, zero_terminal):
    u = {
        name: torch.tensor([[data.draw(any_number) for _ in range(link.size)]], dtype=torch.float64, requires_grad=True)
        for name, link in family.links.items()
    }
    schedule = at(family, u, zero_terminal=zero_terminal)
    alpha, sigma = schedule.levels(T)
    log_snr = schedule.log_snr(T)
    assert alpha.isfinite().all() and sigma.isfinite().all() and log_snr.isfinite().all()
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    assert (alpha.diff() < 0).all(), "SNR falls strictly"
    assert (log_snr.diff() < (1e-12 if zero_terminal else 0)).all(), "so does its log, until it is held at its floor"
    assert (alpha[0, -1] == 0) if zero_terminal else (alpha > 0).all()
    assert log_snr[0, 0].item() == pytest.approx(schedule.values["log_snr_max"].item(), abs=1e-6)
    grads = torch.autograd.grad((alpha + 2 * sigma + log_snr / 7).sum(), list(u.values()))
    assert all(grad.isfinite().all() for grad in grads)
    betas = torch.tensor(schedule.trained_betas(50))
    assert ((betas >= 0) & (betas <= 1)).all()


def test_a_level_that_falls_to_almost_nothing_leaves_betas_below_one():
    """Where float32 would round a beta up to 1, the product would be 0 before the end."""
    betas = schedule_of(Piecewise(log_snr_max=60.0, log_snr_min=-60.0)).trained_betas(4)
    assert len(betas) == 4 and all(0 <= beta < 1 for beta in betas)


@settings(deadline=None)
@given(u=st.lists(any_number, min_size=3, max_size=3))
def test_no_link_leaves_its_domain(u):
    for link in (*Cosine.links.values(), *Sigmoid.links.values(), *Linear.links.values()):
        assert link.why_not([link.value(torch.tensor(u[:1], dtype=torch.float64)).item()]) is None
    assert Rising(3).why_not(Rising(3).value(torch.tensor(u, dtype=torch.float64)).tolist()) is None


@pytest.mark.parametrize("link", [Bounded(-3.0, 2.0), Bounded(0.1, 4.0, log=True), Rising(4)], ids=repr)
def test_coordinates_are_the_inverse_of_the_link(link):
    u = torch.linspace(-3, 3, link.size * 6, dtype=torch.float64).reshape(6, link.size)
    torch.testing.assert_close(link.coordinates(link.value(u)), u, atol=1e-8, rtol=1e-8)


def test_what_is_none_of_a_parameters_is_said():
    assert Bounded(0.0, 1.0).why_not([2.0]) == "2 is outside [0, 1]"
    assert Bounded(0.0, 1.0).why_not([0.1, 0.2]) == "one number is wanted, not 2"
    assert Rising(2).why_not([0.5]) == "2 numbers are wanted, not 1"
    assert Rising(2).why_not([0.5, 0.4]) == "the numbers must rise, from 0 to 1"
    assert Bounded(0.0, 1.0).why_not([1.0]) is None and Rising(2).why_not([0.4, 0.4]) is None


@pytest.mark.parametrize("zero_terminal", [False, True])
@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_derivatives_are_those_of_the_levels(family, zero_terminal):
    names = list(family.links)
    t = torch.tensor([0.0, 0.13, 0.5, 0.77, 1.0], dtype=torch.float64)
    start = [torch.tensor([family.starts()[name]], dtype=torch.float64) for name in names]
    u = [family.links[n].coordinates(v).requires_grad_() for n, v in zip(names, start, strict=True)]

    def levels(*u: torch.Tensor) -> torch.Tensor:
        return torch.cat(at(family, dict(zip(names, u, strict=True)), zero_terminal=zero_terminal).levels(t))

    assert torch.autograd.gradcheck(levels, u, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_members_are_schedules_of_their_own(family):
    u = {
        n: torch.linspace(-2, 2, 3 * link.size, dtype=torch.float64).reshape(3, -1) for n, link in family.links.items()
    }
    together = at(family, u)
    alone = [at(family, {n: v[m : m + 1] for n, v in u.items()}) for m in range(3)]
    assert together.members == 3
    torch.testing.assert_close(together.log_snr(T), torch.cat([q.log_snr(T) for q in alone]), rtol=0, atol=1e-12)
    times = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    own = torch.cat([q.log_snr(times[m]) for m, q in enumerate(alone)])
    torch.testing.assert_close(together.log_snr(times), own, rtol=0, atol=1e-12)


# -- the papers' formulas ----------------------------------------------------------------------------------------------


def stretched(f: np.ndarray, normalised: bool, high: float = 10.0, low: float = -10.0) -> np.ndarray:
    a_0, a_1 = 1 / (1 + math.exp(-high)), 1 / (1 + math.exp(-low))
    return a_1 + (a_0 - a_1) * ((f - f[-1]) / (f[0] - f[-1]) if normalised else f / f[0])


def chen(family: Any) -> np.ndarray:
    """2301.10972, Alg. 1, with Nichol and Dhariwal's offset; before it is clipped."""
    t, p = T.numpy(), family
    s = p.start + (p.end - p.start) * t
    if isinstance(family, Cosine):
        return np.cos((s + p.eps) / (1 + p.eps) * np.pi / 2) ** (2 * p.tau)
    return 1 / (1 + np.exp(s / p.tau))


@pytest.mark.parametrize("family", [f for f in FAMILIES if isinstance(f, Cosine | Sigmoid)], ids=repr)
def test_chens_families_are_chens(family):
    p = {name: torch.tensor([numbers], dtype=torch.float64) for name, numbers in family.starts().items()}
    found = family.log_snr(T[None], p)[0].sigmoid().numpy()
    np.testing.assert_allclose(found, stretched(chen(family), family.normalised), rtol=1e-9, atol=1e-12)


def chens_code(t: float, start: float = -3, end: float = 3, tau: float = 1.0) -> float:
    """`sigmoid_schedule` of 2301.10972, Algorithm 1, with its own defaults, on plain numbers."""

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    v_start, v_end = sigmoid(start / tau), sigmoid(end / tau)
    return (v_end - sigmoid((t * (end - start) + start) / tau)) / (v_end - v_start)


def test_the_sigmoid_at_its_defaults_is_chens():
    """A quarter of the way 0.8509 of the signal is left, by hand; what ends do to it is under 1e-4, the line 3e-4."""
    assert chens_code(0.25) == pytest.approx((0.9525741 - 0.1824255) / 0.9051483, rel=1e-6)
    wanted = torch.tensor([chens_code(t) for t in T.tolist()], dtype=torch.float64)
    torch.testing.assert_close(schedule_of(Sigmoid()).levels(T)[0][0] ** 2, wanted, atol=4e-4, rtol=0)


def test_the_cosine_at_its_defaults_is_diffusers():
    table = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.double()
    torch.testing.assert_close(schedule_of(Cosine()).alphas_cumprod()[0], table, atol=1e-3, rtol=0)


def test_linear_betas_are_ddpms():
    """The product of 1 - beta and the exponential of the sum differ by half the sum of beta^2, and no more."""
    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02)
    ours = schedule_of(Linear()).alphas_cumprod()[0]
    apart = (ours.log() - scheduler.alphas_cumprod.double().log())[:900]
    second_order = (scheduler.betas.double() ** 2).cumsum(0)[:900] / 2
    assert ((apart - second_order).abs() < 0.02).all()


def test_eps_is_no_parameter_of_its_own():
    """The same curve from (start + eps) / (1 + eps) to (end + eps) / (1 + eps)."""
    one = Cosine(start=0.1, end=0.9, tau=1.5, eps=0.2)
    other = replace(one, start=(0.1 + 0.2) / 1.2, end=(0.9 + 0.2) / 1.2, eps=0.0)
    torch.testing.assert_close(schedule_of(one).log_snr(T), schedule_of(other).log_snr(T))


def test_only_a_small_share_is_the_straight_line():
    for family in FAMILIES:
        schedule = schedule_of(family)
        plain = family.log_snr(T[None], schedule.values)
        straight = torch.lerp(schedule.values["log_snr_max"], schedule.values["log_snr_min"], T[None])
        torch.testing.assert_close(schedule.log_snr(T), plain + LINE * (straight - plain))
        assert (schedule.log_snr(T) - plain).abs().max() < 3e-3


def test_piecewise_goes_through_its_knots_in_straight_lines():
    schedule = schedule_of(Piecewise([0.1, 0.2, 0.9], 12.0, -6.0))
    knots = [12.0, 12 - 18 * 0.1, 12 - 18 * 0.2, 12 - 18 * 0.9, -6.0]
    wanted = np.interp(T.numpy(), np.linspace(0, 1, 5), knots)
    np.testing.assert_allclose(schedule.log_snr(T)[0].numpy(), wanted, atol=LINE * 18)
    even = schedule_of(Piecewise(3)).log_snr(T)[0]
    torch.testing.assert_close(even, 10 - 20 * T)


def test_piecewise_can_start_from_any_other_schedule():
    cosine = schedule_of(Cosine(tau=1.7))
    errors = []
    for inner in (3, 7, 15):
        copy = schedule_of(like(cosine, inner))
        knots = torch.arange(inner + 2, dtype=torch.float64) / (inner + 1)
        torch.testing.assert_close(copy.log_snr(knots), cosine.log_snr(knots), atol=1e-3, rtol=0)
        errors.append((copy.log_snr(T) - cosine.log_snr(T))[0, 100:900].abs().max().item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


# -- the end of time ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [0.6, 0.8, 1.0])
def test_the_signal_at_the_end_is_what_was_chosen(end):
    for low in (-6.0, -10.0):
        last = schedule_of(Cosine(end=end, log_snr_min=low)).log_snr(T)[0, -1].item()
        assert last == pytest.approx(low, abs=1e-9)
        left = schedule_of(Cosine(end=end, log_snr_min=low, normalised=False)).alphas_cumprod()[0, -1].item()
        assert left == pytest.approx(math.cos(math.pi / 2 * (end + 0.008) / 1.008) ** 2, abs=3e-3)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_zero_terminal_is_lins(family):
    """diffusers' `rescale_zero_terminal_snr` of the same betas, which starts from the first step and not from t = 0."""
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    family = replace(family, log_snr_max=14.0)
    betas = torch.tensor(schedule_of(family).trained_betas(), dtype=torch.float64)
    wanted = (1 - rescale_zero_terminal_snr(betas)).cumprod(0)
    found = schedule_of(family, zero_terminal=True)
    torch.testing.assert_close(found.alphas_cumprod()[0], wanted, atol=3e-4, rtol=0)
    assert found.alphas_cumprod()[0, -1] == 0 and found.log_snr(T)[0, -1].item() == pytest.approx(LOWEST)


def test_zero_terminal_is_refused_to_a_prediction_of_the_noise():
    zero, usual = schedule_of(Cosine(), zero_terminal=True), schedule_of(Cosine())
    refusal = zero.why_not("epsilon")
    assert refusal is not None and "; use prediction: v_prediction or sample" in refusal
    assert zero.why_not("v_prediction") is None and usual.why_not("epsilon") is None


# -- diffusers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_terminal", [False, True])
@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_a_diffusers_scheduler_has_our_table(family, zero_terminal):
    """To a rounding of float32 at every entry; 1 - beta has no more digits than beta leaves it."""
    schedule = schedule_of(family, zero_terminal=zero_terminal)
    betas = schedule.trained_betas(1000)
    assert len(betas) == 1000 and all(isinstance(beta, float) for beta in betas)
    scheduler = DDIMScheduler(trained_betas=betas, prediction_type="v_prediction")
    ours, theirs = schedule.alphas_cumprod()[0], scheduler.alphas_cumprod.double()
    digits = 1.2e-7 + 6e-8 / (1 - torch.tensor(betas, dtype=torch.float64)).clamp(min=1e-30)
    assert ((theirs - ours).abs() <= digits * ours).all()
    assert (theirs.diff() <= 0).all()


def test_roundings_would_add_up_without_care():
    ours = schedule_of(Cosine()).alphas_cumprod()[0]
    plain = 1 - ours / torch.cat([torch.ones(1, dtype=torch.float64), ours[:-1]])
    careless = DDIMScheduler(trained_betas=plain.tolist()).alphas_cumprod.double()
    careful = DDIMScheduler(trained_betas=schedule_of(Cosine()).trained_betas()).alphas_cumprod.double()
    assert ((careless - ours) / ours).abs().max() > 8 * ((careful - ours) / ours).abs().max()


def test_members_have_no_common_betas():
    schedule = Schedule(Cosine(), {**schedule_of(Cosine()).values, "tau": torch.tensor([[1.0], [2.0]]).double()})
    with pytest.raises(ValueError, match="2 members"):
        schedule.trained_betas()


def test_ends_are_parameters_of_every_family():
    assert all({**family.links, **ENDS} == dict(family.links) for family in FAMILIES)
