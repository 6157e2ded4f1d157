"""The teacher: distances on paper, the samples that it draws, and what it does not depend on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from genbo.bilevel.problem import Problem
from genbo.bilevel.scoring import Taught
from genbo.bilevel.tunables.guidance import Guidance
from genbo.bilevel.tunables.timesteps import Timesteps
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.models.mixture import Mixture
from genbo.diffusion.process import process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.seed import Noise, Seed, batch_of
from genbo.diffusion.teacher import Lesson, Teachers
from genbo.rewards.quadratic import Quadratic
from genbo.rewards.teacher import Teacher
from tests.bilevel.test_noise_schedule import spread


def problem(*options: Teacher, weight: Any = 2.0, batch: int = 8, steps: int = 4) -> Problem:
    process = process_of(Mixture().open(), Ddim(steps=steps), Plain(weight=weight), batch=batch)
    return Problem(process, (Timesteps("trailing").of(process),), tuple((1.0, o.open()) for o in options))


def test_distances_on_paper():
    x, y = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    y[0], y[1, 0, 0, 0] = 0.5, -1.2
    assert Teacher().open().beside(x, y).tolist() == pytest.approx([-0.25, -1.44 / 12])
    assert Teacher(distance="absolute").open().beside(x, y).tolist() == pytest.approx([-0.5, -0.1])
    assert Teacher(distance="psnr").open().beside(x, y).tolist() == pytest.approx([6.0206, 9.2082], abs=1e-4)
    assert Teacher(distance="psnr").open().beside(x, x).tolist() == pytest.approx([120.0, 120.0])


def test_it_is_the_distance_to_the_same_noise_in_more_steps():
    p, batch = problem(Teacher(steps=30)), batch_of(["east", "north"], 6, Seed(0))
    teacher = process_of(p.process.model, Ddim(steps=30), Plain(weight=2.0))
    away = sample(p.at(p.first()), batch) - sample(teacher, batch)
    torch.testing.assert_close(p.scores(p.first()[None], batch)[0, 0], -away.flatten(1).square().mean(1))


def test_of_a_gaussian_it_is_known_on_paper():
    """Both scale their noise: -(c - c_T)^2 z^2, with c the product of cosines of docs/schedules.md."""
    process = process_of(Gaussian(means={"": [0.0]}, std=0.5).open(), Ddim(steps=3), Plain(weight=1.0))
    p = Problem(process, (Timesteps([-8.0, 0.0, 2.0]).of(process),), ((1.0, Teacher(steps=50).open()),))
    batch = batch_of([""], 5, Seed(0))
    z = Noise(batch.seeds, (1, 1, 1)).draw().double().flatten()
    c, taught = spread(np.array([0.0, 2.0]), 0.5, -8.0), spread(np.linspace(-8, 8, 50)[1:], 0.5, -8.0)
    torch.testing.assert_close(p.scores(p.first()[None], batch)[0, 0], -((c - taught) ** 2) * z**2, rtol=1e-6, atol=0)


def test_a_teacher_of_as_many_steps_finds_nothing_missing():
    p = problem(Teacher(steps=4))
    own = replace(p, tunables=(Timesteps("own").of(p.process),))
    assert own.scores(own.first()[None], batch_of(["east"], 3, Seed(0))).abs().max() == 0


def test_nothing_that_is_tuned_moves_it():
    """Neither times nor guidance: the teacher has the model's own."""
    process = process_of(Mixture().open(), Ddim(steps=4), Plain(weight=2.0), batch=64)
    tunables = (Timesteps("trailing").of(process), Guidance(start=2.0, bounds=(0.0, 6.0)))
    batch, found = batch_of(["east"], 4, Seed(0)), []
    for guidance in (0.5, 5.0):
        p = Problem(process, tunables, ((1.0, Teacher(steps=20).open()),))
        p.scores(torch.tensor([[-7.0, 0.0, 7.0, guidance]], dtype=torch.float64), batch)
        found.append(p.teachers.samples(p.process, Lesson(20), batch))
    assert torch.equal(*found)
    plain = sample(process_of(process.model, Ddim(steps=20), Plain(weight=2.0)), batch)
    torch.testing.assert_close(found[0], plain)


def test_a_weight_a_step_holds_for_its_share_of_the_way():
    p = problem(Teacher(steps=8), weight=[1.0, 2.0, 3.0, 4.0])
    assert Lesson(8).process(p.process).options["weight"].tolist() == [[1, 1, 2, 2, 3, 3, 4, 4]]
    assert Lesson(6).process(p.process).options["weight"].tolist() == [[1, 1, 2, 3, 3, 4]]


def test_another_sampler_may_teach():
    p = problem(Teacher(steps=12, sampler="dpmpp"))
    assert Lesson(12, "dpmpp").process(p.process).sampler == Dpmpp(steps=12)
    assert Lesson(12).process(p.process).sampler == Ddim(steps=12)


def test_members_parts_and_rewards_share_what_is_drawn_once():
    p = problem(Teacher(steps=20), Teacher(steps=20, distance="absolute"), weight=1.0)
    batch, meter = batch_of(["east", "north"], 16, Seed(0)), p.process.meter
    p.scores(p.first().expand(3, -1), batch)
    assert meter.image_forwards == 16 * 20 + 3 * 16 * 4
    assert meter.denoiser_calls == 2 * 20 + 8 * 4  # whole calls for the teacher, though two samples fit with members
    assert meter.reward_images == 3 * 16
    p.scores(p.first()[None], batch)
    assert meter.image_forwards == 16 * 20 + 4 * 16 * 4


def test_a_sample_and_its_teacher_do_not_depend_on_the_batch():
    p, batch = problem(Teacher(steps=20)), batch_of(["east", "north"], 11, Seed(0))
    together = p.scores(p.first().expand(3, -1), batch)[0, 1]
    again = problem(Teacher(steps=20))
    alone = torch.cat([again.scores(again.first()[None], part)[0, 0] for part in batch.chunks(1)])
    torch.testing.assert_close(alone, together, rtol=1e-10, atol=1e-14)


def test_gradients_pass_the_student_and_not_the_teacher():
    p, batch = problem(Teacher(steps=20)), batch_of(["east"], 4, Seed(0))
    phi = p.first().requires_grad_()
    (grad,) = torch.autograd.grad(p.live_scores(phi, batch).sum(), phi)
    assert (grad != 0).all()
    assert not p.teachers.samples(p.process, Lesson(20), batch).requires_grad


def test_latents_are_compared_before_they_are_decoded(tiny_sd):
    model = Diffusers(pretrained=str(tiny_sd), device="cpu").open()
    process = process_of(model, Dpmpp(steps=3), Plain(weight=2.0))
    rewards = tuple((1.0, Teacher(steps=6, space=space).open()) for space in ("latents", "pixels"))
    p = Problem(process, (Timesteps("own").of(process),), rewards)
    batch = batch_of(["a dog", "a red apple"], 3, Seed(0))
    with torch.no_grad():
        mine, teachers = sample(process, batch), sample(process_of(model, Dpmpp(steps=6), Plain(weight=2.0)), batch)
        found = p.live_scores(p.first()[None], batch).float()
    torch.testing.assert_close(found[0], -(mine - teachers).square().flatten(1).mean(1), rtol=1e-3, atol=1e-5)
    away = model.decode(mine) - model.decode(teachers)
    torch.testing.assert_close(found[1], -away.square().flatten(1).mean(1), rtol=1e-2, atol=1e-6)


def test_features_are_those_of_a_clip(tiny_clip):
    reward = Teacher(space="features", pretrained=str(tiny_clip)).open()
    images = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    found = reward.beside(images, images.flip(0))
    a, b = reward.tower.embed(images)
    cosine = (a @ b).item()
    assert found.tolist() == pytest.approx([-(2 - 2 * cosine) / len(a)] * 2, rel=1e-4)
    assert reward.beside(images, images).abs().max() == 0


def test_of_another_student_nothing_is_kept():
    p, batch = problem(Teacher(steps=20)), batch_of(["east"], 3, Seed(0))
    first = p.scores(p.first()[None], batch)
    other = replace(p, process=replace(p.process, options={"weight": 0 * p.process.options["weight"]}))
    assert other.teachers is p.teachers
    assert not torch.equal(other.scores(p.first()[None], batch), first)
    assert torch.equal(p.scores(p.first()[None], batch), first)


def test_what_was_used_longest_ago_goes_first():
    process = problem(Teacher(steps=5)).process
    each = 2 * 8  # two coordinates in float64
    kept, lesson = Teachers(kept_bytes=4 * each), Lesson(5)
    first, second = batch_of(["east"], 3, Seed(0)), batch_of(["east"], 3, Seed(1))
    kept.samples(process, lesson, first)
    kept.samples(process, lesson, second)
    assert [seed for _, _, seed in kept.known] == [first.seeds[2], *second.seeds]
    whole = batch_of(["east"], 9, Seed(2))
    assert len(kept.samples(process, lesson, whole)) == 9, "what is asked for at once is given at once"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"space": "features"}, "pretrained: space: features needs a CLIP"),
        ({"pretrained": "emoji-clip"}, "pretrained: only space: features"),
        ({"space": "features", "pretrained": "/nowhere"}, "pretrained: '/nowhere' is neither"),
    ],
)
def test_mistakes_are_sentences(options, said):
    (mistake,) = Teacher(**options).mistakes()
    assert mistake.startswith(said)


def test_other_rewards_want_no_teacher_and_it_wants_its_own_way():
    assert isinstance(Teacher().open(), Taught) and not isinstance(Quadratic().open(), Taught)
    with pytest.raises(ValueError, match="the noise of each image"):
        Teacher().open()(torch.zeros(1, 3, 2, 2), [""])
