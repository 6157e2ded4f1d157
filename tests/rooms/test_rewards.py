"""What every reward promises: a number a row, from that row alone, with gradients where it says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from genbo.bilevel.scoring import OfSets, Taught
from genbo.diffusion.kinds import declared
from genbo.rewards._tokens import TokenReader
from genbo.rewards._traits import Comparing, RewardTraits

PROMPTS = ("a red apple", "a dog", "a blue house", "a dog", "nothing at all")


class Beside:
    """A reward that wants a teacher's sample beside each, with the same one beside all."""

    def __init__(self, reward: Any) -> None:
        self.reward, self.differentiable = reward, reward.differentiable

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        teacher = torch.linspace(0, 1, images[0].numel(), dtype=images.dtype).reshape(images[0].shape)
        return self.reward.beside(images, teacher.expand_as(images))


@pytest.fixture
def reward(reward_class, example):
    if declared(RewardTraits, reward_class).of_sets:
        pytest.skip("is of all samples together: see below")
    opened = example(reward_class).open("cpu")
    return Beside(opened) if isinstance(opened, Taught) else opened


@pytest.fixture
def images() -> torch.Tensor:
    x = torch.rand(len(PROMPTS), 3, 24, 24, generator=torch.Generator().manual_seed(0))
    return x * torch.linspace(0.2, 0.9, len(PROMPTS)).reshape(-1, 1, 1, 1)


def test_a_finite_number_a_row(reward, images):
    scores = reward(images, PROMPTS)
    assert scores.shape == (len(PROMPTS),)
    assert scores.dtype in (torch.float32, torch.float64)
    assert scores.isfinite().all()
    assert scores.std() > 0, "the reward cannot tell these images apart"


def test_a_row_does_not_know_its_batch(reward, images):
    together = reward(images, PROMPTS)
    alone = torch.cat([reward(image[None], [prompt]) for image, prompt in zip(images, PROMPTS, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    order = [3, 0, 4, 2, 1]
    shuffled = reward(images[order], [PROMPTS[i] for i in order])
    torch.testing.assert_close(shuffled, together[order], atol=1e-5, rtol=1e-5)


def test_the_same_twice_and_the_images_untouched(reward, images):
    before = images.clone()
    assert torch.equal(reward(images, PROMPTS), reward(images, PROMPTS))
    assert torch.equal(images, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_precision_of_image_is_scored_in_single_or_double(reward, images, dtype):
    scores = reward(images.to(dtype), PROMPTS)
    assert scores.dtype in (torch.float32, torch.float64)
    # an image in bfloat16 is another image, up to its 8 bits
    tolerance = 1e-5 if dtype != torch.bfloat16 else 2e-2
    torch.testing.assert_close(scores.float(), reward(images, PROMPTS), atol=tolerance, rtol=tolerance)


def test_prompts_are_read_where_it_says_so(reward, reward_class, example, images):
    """What does not say `reads_prompts` scores images without prompts, and counts no tokens."""
    others = tuple(f"another {prompt} altogether" for prompt in PROMPTS[::-1])
    if not declared(RewardTraits, example(reward_class)).reads_prompts:
        assert torch.equal(reward(images, others), reward(images, PROMPTS))


def test_opened_and_unopened_say_the_same_of_gradients(reward, reward_class):
    assert reward.differentiable is declared(RewardTraits, reward_class).differentiable


def test_what_options_declare_is_of_the_type_that_the_record_says(reward_class, example):
    options = example(reward_class)
    traits = declared(RewardTraits, options)
    types = {
        "lesson": tuple | None,
        "folder": Path | None,
        "weights_file": Path | None,
        "pretrained": str,
        "model": str,
    }
    for field in fields(RewardTraits):
        value = getattr(traits, field.name)
        assert callable(value) if field.name == "readers" else isinstance(value, types.get(field.name, bool)), field
    assert all(isinstance(reader, TokenReader) for reader in traits.readers())
    assert traits.needs_data == (not traits.of_sets or isinstance(options.open("cpu"), Comparing))


def test_gradients_reach_each_image_from_its_own_row_alone(reward, images):
    images = images.requires_grad_()
    scores = reward(images, PROMPTS)
    if not reward.differentiable:
        assert not scores.requires_grad
        return
    for row in (0, 3):
        (grad,) = torch.autograd.grad(scores[row], images, retain_graph=True)
        assert grad.isfinite().all() and grad[row].any()
        others = torch.cat([grad[:row], grad[row + 1 :]])
        assert not others.any()


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_an_image_of_one_colour_has_a_score_and_a_finite_gradient(reward, level):
    """A sampler can make one, and one number that is not finite spoils the whole batch's gradient."""
    images = torch.full((1, 3, 24, 24), level, requires_grad=True)
    score = reward(images, PROMPTS[:1])
    assert score.isfinite().all()
    if reward.differentiable:
        (grad,) = torch.autograd.grad(score.sum(), images)
        assert grad.isfinite().all()


def test_the_gradient_points_upwards(reward, images):
    if not reward.differentiable:
        pytest.skip("no gradient")
    images = images.requires_grad_()
    scores = reward(images, PROMPTS)
    (grad,) = torch.autograd.grad(scores.sum(), images)
    slope = grad.flatten(1).square().sum(1)
    step = 1e-3 * scores.abs() / slope  # promises a thousandth of the score
    higher = reward((images + step.reshape(-1, 1, 1, 1) * grad).detach(), PROMPTS)
    torch.testing.assert_close(higher - scores, step * slope, rtol=0.2, atol=1e-6)


def test_forward_mode_is_reverse_mode(reward, images):
    """Forward mode runs without gradients, where fused kernels that have no forward derivative are taken."""
    from torch.autograd import forward_ad

    if not reward.differentiable:
        pytest.skip("no gradient")
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    live = images.clone().requires_grad_()
    (grad,) = torch.autograd.grad(reward(live, PROMPTS).sum(), live)
    plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with torch.no_grad(), plain, forward_ad.dual_level():
        dual = reward(forward_ad.make_dual(images, direction), PROMPTS)
        tangent = forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(tangent, (grad * direction).flatten(1).sum(1), rtol=1e-3, atol=1e-5)


# -- of sets -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def of_sets(reward_class, example, tmp_path):
    if not declared(RewardTraits, reward_class).of_sets:
        pytest.skip("scores an image")
    data = torch.rand(12, 3, 24, 24, generator=torch.Generator().manual_seed(9))
    opened = example(reward_class).open("cpu")
    return opened.against(data, tmp_path) if isinstance(opened, Comparing) else opened


def test_a_set_is_scored_by_a_share_a_sample(of_sets, images):
    assert isinstance(of_sets, OfSets)
    scores = of_sets(images, PROMPTS)
    assert scores.shape == (len(PROMPTS),) and scores.dtype == torch.float64 and scores.isfinite().all()
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(of_sets(images[order], PROMPTS), scores[order])
    other = of_sets(images.flip(0) ** 2, PROMPTS).mean()
    assert other != scores.mean(), "the reward cannot tell these sets apart"


def test_a_set_may_be_seen_in_parts(of_sets, images):
    features = torch.cat([of_sets.features(part) for part in images.split(2)])
    torch.testing.assert_close(of_sets.rows(features), of_sets(images, PROMPTS), rtol=1e-5, atol=1e-6)


def test_gradients_of_the_parts_add_up_to_those_of_the_whole(of_sets, images):
    if not of_sets.differentiable:
        pytest.skip("no gradient")
    whole = images.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(of_sets(whole, PROMPTS).mean(), whole)
    assert wanted.any()
    seen = of_sets.features(images)
    rows, pull = of_sets.rows(seen), of_sets.pull(seen)
    live = images.clone().requires_grad_()
    shares = [of_sets.shares(of_sets.features(live[k : k + 2]), rows[k : k + 2], pull[k : k + 2]) for k in (0, 2, 4)]
    together = torch.cat(shares)
    torch.testing.assert_close(together, rows)
    (found,) = torch.autograd.grad(together.mean(), live)
    assert (found - wanted).norm() < 1e-2 * wanted.norm(), "but for roundings at the edges of a clamp"
