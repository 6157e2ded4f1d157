"""The noise schedule as a tunable: its links and its place, and optima that are known on paper.

Of data N(0, s^2) with the exact denoiser, DDIM's step multiplies x by <a_s, a_t> / |a_t|^2, a_t = (alpha_t s, sigma_t),
so the samples' standard deviation is the product of the cosines of the angles between consecutive a_t, times s / |a_T|.
The angles add up to the one between a_T and (s, 0). The product of their cosines is largest where all are the same:

    tan^-1(sigma_t / (alpha_t s)) falls in equal steps         lambda_t = -2 log(s tan(angle_T (1 - i / N)))
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import ndtri

from genbo.bilevel.estimators.reverse_mode import ReverseMode
from genbo.bilevel.estimators.zeroth_order import ZerothOrder
from genbo.bilevel.loop import Budget, tune
from genbo.bilevel.optimizers.adam import Adam
from genbo.bilevel.problem import Problem
from genbo.bilevel.tunables.noise_schedule import NoiseSchedule
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.models.mixture import Mixture
from genbo.diffusion.process import Process, process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Batch, Seed

STD = 0.5
STEPS = 6
VARIANTS = [
    NoiseSchedule(),
    NoiseSchedule(parameters=["tau", "end"], start={"end": 0.6}, normalised=False),
    NoiseSchedule("sigmoid", zero_terminal=True),
    NoiseSchedule("linear", parameters=["beta_end", "log_snr_min"], bounds={"log_snr_min": (-12.0, -6.0)}),
    NoiseSchedule("piecewise", inner=3, parameters=["inner", "log_snr_min"]),
]


def process(steps: int = STEPS, std: float = STD) -> Process:
    world = Gaussian(means={"": [0.0]}, std=std)
    return process_of(world.open(), Ddim(steps=steps), Plain(weight=1.0))


# -- links and place ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tunable", VARIANTS, ids=repr)
def test_the_start_is_what_was_written_and_the_link_has_an_inverse(tunable):
    assert tunable.mistakes(STEPS) == []
    first = tunable.first(STEPS)
    assert first.tolist() == tunable.numbers(STEPS) and len(first) == tunable.size(STEPS)
    u = torch.linspace(-2, 2, 4 * len(first), dtype=torch.float64).reshape(4, -1)
    torch.testing.assert_close(tunable.coordinates(tunable.value(u)), u)
    torch.testing.assert_close(tunable.value(tunable.coordinates(first)), first, atol=0.02, rtol=0.02)


@settings(deadline=None, max_examples=30)
@given(data=st.data())
@pytest.mark.parametrize("tunable", VARIANTS, ids=repr)
def test_whatever_is_learned_can_be_a_start(tunable, data):
    u = [data.draw(st.floats(allow_nan=False)) for _ in range(tunable.size(STEPS))]
    phi = tunable.value(torch.tensor(u, dtype=torch.float64))
    start = {**tunable.start, **tunable.named(phi)}
    again = NoiseSchedule(
        tunable.family,
        tunable.parameters,
        start,
        tunable.bounds,
        tunable.normalised,
        tunable.zero_terminal,
        tunable.inner,
    )
    assert again.mistakes(STEPS) == []
    assert torch.equal(again.first(STEPS), phi)
    x = sample(tunable.embed(process(), phi), Batch(("",), (1,)))
    assert x.isfinite().all()


def test_only_what_is_named_is_tuned():
    tunable = NoiseSchedule(parameters=["tau"], start={"end": 0.8})
    schedule = tunable.schedule(torch.tensor([[1.0], [2.0]], dtype=torch.float64))
    assert schedule.members == 2 and tunable.size(STEPS) == 1
    assert schedule.values["end"].tolist() == [[0.8]] and schedule.values["tau"].tolist() == [[1.0], [2.0]]
    assert NoiseSchedule().tuned == ["start", "end", "tau", "eps"]


@pytest.mark.parametrize("tunable", VARIANTS, ids=repr)
def test_embedding_moves_the_levels_and_nothing_else(tunable):
    before = process()
    phi = tunable.value(torch.linspace(-1, 1, 3 * tunable.size(STEPS), dtype=torch.float64).reshape(3, -1))
    after = tunable.embed(before, phi.requires_grad_())
    assert after.members == 3 and after.steps == STEPS and after.options is before.options
    torch.testing.assert_close(after.grid.time, 2 * (after.grid.alpha_t / after.grid.sigma_t).log().clamp(min=-10))
    (grad,) = torch.autograd.grad(after.grid.alpha_t.square().sum(), phi)
    assert (grad.abs() > 0).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"parameters": ["bend"]}, "parameters: cosine has no parameter 'bend'; it has start, end, tau, eps,"),
        ({"parameters": []}, "parameters: name at least one, and each once"),
        ({"parameters": ["tau", "tau"]}, "parameters: name at least one, and each once"),
        ({"start": {"end": 0.2}}, "start: end: 0.2 is outside [0.55, 1]"),
        ({"start": {"end": [0.9]}}, "start: end is a number"),
        ({"family": "piecewise", "start": {"inner": 0.5}}, "start: inner is a list of numbers"),
        ({"family": "piecewise", "inner": 0}, "inner: 0 knots"),
        ({"family": "piecewise", "normalised": False}, "normalised: piecewise always ends"),
        ({"family": "piecewise", "bounds": {"inner": (0.0, 1.0)}}, "bounds: inner is several numbers"),
        ({"bounds": {"tau": (1.0, 20.0)}}, "bounds: tau must have low < high within [0.5, 8]"),
        ({"bounds": {"tau": (2.0, 3.0)}}, "start: tau: 1 is outside [2, 3]; move it or widen its bounds"),
    ],
)
def test_mistakes_are_sentences(options, said):
    (mistake,) = NoiseSchedule(**options).mistakes(STEPS)
    assert mistake.startswith(said)


# -- a Gaussian: times known on paper ----------------------------------------------------------------------------------


def angle(log_snr: np.ndarray | float, std: float) -> Any:
    return np.arctan(np.exp(-np.asarray(log_snr) / 2) / std)


def spread(inner: np.ndarray, std: float, low: float) -> float:
    """The standard deviation of DDIM's samples that stop at log-SNR low, inner..., and then at no noise."""
    angles = np.concatenate([angle(np.concatenate([[low], inner]), std), [0.0]])
    alpha, sigma = 1 / math.sqrt(1 + math.exp(-low)), 1 / math.sqrt(1 + math.exp(low))
    return std / math.hypot(alpha * std, sigma) * float(np.prod(np.cos(-np.diff(angles))))


def best(steps: int, std: float, low: float) -> np.ndarray:
    """Equal angles, by the formula at the top."""
    return -2 * np.log(std * np.tan(angle(low, std) * (1 - np.arange(1, steps) / steps)))


@pytest.mark.parametrize("std", [0.3, 0.5, 2.0])
@pytest.mark.parametrize("steps", [2, 3])
def test_paper_and_a_numerical_optimum_agree(steps, std):
    found = minimize(
        lambda x: -spread(x, std, -10.0), np.linspace(-1, 1, steps - 1), method="BFGS", options={"gtol": 1e-11}
    )
    np.testing.assert_allclose(found.x, best(steps, std, -10.0), atol=1e-6)


@pytest.mark.parametrize("tunable", VARIANTS, ids=repr)
def test_the_sampler_has_the_spread_of_the_formula(tunable):
    exact = 1e-4 if tunable.zero_terminal else 1e-9  # this world is told -20 where there is no signal at all
    for steps in (2, 5) if tunable.zero_terminal else (1, 2, 5):
        phi = tunable.value(torch.full((tunable.size(steps),), 0.3, dtype=torch.float64))
        embedded = tunable.embed(process(steps), phi)
        x = sample(embedded, Batch(("",), (1,)), start=torch.ones(1, 1, 1, 1))
        levels = 2 * (embedded.grid.alpha_t / embedded.grid.sigma_t).log()[0].clamp(min=-300)
        assert x.item() == pytest.approx(spread(levels[1:].numpy(), STD, levels[0].item()), rel=exact)


@pytest.mark.parametrize(
    ("steps", "std", "tunable"),
    [
        (2, 0.5, NoiseSchedule("piecewise", inner=1)),
        (3, 0.5, NoiseSchedule("piecewise", inner=2)),
        (3, 2.0, NoiseSchedule("piecewise", inner=2)),
        (2, 2.0, NoiseSchedule("cosine", parameters=["tau"])),
        (2, 2.0, NoiseSchedule("sigmoid", parameters=["end"])),
        (3, 2.0, NoiseSchedule("sigmoid", parameters=["start", "tau"])),
        (2, 2.0, NoiseSchedule("linear", parameters=["beta_end"])),
    ],
    ids=repr,
)
def test_following_the_gradient_ends_at_the_best_times(tunable, steps, std):
    """To 2e-6 in log-SNR, for families that can stand there: as many parameters as there are inner stops."""
    u = tunable.coordinates(tunable.first(steps)).requires_grad_()
    climb = torch.optim.LBFGS(
        [u], max_iter=60, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def shortfall() -> torch.Tensor:
        climb.zero_grad()
        embedded = tunable.embed(process(steps, std), tunable.value(u))
        missing = std - sample(embedded, Batch(("",), (1,)), start=torch.ones(1, 1, 1, 1)).sum()
        missing.backward()
        return missing

    climb.step(shortfall)
    stops = tunable.schedule(tunable.value(u.detach())).grid(steps).time[0, 1:]
    np.testing.assert_allclose(stops.numpy(), best(steps, std, -10.0), atol=2e-6)


class Power:
    """x^2: of samples that all fall short of the data's spread, the more the better."""

    differentiable = True

    def __call__(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
        return images.flatten(1).square().sum(1)


@pytest.mark.parametrize("estimator", [ReverseMode(), ZerothOrder(h=0.05)], ids=repr)
@pytest.mark.parametrize(("steps", "inner"), [(2, 1), (3, 2)])
def test_the_loop_finds_them_too(estimator, steps, inner):
    """The outer loop that tunes guidance, its estimators and its optimizer, with nothing changed."""
    tunable = NoiseSchedule("piecewise", inner=inner)
    problem = Problem(process(steps), (tunable,), ((1.0, Power()),))
    for last in tune(problem, estimator, Adam(lr=0.3), [""], Budget(steps=60, samples=4), Seed(0)):
        assert last.status == "ok"
    stops = tunable.schedule(problem.value(last.state.u)).grid(steps).time[0, 1:]
    np.testing.assert_allclose(stops.numpy(), best(steps, STD, -10.0), atol=0.05)


# -- and not a Gaussian ------------------------------------------------------------------------------------------------

MEANS, WEIGHTS, WIDTH = np.array([-1.0, 0.4]), np.array([0.7, 0.3]), 0.25
QUANTILES = (np.arange(400) + 0.5) / 400


def mixture_samples(levels: np.ndarray) -> np.ndarray:
    """DDIM from normal quantiles with the posterior mean of a mixture, in numpy alone; the last level has no noise."""
    alpha = np.append(np.sqrt(1 / (1 + np.exp(-levels))), 1.0)
    sigma = np.append(np.sqrt(1 / (1 + np.exp(levels))), 0.0)
    x = ndtri(QUANTILES)
    for i in range(len(levels)):
        v = alpha[i] ** 2 * WIDTH**2 + sigma[i] ** 2
        away = x[:, None] - alpha[i] * MEANS
        r = WEIGHTS * np.exp(-(away**2) / (2 * v))
        x_0 = (r * (MEANS + alpha[i] * WIDTH**2 / v * away)).sum(1) / r.sum(1)
        x = alpha[i + 1] * x_0 + sigma[i + 1] * (x - alpha[i] * x_0) / sigma[i]
    return x


def mixture_quantiles() -> np.ndarray:
    from scipy.special import ndtr

    low, high = np.full(400, -5.0), np.full(400, 5.0)
    for _ in range(60):
        x = (low + high) / 2
        below = (WEIGHTS * ndtr((x[:, None] - MEANS) / WIDTH)).sum(1) < QUANTILES
        low, high = np.where(below, x, low), np.where(below, high, x)
    return (low + high) / 2


def test_of_two_humps_the_best_times_are_those_of_an_independent_search():
    target = mixture_quantiles()

    def distance(inner: np.ndarray) -> float:
        return float(np.mean((mixture_samples(np.concatenate([[-10.0], inner])) - target) ** 2))

    start = np.array([-10 + 20 / 3, -10 + 40 / 3])
    found = minimize(distance, start, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-14, "maxiter": 2000})

    world = Mixture(means=[[-1.0], [0.4]], weights=[0.7, 0.3], labels=["", ""], std=WIDTH)
    given = torch.from_numpy(ndtri(QUANTILES)).reshape(-1, 1, 1, 1)
    batch = Batch(("",) * 400, tuple(range(400)))
    tunable = NoiseSchedule("piecewise", inner=2)
    of_world = process_of(world.open(), Ddim(steps=3), Plain(weight=1.0))
    u = tunable.coordinates(tunable.first(3)).requires_grad_()
    descent = torch.optim.LBFGS([u], max_iter=100, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def by_genbo() -> torch.Tensor:
        descent.zero_grad()
        x = sample(tunable.embed(of_world, tunable.value(u)), batch, start=given)
        error = (x.flatten() - torch.from_numpy(target)).square().mean()
        error.backward()
        return error

    descent.step(by_genbo)
    stops = tunable.schedule(tunable.value(u.detach())).grid(3).time[0, 1:].numpy()
    assert by_genbo().item() == pytest.approx(found.fun, rel=1e-6)
    np.testing.assert_allclose(stops, found.x, atol=1e-3)
    assert found.fun < 0.8 * distance(start)
