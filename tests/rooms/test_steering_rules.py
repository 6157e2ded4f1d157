"""What every steering rule promises: nothing at strength 0, rows by themselves, derivatives, and a tuned folder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.process import process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Seed, batch_of
from genbo.diffusion.steer import Climbed
from genbo.diffusion.tuned import export, load
from genbo.rewards.linear import Linear
from tests.rooms.conftest import example_of

ROWS = 5


def numbers(seed: int) -> Tensor:
    return torch.rand(ROWS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1


@pytest.fixture
def steering_rule(steering_rule_class):
    return steering_rule_class(**example_of(steering_rule_class))


def test_a_pull_is_a_number_a_row(steering_rule):
    found = steering_rule.pull(numbers(0), numbers(1), numbers(2))
    assert found.shape == (ROWS,) and found.dtype == torch.float64 and found.isfinite().all() and found.any()


def test_strength_0_pulls_at_nothing(steering_rule):
    assert not steering_rule.pull(numbers(0), numbers(1), torch.zeros(ROWS, dtype=torch.float64)).any()


def test_more_strength_pulls_harder(steering_rule):
    weak, strong = (steering_rule.pull(numbers(0), numbers(1), s * numbers(2)) for s in (1, 2))
    assert (strong.abs() > weak.abs()).all() and (strong * weak > 0).all()


def test_rows_are_by_themselves(steering_rule):
    together = steering_rule.pull(numbers(0), numbers(1), numbers(2))
    for k in range(ROWS):
        assert torch.equal(steering_rule.pull(numbers(0)[k], numbers(1)[k], numbers(2)[k]), together[k])


def test_every_tensor_has_a_derivative(steering_rule):
    live = [numbers(k).requires_grad_() for k in range(3)]
    assert torch.autograd.gradcheck(
        lambda r, v, s: steering_rule.pull(r, v, s) + 0 * (r + v), live, eps=1e-6, atol=1e-6
    )


def test_a_variance_below_0_is_taken_for_none(steering_rule):
    """Of a network that is no exact denoiser."""
    zero = torch.zeros(ROWS, dtype=torch.float64)
    found = steering_rule.pull(numbers(0), -1000 * numbers(1), numbers(2))
    assert torch.equal(found, steering_rule.pull(numbers(0), zero, numbers(2)))


def test_it_says_how_far_it_may_go_and_how_often(steering_rule):
    assert steering_rule.mistakes() == []
    assert steering_rule.most is None or steering_rule.most > 0
    assert isinstance(steering_rule.passes, int) and steering_rule.passes >= 0


def test_it_draws_from_a_pipeline_and_again_from_its_tuned_folder(steering_rule, tiny_sd, tmp_path):
    """With another strength at each step, as tuning leaves it: `genbo.load` of the folder draws the same samples."""
    model = Diffusers(pretrained=str(tiny_sd), device="cpu", dtype="fp32").open()
    red = Linear([1.0, 0.0, -1.0])
    plain = process_of(model, Ddim(steps=3), Plain(2.0))
    process = plain.steered([Climbed(0.5, red.open(), red)], [3.0, 1 / 3, 0.1], steering_rule)
    batch = batch_of(("a red apple", "a dog"), 2, Seed(0))
    export(process, tmp_path / "tuned", {})
    again = load(tmp_path / "tuned", device="cpu", dtype="fp32").process
    assert again.steer.rule == steering_rule and torch.equal(again.steer.strength, process.steer.strength)
    with torch.no_grad():
        drawn = sample(process, batch)
        assert torch.equal(sample(again, batch), drawn) and not torch.equal(sample(plain, batch), drawn)
