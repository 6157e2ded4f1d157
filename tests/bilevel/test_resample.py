"""Samples that are drawn again by their weights have the law that the weights stand for."""

from __future__ import annotations

import math

import pytest
import torch

from genbo.bilevel.regularization.bank import Bank, bank_of
from genbo.bilevel.regularization.resample import resampled


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_frequencies_are_the_weights_of_each_prompt() -> None:
    """Weights on paper: exp(r2 / lambda) p0 / q, normalised within a prompt."""
    r2 = torch.tensor([[0.0, math.log(2), math.log(5)], [math.log(3), 0.0, 0.0]], dtype=torch.float64)
    log_ratio = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, math.log(4)]], dtype=torch.float64)
    x = torch.arange(6, dtype=torch.float64).reshape(2, 3, 1)
    bank = Bank(torch.zeros_like(r2), r2, log_ratio, x)
    number = 40_000
    for lam, wanted in ((1.0, [[1, 2, 5], [3, 1, 4]]), (0.5, [[1, 4, 25], [9, 1, 4]])):
        drawn = resampled(bank, lam, number, seeded())
        assert drawn.shape == (2, number, 1)
        for prompt, weights in enumerate(wanted):
            for sample, weight in enumerate(weights):
                p = weight / sum(weights)
                found = (drawn[prompt] == x[prompt, sample]).double().mean().item()
                assert abs(found - p) < 5 * math.sqrt(p * (1 - p) / number)


def test_a_gaussian_moves_as_the_tilt_says() -> None:
    """p0 = N(0, 1) and r2 = x: p_lambda = N(1 / lambda, 1)."""
    x = torch.randn(1, 100_000, 1, dtype=torch.float64, generator=seeded())
    bank = Bank(x[..., 0] * 0, x[..., 0], x[..., 0] * 0, x)
    drawn = resampled(bank, 2.0, 20_000, seeded())
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.04)
    assert drawn.std().item() == pytest.approx(1.0, abs=0.03)


def test_the_same_generator_draws_the_same() -> None:
    x = torch.randn(3, 50, 2, generator=seeded())
    bank = Bank(*(torch.zeros(3, 50, dtype=torch.float64) for _ in range(3)), x)
    assert torch.equal(resampled(bank, 1.0, 9, seeded()), resampled(bank, 1.0, 9, seeded()))


def test_a_bank_without_its_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="does not hold its samples"):
        resampled(bank_of(torch.zeros(4), torch.zeros(4)), 1.0, 2, seeded())
