"""The shape of a verdict: numbers made by hand, the tables' quantiles, and how often noise is called a ruin."""

from __future__ import annotations

import math

import pytest
import torch

from genbo.bilevel.interval import student_t
from genbo.bilevel.verdict import compare, shape, shape_of

T3_975 = 3.182446  # Student's quantiles, from the tables
T3_995 = 5.840909
T4_975 = 2.776445


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_what_prompts_did_by_hand():
    found = shape(tensor(0.3, 0.1, -0.4, 0.0, 0.2), ("a", "a", "b", "c", "d"))
    assert (found.gained, found.lost, found.unchanged) == (2, 1, 1)
    assert found.median == pytest.approx(0.1)  # of 0.2, -0.4, 0, 0.2
    assert found.worst == ("b", -0.4)
    assert found.ruined == ()


def test_the_mean_can_rise_by_one_prompt_alone():
    found = compare(torch.zeros(5), tensor(-0.1, -0.1, -0.1, -0.1, 3.0), ("a", "b", "c", "d", "e"))
    assert found.difference == pytest.approx(0.52)
    assert (found.shape.gained, found.shape.lost, found.shape.median) == (1, 4, pytest.approx(-0.1))


def test_prompts_count_the_same_however_often_they_are_drawn():
    """Means 1 and -3 of prompts with six and two samples: -1, and not the mean of all samples, which is 0."""
    gains, prompts = tensor(1, 1, 1, 1, 1, 1, -3, -3), ("a",) * 6 + ("b",) * 2
    found = compare(torch.zeros(8), gains, prompts)
    assert found.difference == pytest.approx(-1)
    assert found.shape.median == pytest.approx(-1)
    assert (found.samples, found.prompts, found.groups) == (8, 2, 2)


def test_what_is_counted_is_not_the_number_of_prompts():
    """Four samples of two prompts under fresh seeds: within them the interval counts four, of two."""
    found = compare(torch.zeros(4), tensor(0.1, 0.3, 0.2, 0.4), ("a", "a", "b", "b"), fresh_prompts=False)
    assert (found.prompts, found.groups) == (2, 4)
    within = math.sqrt(4 * 0.1**2 / 2 * (1 / 2 + 1 / 2)) / 2  # degrees: four samples less two means
    assert found.interval[1] - found.difference == pytest.approx(4.302653 * within, rel=1e-5)


def test_pairs_are_paired():
    """Scores that differ by far more between samples than between the sides."""
    start = tensor(0, 100, -50, 7)
    found = compare(start, start + tensor(1.0, 1.1, 0.9, 1.0), ("a", "b", "c", "d"))
    half = T3_975 * math.sqrt(0.02 / 3) / 2
    assert found.interval == pytest.approx((1 - half, 1 + half), rel=1e-5)


def test_a_prompt_is_ruined_by_an_interval_of_its_own():
    """Four samples of one prompt, one of every other: one interval, so the level is 95 % itself."""
    gains = tensor(-1.0, -1.1, -0.9, -1.0, 5, 6, 7)
    found = compare(torch.zeros(7), gains, ("bad",) * 4 + ("a", "b", "c"))
    (ruined,) = found.shape.ruined
    half = T3_975 * math.sqrt(0.02 / 3) / 2
    assert (ruined.prompt, ruined.samples) == ("bad", 4)
    assert ruined.difference == pytest.approx(-1.0)
    assert ruined.interval == pytest.approx((-1 - half, -1 + half), rel=1e-5)
    assert found.difference > 0


def test_the_level_counts_the_prompts_that_are_looked_at():
    """Five prompts of four samples: t at 1 - 0.025 / 5 = 0.995 with three degrees."""
    noise = (-0.1, 0.1, -0.1, 0.1)
    gains = tensor(*(mean + x for mean in (-1.0, 1.0, 2.0, 3.0, 4.0) for x in noise))
    (ruined,) = shape(gains, tuple(p for p in "abcde" for _ in range(4))).ruined
    half = T3_995 * math.sqrt(4 * 0.01 / 3) / 2
    assert ruined.interval == pytest.approx((-1 - half, -1 + half), rel=1e-5)


def test_two_samples_that_agree_by_chance_are_no_proof():
    """Scores that are 0 or 1: two losses of exactly 1, where other prompts spread as much."""
    gains, prompts = tensor(-1, -1, 1, -1, 1, 0, -1, 1), ("a", "a", "b", "b", "c", "c", "d", "d")
    assert shape(gains, prompts).ruined == ()


def test_one_sample_of_each_prompt_ruins_none():
    assert shape(tensor(-100, 1, 1), ("a", "b", "c")).ruined == ()


@pytest.mark.parametrize("tail", ["normal", "exponential"])
def test_noise_is_rarely_called_a_ruin(tail):
    """Sixteen prompts that did not change, of very different spread: some is called ruined in 2.5 of 100 runs."""
    generator = torch.Generator().manual_seed(0)
    prompts = tuple(str(i) for i in range(16) for _ in range(6))
    spread = torch.logspace(-1, 1, 16, dtype=torch.float64).repeat_interleave(6)
    alarms = 0
    for _ in range(400):
        noise = torch.randn(96, generator=generator, dtype=torch.float64)
        if tail == "exponential":
            noise = torch.empty(96, dtype=torch.float64).exponential_(generator=generator) - 1
        alarms += bool(shape(noise * spread, prompts).ruined)
    assert alarms <= 20  # 5 of 100


def test_a_real_ruin_is_seen_beside_gains():
    generator = torch.Generator().manual_seed(1)
    prompts = tuple(str(i) for i in range(16) for _ in range(8))
    means = torch.full((16,), 0.5, dtype=torch.float64)
    means[3] = -0.5
    seen = 0
    for _ in range(50):
        noise = 0.1 * torch.randn(128, generator=generator, dtype=torch.float64)
        seen += [r.prompt for r in shape(means.repeat_interleave(8) + noise, prompts).ruined] == ["3"]
    assert seen == 50


def test_the_shape_of_means():
    found = shape_of({"a": 1.0, "b": -2.0, "c": 0.0})
    assert (found.gained, found.lost, found.unchanged, found.median, found.worst) == (1, 1, 1, 0.0, ("b", -2.0))


@pytest.mark.parametrize(
    ("p", "degrees", "quantile"),
    [(0.975, 3, T3_975), (0.995, 3, T3_995), (0.975, 4, T4_975), (0.9995, 1, 636.6193), (0.9995, 2, 31.59905)],
)
def test_students_quantile_far_out(p, degrees, quantile):
    assert student_t(p, degrees) == pytest.approx(quantile, rel=1e-5)
