"""The sum of a sample's numbers along a direction, against its own definition."""

from __future__ import annotations

import pytest
import torch

from genbo.rewards.linear import Linear

X = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=torch.float64).reshape(2, 2, 1, 1)


@pytest.mark.parametrize(
    ("direction", "scores"), [(1.0, [3.0, -0.5]), ([1.0, 0.0], [1.0, -1.0]), ([0.5, -2.0], [-3.5, -1.5])]
)
def test_scores_are_a_sum_by_channel(direction, scores):
    assert Linear(direction).open()(X, ["", ""]).tolist() == scores


def test_every_number_of_a_channel_counts():
    images = torch.ones(1, 3, 4, 4)
    assert Linear([1.0, 0.0, -0.5]).open()(images, [""]).item() == 8.0


def test_the_gradient_is_the_direction():
    x = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(Linear([2.0, -1.0]).open()(x, ["", ""]).sum(), x)
    assert grad.flatten().tolist() == [2.0, -1.0, 2.0, -1.0]


@pytest.mark.parametrize(
    ("direction", "said"),
    [([], "the list is empty"), (float("nan"), "must be finite"), ([0.0, 0.0], "every number is 0")],
)
def test_mistakes_of_linear(direction, said):
    (mistake,) = Linear(direction).mistakes()
    assert mistake.startswith("direction: ") and said in mistake and "; " in mistake


def test_a_direction_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="3 numbers, but the samples have 2 channels"):
        Linear([1.0, 2.0, 3.0]).open()(X, ["", ""])
