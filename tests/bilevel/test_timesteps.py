"""Times of a sampler's stops: links, names, and best times that are known on paper or by another search."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from genbo.bilevel.estimators.forward_mode import ForwardMode
from genbo.bilevel.estimators.reverse_mode import ReverseMode
from genbo.bilevel.estimators.zeroth_order import ZerothOrder
from genbo.bilevel.loop import Budget, batch_of_step, tune
from genbo.bilevel.optimizers.adam import Adam
from genbo.bilevel.problem import Problem, SamplesAt
from genbo.bilevel.tunables.guidance import Guidance
from genbo.bilevel.tunables.timesteps import Timesteps, TunedTimes, ays, karras
from genbo.bilevel.verdict import draw
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.models.mixture import Mixture
from genbo.diffusion.process import Process, process_of
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.samplers.euler import Euler
from genbo.diffusion.seed import Batch, Seed, batch_of
from genbo.rewards.teacher import Teacher
from tests.bilevel.test_noise_schedule import best

STD, LOW = 0.5, 8.0
NAMES = ("own", "uniform", "trailing", "karras", "ays")


def gaussian(sampler: Any, std: float = STD) -> Process:
    return process_of(Gaussian(means={"": [0.0]}, std=std, log_snr_max=LOW).open(), sampler, Plain(weight=1.0))


def mixture(sampler: Any, weight: float = 1.0, batch: int = 32) -> Process:
    return process_of(Mixture().open(), sampler, Plain(weight=weight), batch=batch)


def problem(process: Process, options: Timesteps, reward: Any = None, **own: Any) -> Problem:
    return Problem(process, (options.of(process),), ((1.0, (reward or Teacher(steps=20)).open()),), **own)


# -- the link ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 3, 6, 40])
@pytest.mark.parametrize("name", NAMES)
def test_every_start_is_in_order_and_its_coordinates_lead_back(name, steps):
    stops = Timesteps(name).of(gaussian(Ddim(steps=steps)))
    times = torch.tensor(stops.start)
    assert len(times) == steps and (times.diff() > 0).all() and times.abs().max() <= LOW
    back = stops.value(stops.coordinates(stops.first(steps)))
    even = 2 * LOW / steps
    torch.testing.assert_close(back, stops.first(steps), rtol=0, atol=0.02 * even * steps)


@pytest.mark.parametrize("u", [math.inf, -math.inf, 1e3, -40.0, 0.0])
def test_no_coordinate_joins_two_stops(u):
    """At infinities too: what DPM-Solver++ divides by is never zero."""
    process = gaussian(Dpmpp(steps=6))
    stops = Timesteps("trailing").of(process)
    alternating = torch.tensor([u, -u, u, -u, u], dtype=torch.float64)
    for coordinates in (alternating, torch.full((5,), u, dtype=torch.float64)):
        times = stops.stops(stops.value(coordinates))
        assert (times.diff() >= 0.99 * stops.clock.least).all()
        live = coordinates.clone().requires_grad_()
        p = problem(process, Timesteps("trailing"))
        scores = p.live_scores(p.value(live), batch_of([""], 3, Seed(0)))
        (grad,) = torch.autograd.grad(scores.sum(), live)
        assert scores.isfinite().all() and grad.isfinite().all()


def test_times_of_the_model_itself_change_nothing():
    """In every sampler: the grid at its own times is its own grid, level by level."""
    for sampler in (Ddim(steps=7), Euler(steps=7), Dpmpp(steps=7), Ddim(steps=1)):
        process = gaussian(sampler)
        again = process.model.grid_at(sampler, process.grid.time)
        for name in ("time", "alpha_t", "sigma_t", "alpha_s", "sigma_s"):
            torch.testing.assert_close(getattr(again, name), getattr(process.grid, name), rtol=0, atol=1e-15)


def test_members_have_stops_of_their_own():
    process = mixture(Ddim(steps=4))
    stops = Timesteps().of(process)
    phi = stops.value(torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    embedded = stops.embed(process, phi)
    assert embedded.members == 5 and embedded.options is process.options
    assert torch.equal(embedded.grid.time[:, 1:], phi) and (embedded.grid.time[:, 0] == -8).all()
    torch.testing.assert_close(2 * (embedded.grid.alpha_t / embedded.grid.sigma_t).log(), embedded.grid.time)


# -- where to start ----------------------------------------------------------------------------------------------------


def test_karras_is_even_in_the_seventh_root():
    sigmas = np.array(karras(80.0, 0.002, 10)) ** (1 / 7)
    np.testing.assert_allclose(np.diff(sigmas), np.full(9, sigmas[1] - sigmas[0]), rtol=1e-12)
    assert karras(80.0, 0.002, 10)[::9] == pytest.approx([80.0, 0.002])


def test_ays_is_the_list_that_diffusers_ships_and_its_authors_lines_between():
    from diffusers.schedulers import AysSchedules

    listed = AysSchedules["StableDiffusionSigmas"]
    assert ays(0.029, 10) == pytest.approx(listed[:-1])
    twenty = ays(0.029, 20)
    assert twenty[::2] == pytest.approx(listed[:-1])
    assert twenty[1::2] == pytest.approx(
        [math.sqrt(a * b) for a, b in zip(listed, [*listed[1:-1], 0.029], strict=False)]
    )


def test_a_list_is_taken_as_it_is():
    process = gaussian(Ddim(steps=3))
    stops = Timesteps([-7.0, 0.5, 3.0]).of(process)
    assert stops.start == [-7.0, 0.5, 3.0] and stops.spoken(stops.first(3)) == [-7.0, 0.5, 3.0]
    assert stops.embed(process, stops.first(3)[None]).grid.time.tolist() == [[-7.0, 0.5, 3.0]]


@pytest.mark.parametrize(
    ("start", "steps", "said"),
    [
        ([1.0, 2.0], 3, "start: 2 times for 3 steps"),
        ([1.0, math.nan, 2.0], 3, "start: every time must be finite"),
        ("own", 1, "one step stops at its first time alone"),
    ],
)
def test_mistakes_are_sentences(start, steps, said):
    (mistake,) = Timesteps(start).mistakes(steps)
    assert mistake.startswith(said)
    with pytest.raises(ValueError, match=said):
        Timesteps(start).of(gaussian(Ddim(steps=steps)))


@pytest.mark.parametrize(
    ("start", "times", "said"),
    [
        ([999.0, 500.0, 500.0], (999.0, 0.0), "500 follows 500, and times must fall from noise to image"),
        ([999.0, 500.0, -1.0], (999.0, 0.0), "-1 is no time of this model; its times run from 999 (noise) to 0"),
        ([-8.0, 1.0, 0.0], (-8.0, 8.0), "0 follows 1, and times must rise (they are log-SNRs here)"),
        ([-8.0, 1.0, 9.0], (-8.0, 8.0), "9 is no time"),
        ("own", (4.0, 0.0), "3 steps leave no room to move between 4 and 0; use at most 2"),
    ],
)
def test_times_that_do_not_suit_the_model(start, times, said):
    assert (Timesteps(start).why_not(3, times) or "").startswith(said)
    assert Timesteps(start).why_not(3, None) is None, "nothing is known before the model is there"


class Untimed:
    """A model that says nothing of its times."""


def test_a_model_without_times_is_refused():
    process = replace(gaussian(Ddim(steps=3)), model=Untimed())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot stop at times of one's own"):
        Timesteps().of(process)


# -- best times --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "steps"),
    [
        pytest.param(ReverseMode(), 2, id="reverse-2"),
        pytest.param(ReverseMode(), 3, id="reverse-3", marks=pytest.mark.slow),
        pytest.param(ZerothOrder(h=0.02), 2, id="differences-2", marks=pytest.mark.slow),
        pytest.param(ZerothOrder(h=0.02), 3, id="differences-3"),
    ],
)
def test_of_a_gaussian_they_are_those_on_paper(estimator, steps):
    """Student and teacher both scale the noise; the student falls short of every teacher, least at equal angles."""
    p = problem(gaussian(Ddim(steps=steps)), Timesteps("trailing"))
    for last in tune(p, estimator, Adam(lr=0.1), [""], Budget(steps=90, samples=4), Seed(0)):
        assert last.status == "ok"
    np.testing.assert_allclose(p.value(last.state.u).numpy(), best(steps, STD, -LOW), atol=0.02)


@pytest.mark.parametrize("std", [0.3, 0.5, 2.0])
@pytest.mark.parametrize("steps", [2, 3])
def test_following_the_gradient_to_its_end_they_are_exactly_those(steps, std):
    p = problem(gaussian(Ddim(steps=steps), std), Timesteps("trailing"))
    u = followed(p, batch_of([""], 4, Seed(0)))
    np.testing.assert_allclose(p.value(u).numpy(), best(steps, std, -LOW), atol=2e-5)


def followed(p: Problem, batch: Batch) -> torch.Tensor:
    """u where the gradient on these samples is zero."""
    u = p.coordinates(p.first()).requires_grad_()
    climb = torch.optim.LBFGS(
        [u], max_iter=100, tolerance_grad=1e-14, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def missed() -> torch.Tensor:
        climb.zero_grad()
        away = -p.live_scores(p.value(u), batch).mean()
        away.backward()
        return away

    climb.step(missed)
    return u.detach()


@pytest.mark.parametrize("start", [pytest.param("karras", marks=pytest.mark.slow), "ays", [-8.0, 5.0, 6.0]], ids=str)
def test_from_any_start_that_begins_with_noise(start):
    steps = 3
    p = problem(gaussian(Ddim(steps=steps)), Timesteps(start))
    first = p.tunables[0].start[0]  # type: ignore[attr-defined]
    *_, last = tune(p, ReverseMode(), Adam(lr=0.3), [""], Budget(steps=80, samples=4), Seed(0))
    np.testing.assert_allclose(p.value(last.state.u).numpy(), best(steps, STD, first), atol=0.08)


def test_of_three_humps_they_are_those_of_another_search():
    """Nothing is known on paper here: Nelder and Mead over the same distance, without the link and its gradient."""
    process = mixture(Dpmpp(steps=4), weight=2.0, batch=10**6)
    p = problem(process, Timesteps("trailing"), Teacher(steps=50))
    batch = batch_of(["east", "north"], 64, Seed(1))

    def distance(times: np.ndarray) -> float:
        if (np.diff([-8.0, *times, 8.0]) < 0.02).any():
            return 1.0
        return -float(p.scores(torch.from_numpy(times)[None], batch).mean())

    start = p.first().numpy()
    found = minimize(distance, start, method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-10, "maxiter": 600})
    assert distance(p.value(followed(p, batch)).numpy()) == pytest.approx(found.fun, rel=0.02)
    assert found.fun < 0.7 * distance(start)


def test_the_loop_beats_the_start_on_samples_that_it_never_saw():
    """From a bad start, uniform in log-SNR, at fresh noise, by most samples."""
    process = mixture(Ddim(steps=5), weight=2.0)
    p = problem(process, Timesteps("uniform"))
    budget = Budget(steps=25, samples=32)
    *_, last = tune(p, ZerothOrder(), Adam(lr=0.3), ["east", "north"], budget, Seed(0))
    batch = batch_of(["east", "north"], 128, Seed(9))
    start, tuned = (
        torch.cat([seen[0] for seen, _ in draw(p, phi, batch)]) for phi in (p.first(), p.value(last.state.u))
    )
    assert tuned.mean() > 0.5 * start.mean()
    assert (tuned > start).double().mean() > 0.8


def test_together_with_a_guidance_weight_a_step():
    process = mixture(Ddim(steps=4), weight=2.0)
    tunables = (Timesteps("uniform").of(process), Guidance(start=2.0, bounds=(0.0, 6.0), shape="per_step"))
    p = Problem(process, tunables, ((1.0, Teacher(steps=20).open()),))
    assert p.parameters == 3 + 4
    *_, last = tune(p, ReverseMode(), Adam(lr=0.2), ["east", "north"], Budget(steps=25, samples=32), Seed(0))
    batch = batch_of(["east", "north"], 64, Seed(9))
    scores = p.scores(torch.stack([p.first(), p.value(last.state.u)]), batch)[0].mean(1)
    assert scores[1] > 0.5 * scores[0]
    spoken = p.spoken(p.value(last.state.u))
    assert len(spoken["timesteps"]) == 4 and len(spoken["guidance"]) == 4  # type: ignore[arg-type]


def test_all_estimators_agree():
    p = problem(mixture(Dpmpp(steps=4), weight=2.0), Timesteps("trailing"))
    batch, u, one = batch_of(["east"], 8, Seed(2)), p.coordinates(p.first()), torch.ones(1, dtype=torch.float64)
    exact, forward, fine = (
        estimator(p, SamplesAt(u, batch, one, Seed(0))).grad
        for estimator in (ReverseMode(), ForwardMode(), ZerothOrder(h=1e-4))
    )
    torch.testing.assert_close(forward, exact, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(fine, exact, rtol=1e-4, atol=1e-9)


def test_a_pool_gives_the_same_samples_again():
    budget = Budget(samples=8, pool=12)
    batches = [batch_of_step(["east", "north"], budget, Seed(0), k) for k in range(4)]
    assert batches[0].seeds[:4] == batches[1].seeds[4:]
    assert batches[3] == batches[0] and len({s for b in batches for s in b.seeds}) == 12
    fresh = [batch_of_step(["east", "north"], replace(budget, pool=None), Seed(0), k) for k in range(2)]
    assert not set(fresh[0].seeds) & set(fresh[1].seeds)


def test_stops_of_a_world_are_settled_as_they_are():
    stops = Timesteps().of(gaussian(Ddim(steps=3)))
    assert isinstance(stops, TunedTimes)
    phi = torch.tensor([0.123, 4.56], dtype=torch.float64)
    assert torch.equal(stops.settled(phi), phi) and stops.log_snr(phi) == [-8.0, 0.123, 4.56]
