"""Rewards of sets in a problem: their gradients in whole and in parts, and the penalty estimator against exact ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genbo.bilevel.estimators.forward_mode import ForwardMode
from genbo.bilevel.estimators.penalty import Penalty, _value
from genbo.bilevel.estimators.reverse_mode import ReverseMode
from genbo.bilevel.estimators.zeroth_order import ZerothOrder
from genbo.bilevel.lower.denoising import Denoising
from genbo.bilevel.problem import Problem, SamplesAt
from genbo.bilevel.protocols import Estimate, Facts
from genbo.bilevel.training.network_trainer import NetworkContext, NetworkTrainer
from genbo.bilevel.training.penalty import by_autograd, implicit
from genbo.bilevel.training.schedule_response import ScheduleResponse
from genbo.bilevel.tunables.guidance import Guidance
from genbo.diffusion.denoising import Minibatch
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.mixture import Mixture
from genbo.diffusion.process import process_of
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Seed, batch_of
from genbo.rewards.fid import Fid
from genbo.rewards.kid import Kid
from genbo.rewards.mmd import Mmd
from tests.bilevel.linear_world import DECAY, STEPS, Held, LinearDenoiser, LinearWorld

ONE = torch.ones(1, dtype=torch.float64)
SAMPLES = 14


@pytest.fixture(params=[Fid("pixels"), Kid("pixels"), Mmd("pixels")], ids=lambda kind: type(kind).__name__)
def problem(request: pytest.FixtureRequest, tmp_path: Path) -> Problem:
    """Guidance of a mixture, towards data that are not its own."""
    data = torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5
    process = process_of(Mixture().open(), Ddim(steps=4), Plain(weight=2.5), batch=64)
    reward = request.param.open().against(data, tmp_path)
    return Problem(process, (Guidance(start=2.5, bounds=(0.0, 10.0)),), ((1.0, reward),))


def estimate(p: Problem, estimator: Any) -> Estimate:
    batch = batch_of(("east", "north"), SAMPLES, Seed(3))
    found = estimator(p, SamplesAt(p.coordinates(p.first()), batch, ONE, Seed(3)))
    return found


@pytest.mark.parametrize("estimator", [ReverseMode(), ForwardMode()], ids=repr)
@pytest.mark.parametrize("batch", [64, 5])
def test_the_gradient_of_a_set_is_the_slope_of_its_distance(problem, estimator, batch):
    """Whether it goes through the network at once or in parts; against fine differences of the same samples."""
    fine = estimate(problem, ZerothOrder(h=1e-4))
    found = estimate(replace(problem, process=replace(problem.process, batch=batch)), estimator)
    torch.testing.assert_close(found.grad, fine.grad, rtol=1e-4, atol=1e-7)
    assert found.scores.mean().item() == pytest.approx(fine.scores.mean().item(), rel=1e-4)
    assert (found.grad_se > 0).all()


def test_a_memory_that_runs_out_on_the_way_changes_nothing(problem):
    """The first look at the whole does not fit: parts are taken from there on, and the set is still judged whole."""
    wanted, calls = estimate(problem, ReverseMode()), []
    model = problem.process.model

    class Small:
        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def __call__(self, x_t: Tensor, time: Tensor, condition: Any) -> Tensor:
            calls.append(len(x_t))
            if len(x_t) > 10:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return model(x_t, time, condition)  # type: ignore[no-any-return]

    found = estimate(problem.with_model(Small()), ReverseMode())  # type: ignore[arg-type]
    assert max(calls) > 10 and calls[-1] <= 10
    torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-6, atol=1e-9)


# -- the penalty estimator ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Squared:
    """Minus the squared Wasserstein distance from the world's data, of all samples together."""

    differentiable: bool = True
    of_sets: bool = True

    def __call__(self, images: Tensor, prompts: Any) -> Tensor:
        return self.rows(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def rows(self, features: Tensor) -> Tensor:
        from tests.bilevel.linear_world import data

        away = (features.flatten().sort().values - data(len(features))).square().mean()
        return -away.expand(len(features))

    def pull(self, features: Tensor) -> Tensor:
        with torch.enable_grad():
            own = features.detach().requires_grad_()
            return torch.autograd.grad(self.rows(own).sum(), own)[0]

    def shares(self, live: Tensor, rows: Tensor, pull: Tensor) -> Tensor:
        return rows.detach() + ((live - live.detach()) * pull).sum(1)


@pytest.fixture(scope="module")
def coupled() -> tuple[LinearWorld, Problem, NetworkTrainer]:
    """The linear world as a job would have it: a trainer at its lower level's minimum, on all its data at once."""
    world = LinearWorld("log_snr")
    draws = world.draws

    class OnAllData(NetworkTrainer):
        def draw(self, seed: Seed) -> Minibatch:
            return draws

    options = Denoising(noise_levels="schedule", lr=1.0, z_lr=1.0, z_steps=400, z_refresh=1000, weight_decay=DECAY)
    trainer = OnAllData(options, NetworkContext(Held(world.solve(world.tunable.first(STEPS), 0.0)), draws.x))
    trainer.loss = world.loss
    learning = ScheduleResponse(trainer, world.tunable.schedule, world.tunable.schedule(world.tunable.first(STEPS)))
    process = process_of(learning.model(), Ddim(steps=STEPS), Plain(weight=1.0), batch=64)
    return world, Problem(process, (world.tunable,), ((1.0, Squared()),), learning=learning), trainer


@dataclass(frozen=True)
class Known:
    """The same two levels with theta as one tensor: what the implicit form differentiates twice."""

    world: LinearWorld
    problem: Problem
    trainer: NetworkTrainer
    batch: Any

    @property
    def coupled(self) -> bool:
        return True

    def solve(self, q: Tensor, tilt: float) -> Tensor:
        return self.world.solve(q, tilt)

    def lower(self, q: Tensor, theta: Tensor) -> Tensor:
        return self.world.lower(q, theta)

    def upper(self, q: Tensor, theta: Tensor) -> Tensor:
        model = self.trainer.network(self.world.tunable.schedule(q), LinearDenoiser(theta, "log_snr"))
        scores = self.problem.with_model(model).live_scores(q[None], self.batch)
        return -(ONE @ scores).mean()


@pytest.mark.parametrize(
    "estimator",
    [
        Penalty(gamma=1e5, gauge=False, direct="reverse_mode"),
        Penalty(gamma=1e4, gauge=True, h=1e-3),
        Penalty(gamma=1e5, gauge=False, symmetric=False, h=1e-3),
    ],
    ids=repr,
)
def test_the_penalty_is_the_exact_gradient_with_both_its_parts(coupled, estimator):
    """Of both signs: `grad` climbs the reward, so it is minus that of the distance, direct and indirect alike."""
    world, problem, trainer = coupled
    q, batch = world.tunable.first(STEPS), batch_of([""], 48, Seed(5))
    exact = implicit(Known(world, problem, trainer, batch), q)
    u = problem.coordinates(q)
    slopes = torch.stack([by_autograd(lambda at, k=k: problem.value(at)[k], u) for k in range(len(u))])
    found = estimator(problem, SamplesAt(u, batch, ONE, Seed(5)))
    assert found.indirect is not None
    for mine, wanted in ((found.grad, exact.total), (found.indirect, exact.indirect)):
        wanted = -(slopes.T @ wanted)
        assert (mine - wanted).norm() < 0.02 * wanted.norm()
    assert (exact.direct * exact.indirect < 0).any(), "the parts disagree in sign here: neither stands for the other"
    assert (found.apart is not None) == estimator.gauge


@pytest.mark.parametrize("size", [64, 7])
def test_the_weights_derivatives_of_what_is_wanted_come_in_parts(coupled, size):
    """Each part is gone back through by itself, and the sum is that of the whole."""
    world, problem, trainer = coupled
    q, batch = world.tunable.first(STEPS), batch_of([""], 20, Seed(5))
    theta = world.solve(q, 0.0)[None].clone().requires_grad_()
    model = trainer.network(world.tunable.schedule(q), LinearDenoiser(theta[0], "log_snr"))
    whole = (ONE @ problem.with_model(model).live_scores(q[None], batch)).mean()
    (wanted,) = torch.autograd.grad(whole, theta)
    process, backward = replace(problem.process, model=model, batch=size), []
    theta.register_hook(lambda grad: backward.append(grad))
    found = _value(replace(problem, process=process), q, batch, ONE, [theta])
    assert len(backward) == -(-20 // size)
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(torch.autograd.grad(found, theta)[0], wanted)


def test_the_penalty_is_for_networks_in_training_and_gradients_of_the_reward():
    assert Penalty().why_not(Facts(2, coupled=True)) is None
    assert "use estimator: auto" in (Penalty().why_not(Facts(2)) or "")
    assert "use kid, mmd or fid" in (Penalty().why_not(Facts(2, differentiable_reward=False, coupled=True)) or "")
