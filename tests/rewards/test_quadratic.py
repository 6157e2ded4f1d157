"""The distance to a target, by hand."""

from __future__ import annotations

import pytest
import torch

from genbo.rewards.quadratic import Quadratic


def test_by_hand():
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64).reshape(2, 2, 1, 1)
    assert Quadratic().open()(x, ["", ""]).tolist() == [-5, 0]
    assert Quadratic(target=[1.0, 0.0], scale=0.5).open()(x, ["", ""]).tolist() == [-2, -0.5]


def test_a_list_is_a_number_a_channel_of_an_image():
    images = torch.zeros(1, 3, 4, 5)
    assert Quadratic(target=[0.0, 0.0, 1.0]).open()(images, [""]).tolist() == [-20]


def test_gradient_on_paper():
    x = torch.randn(3, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(Quadratic(target=0.7, scale=3.0).open()(x, [""] * 3).sum(), x)
    torch.testing.assert_close(grad, -6 * (x - 0.7))


@pytest.mark.parametrize(("dtype", "scored"), [("float64", "float64"), ("float32", "float32"), ("bfloat16", "float32")])
def test_precision_is_kept_or_raised(dtype, scored):
    x = torch.zeros(2, 1, 1, 1, dtype=getattr(torch, dtype))
    assert Quadratic().open()(x, ["", ""]).dtype == getattr(torch, scored)


def test_a_target_of_the_wrong_length_is_a_sentence():
    with pytest.raises(ValueError, match="3 numbers, but the samples have 2 channels; give one number"):
        Quadratic(target=[0.0] * 3).open()(torch.zeros(1, 2, 1, 1), [""])


@pytest.mark.parametrize(("target", "said"), [([], "the list is empty"), (float("nan"), "must be finite")])
def test_mistakes(target, said):
    (mistake,) = Quadratic(target=target).mistakes()
    assert mistake.startswith("target: ") and said in mistake
