"""Times and log-SNR, there and back, against diffusers' own way back and on paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genbo.schedules.clock import Clock

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
BAR = (1 - BETAS).cumprod(0)
STEPS = Clock(999.0, 0.0, BAR.log() - (1 - BAR).log())
WORLD = Clock(-8.0, 8.0)


def test_at_a_training_step_stands_the_table():
    found = STEPS.log_snr(torch.arange(1000, dtype=torch.float64))
    torch.testing.assert_close(found.sigmoid(), BAR, rtol=1e-12, atol=0)


def test_between_two_it_is_a_straight_line_with_its_slope():
    time = torch.tensor([10.25, 500.5, 998.75], dtype=torch.float64, requires_grad=True)
    found = STEPS.log_snr(time)
    (slope,) = torch.autograd.grad(found.sum(), time)
    left = torch.tensor([10, 500, 998])
    before, after = STEPS.table[left], STEPS.table[left + 1]
    torch.testing.assert_close(slope, after - before)
    torch.testing.assert_close(found.detach(), before + torch.tensor([0.25, 0.5, 0.75]) * (after - before))


def test_the_way_back_is_diffusers_own():
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    sigmas = [14.6, 6.475, 1.0, 0.3, 0.0295]
    log_sigmas = np.log(((1 - BAR) / BAR).sqrt().numpy())
    expected = [float(scheduler._sigma_to_t(np.float64(s), log_sigmas)) for s in sigmas]
    found = STEPS.time(-2 * torch.tensor(sigmas, dtype=torch.float64).log())
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


@given(time=st.floats(0, 999))
@settings(deadline=None)
def test_there_and_back(time):
    there = STEPS.log_snr(torch.tensor([time], dtype=torch.float64))
    assert STEPS.time(there).item() == pytest.approx(time, abs=1e-6)


def test_what_is_beyond_the_ends_is_held():
    beyond = torch.tensor([-100.0, 100.0], dtype=torch.float64)
    assert STEPS.time(beyond).tolist() == [999, 0]
    assert WORLD.time(beyond).tolist() == [-8, 8]
    assert WORLD.log_snr(beyond) is beyond


@given(gaps=st.lists(st.floats(1, 200), min_size=3, max_size=8))
@settings(deadline=None)
def test_settled_stops_are_whole_steps_within_half_of_one_and_stay_apart(gaps):
    times = torch.tensor([999.0, *gaps], dtype=torch.float64)
    times[1:] = 999.0 - times[1:].cumsum(0) * 990 / max(990.0, sum(gaps))
    whole = STEPS.settled(times)
    assert torch.equal(whole, whole.round()) and whole[0] == 999
    assert (whole.diff() <= -1).all() and whole[-1] >= 0
    if (times.diff() <= -1).all():
        assert (whole - times).abs().max() <= 1


def test_settling_leaves_a_world_alone():
    times = torch.tensor([-8.0, 0.3, 0.30001], dtype=torch.float64)
    assert WORLD.settled(times) is times


def test_stops_that_crowd_at_the_end_are_spread():
    assert STEPS.settled(torch.tensor([999.0, 1.4, 0.4, 0.2])).tolist() == [999, 2, 1, 0]
