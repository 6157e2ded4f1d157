"""Gradients against worlds known on paper, and every rate that an estimator claims."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest
import torch

from genbo.bilevel.estimators.auto import Auto
from genbo.bilevel.estimators.forward_mode import ForwardMode
from genbo.bilevel.estimators.reverse_mode import ReverseMode
from genbo.bilevel.estimators.zeroth_order import ZerothOrder
from genbo.bilevel.problem import Problem, SamplesAt, calls
from genbo.bilevel.protocols import Facts
from genbo.bilevel.tunables.guidance import Guidance, Knots
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.models.mixture import Mixture
from genbo.diffusion.process import process_of
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Batch, Seed, batch_of
from genbo.rewards.quadratic import Quadratic
from tests.oracles import gaussian_world_moments, mixture_world_objective, mixture_world_samples

STEPS, LOG_SNR = 8, 8.0
TARGET = [2.0, 0.3]


def problem(model=None, tunable=None, target=None, batch: int = 4096, steps: int = STEPS) -> Problem:
    model = model or Mixture(log_snr_max=LOG_SNR)
    tunable = tunable or Guidance(start=2.5, bounds=(0.0, 10.0))
    process = process_of(model.open(), Ddim(steps=steps), Plain(weight=2.5), batch=batch)
    return Problem(process, (tunable,), ((1.0, Quadratic(target=target or TARGET).open(torch.device("cpu"))),))


def gradient(problem: Problem, estimator, samples: int, seed: int = 0, prompts=("east",)):
    batch = batch_of(prompts, samples, Seed(seed))
    u = problem.coordinates(problem.first())
    return estimator(problem, SamplesAt(u, batch, torch.ones(1, dtype=torch.float64), Seed(seed)))


def exact_gradient(problem: Problem, u=None) -> torch.Tensor:
    """d/du of the quadrature of the mixture world."""
    u = (problem.coordinates(problem.first()) if u is None else u).clone().requires_grad_()
    weight = problem.tunables[0].over_steps(problem.value(u)[None], STEPS)[0]
    world = asdict(Mixture())
    value = mixture_world_objective(weight, world, "east", LOG_SNR, torch.tensor(TARGET, dtype=torch.float64))
    return torch.autograd.grad(value, u)[0]


EXACT = [ReverseMode(), ReverseMode(checkpoint=False), ForwardMode()]
SHAPES = ["scalar", Knots(3), "per_step"]


@pytest.mark.parametrize("estimator", EXACT, ids=repr)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact_gradients_agree_with_paper_sample_by_sample(estimator, shape):
    """The same noise through an independent writing of the sampler, differentiated by autograd: equal to 1e-10."""
    p = problem(tunable=Guidance(start=2.5, bounds=(0.0, 10.0), shape=shape))
    found = gradient(p, estimator, samples=16)
    batch = batch_of(("east",), 16, Seed(0))
    z = torch.stack([torch.randn(2, 1, 1, generator=torch.Generator().manual_seed(s)) for s in batch.seeds])
    u = p.coordinates(p.first()).requires_grad_()
    weight = p.tunables[0].over_steps(p.value(u)[None], STEPS)[0]
    x = mixture_world_samples(z.flatten(1).double(), weight, asdict(Mixture()), "east", LOG_SNR)
    value = -((x - torch.tensor(TARGET, dtype=torch.float64)) ** 2).sum(-1).mean()
    (expected,) = torch.autograd.grad(value, u)
    torch.testing.assert_close(found.grad, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.scores.mean(), value.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", [*EXACT, ZerothOrder(h=1e-3), ZerothOrder(points="forward", h=1e-4)], ids=repr)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_agree_with_the_quadrature_within_their_standard_error(estimator, shape):
    p = problem(tunable=Guidance(start=2.5, bounds=(0.0, 10.0), shape=shape))
    found, expected = gradient(p, estimator, samples=2048), exact_gradient(p)
    z = (found.grad - expected) / found.grad_se
    assert z.abs().max() < 4, (found.grad, expected, found.grad_se)
    assert (found.grad_se < 0.2 * expected.abs().max()).all()  # so that the line above can fail


def test_gaussian_world_on_paper():
    """The law of guided samples as a chain of linear maps: mean, variance and the gradient of both."""
    world = Gaussian(means={"right": [1.0]}, std=0.5, spread=1.2)
    p = problem(
        world,
        Guidance(start=[1.0, 3.0, 2.0, 5.0, 0.5, 1.5, 2.5, 4.0], bounds=(0.0, 10.0), shape="per_step"),
        [2.0],
    )
    found = gradient(p, ReverseMode(), samples=4096, prompts=("right",))
    u = p.coordinates(p.first()).requires_grad_()
    mean, variance = gaussian_world_moments(p.value(u), 1.0, 0.5, 1.2, LOG_SNR)
    value = -(variance + (mean - 2.0) ** 2)
    (expected,) = torch.autograd.grad(value, u)
    assert ((found.grad - expected) / found.grad_se).abs().max() < 4
    assert abs(found.scores.mean() - value) < 4 * found.scores.std() / 64


def test_central_differences_have_bias_of_second_order_and_one_sided_of_first():
    p = problem()
    exact = gradient(p, ReverseMode(), 64).grad
    steps = torch.tensor([0.4, 0.2, 0.1])

    def slope(points: str) -> float:
        errors = [(gradient(p, ZerothOrder(points=points, h=float(h)), 64).grad - exact).abs().item() for h in steps]
        return math.log(errors[0] / errors[-1]) / math.log(4)

    assert 1.8 < slope("central") < 2.2
    assert 0.8 < slope("forward") < 1.2


def test_variance_falls_as_one_over_n():
    p = problem()

    def variance(n: int) -> float:
        return torch.stack([gradient(p, ZerothOrder(), n, seed).grad for seed in range(60)]).var().item()

    assert 2.0 < variance(16) / variance(64) < 8.0  # 4 expected


def test_standard_error_is_the_spread_over_seeds():
    p = problem()
    runs = [gradient(p, ZerothOrder(), 32, seed) for seed in range(80)]
    spread = torch.stack([r.grad for r in runs]).std().item()
    claimed = torch.stack([r.grad_se for r in runs]).square().mean().sqrt().item()
    assert 0.75 < claimed / spread < 1.33


@pytest.mark.parametrize("parameters", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_random_directions_cost_sqrt_p_plus_one(parameters):
    """Relative error of a single Gaussian direction on an objective without noise: sqrt(P + 1)."""
    shape = "scalar" if parameters == 1 else Knots(parameters)
    p = problem(tunable=Guidance(start=2.5, bounds=(0.0, 10.0), shape=shape))
    exact = gradient(p, ZerothOrder(h=1e-3), 16).grad
    one = ZerothOrder(directions="random", count=1, h=1e-3)
    batch, u = batch_of(("east",), 16, Seed(0)), p.coordinates(p.first())
    weights = torch.ones(1, dtype=torch.float64)
    draws = torch.stack([one(p, SamplesAt(u, batch, weights, Seed(s))).grad for s in range(300)])
    relative = ((draws - exact) ** 2).sum(1).mean().sqrt() / exact.norm()
    assert relative.item() == pytest.approx(math.sqrt(parameters + 1), rel=0.2)
    assert ((draws.mean(0) - exact) / (draws.std(0) / 300**0.5)).abs().max() < 4


def test_differences_share_their_noise():
    """Without common random numbers the spread is dozens of times larger, as divided noise must be."""
    p = problem()

    def spread(common: bool) -> float:
        estimator = ZerothOrder(directions="random", count=1, h=0.01, common=common)
        return torch.stack([gradient(p, estimator, 36, seed).grad for seed in range(60)]).std().item()

    assert spread(False) > 10 * spread(True)


def test_one_point_residual_feedback_uses_the_value_before():
    p = problem()
    estimator = ZerothOrder(directions="random", points="one_point", h=0.5)
    u, weights = p.coordinates(p.first()), torch.ones(1, dtype=torch.float64)
    first = estimator(p, SamplesAt(u, batch_of(("east",), 32, Seed(0)), weights, Seed(0)))
    assert first.grad.abs().max() == 0  # there is nothing to compare with yet
    second = estimator(p, SamplesAt(u, batch_of(("east",), 32, Seed(1)), weights, Seed(1), first.state))
    v = torch.randn(1, 1, generator=Seed(1).child("directions").generator(), dtype=torch.float64)[0]
    torch.testing.assert_close(second.grad, v * (second.state["last"] - first.state["last"]) / 0.5)


def test_zeroth_order_never_asks_for_a_gradient():
    class Black:
        differentiable = False

        def __call__(self, images, prompts):
            class Explode(torch.autograd.Function):
                @staticmethod
                def forward(ctx, x):
                    return -(x.flatten(1) ** 2).sum(1)

                @staticmethod
                def backward(ctx, grad):
                    raise AssertionError("a black box was differentiated")

            assert not torch.is_grad_enabled()
            return Explode.apply(images)

    p = problem()
    p = Problem(p.process, p.tunables, ((1.0, Black()),))
    assert gradient(p, ZerothOrder(), 16).grad.isfinite().all()


def test_truncation_would_be_wrong():
    """The last quarter of the steps carries almost nothing of the gradient: why reverse mode never stops early."""
    p = problem(tunable=Guidance(start=2.5, bounds=(0.0, 10.0), shape="per_step"))
    per_step = gradient(p, ReverseMode(), 512).grad
    assert per_step[-STEPS // 4 :].sum().abs() < 0.1 * per_step.sum().abs()


def test_forward_mode_says_so_when_no_derivative_arrives():
    p = problem()
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        gradient(p, ForwardMode(), 4)


@pytest.mark.parametrize(
    ("estimator", "parameters", "expected"),
    [
        (ZerothOrder(), 3, calls(10, 6, 12, STEPS)),
        (ZerothOrder(points="forward"), 3, calls(10, 4, 12, STEPS)),
        (ZerothOrder(directions="random", count=2), 3, calls(10, 4, 12, STEPS)),
        (ReverseMode(), 3, 2 * calls(10, 1, 12, STEPS)),
        (ReverseMode(checkpoint=False), 3, calls(10, 1, 12, STEPS)),
        (ForwardMode(), 3, 3 * calls(10, 1, 12, STEPS)),
    ],
    ids=repr,
)
def test_cost_is_what_the_estimator_says(estimator, parameters, expected):
    p = problem(tunable=Guidance(start=2.5, bounds=(0.0, 10.0), shape=Knots(parameters)), batch=12)
    gradient(p, estimator, samples=10)
    meter = p.process.meter
    rows = 10 * estimator.cost(parameters).trajectories * estimator.cost(parameters).network_passes
    assert meter.denoiser_calls == expected
    assert meter.image_forwards == 2 * STEPS * rows
    assert meter.reward_images == 10 * estimator.cost(parameters).trajectories


def test_members_of_a_batch_do_not_touch_each_other():
    p = problem(batch=3)
    batch = batch_of(("east", "north"), 7, Seed(3))
    phi = torch.tensor([[1.0], [2.5], [7.0]], dtype=torch.float64)
    together = p.scores(phi, batch)
    for m in range(3):
        for n in range(7):
            alone = p.scores(phi[m : m + 1], Batch(batch.prompts[n : n + 1], batch.seeds[n : n + 1]))
            torch.testing.assert_close(together[:, m, n], alone[:, 0, 0], rtol=1e-12, atol=1e-12)


def test_auto_takes_a_search_for_few_numbers_of_a_schedule_and_gradients_elsewhere():
    """Where the search would have too few samples, or the objective moves, it follows gradients too."""
    facts = Facts(2, schedule=True, candidates=384)
    kind, reason = Auto().search(facts) or ("", "")
    assert kind == "gp" and "2 numbers of a noise schedule" in reason
    others = [{"schedule": False}, {"coupled": True}, {"constrained": True}, {"candidates": 63}, {"parameters": 4}]
    assert [Auto().search(replace(facts, **other)) for other in others] == [None] * 5


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        (Facts(1), "zeroth_order"),
        (Facts(8, differentiable_reward=False), "zeroth_order"),
        (Facts(20), "reverse_mode"),
        (Facts(20, differentiable_reward=False), "zeroth_order"),
        (Facts(50, differentiable_reward=False), "zeroth_order"),
    ],
)
def test_auto_chooses_and_says_why(facts, kind):
    chosen, options, reason = Auto().choose(facts)
    assert chosen == kind
    assert str(facts.parameters) in reason
    if kind == "zeroth_order":
        assert ZerothOrder(**options).cost(facts.parameters).trajectories <= 40
