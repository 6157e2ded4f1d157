"""Every file of tunables/, lower/, estimators/ and optimizers/ has all that the rest of the house uses."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from genbo.bilevel.lower import _measured_law, finetune
from genbo.bilevel.lower.denoising import Denoising
from genbo.bilevel.protocols import (
    Drawing,
    Estimator,
    Facts,
    GradientCost,
    LowerSolver,
    LowerTraits,
    Optimizer,
    Tunable,
    cannot_follow,
)
from genbo.bilevel.regularization.bank_sampler import Sampled
from genbo.bilevel.regularization.context import ExactWorld, LawContext
from genbo.bilevel.training.network_trainer import NetworkContext, NetworkTrainer
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.process import Process, process_of
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Seed
from genbo.rewards.linear import Linear
from genbo.rewards.quadratic import Quadratic
from tests.rooms.conftest import example_of, files, options_class

WORLD, PROMPT, STEPS = Gaussian(), next(iter(Gaussian().means)), 6
UPPER, LOWER = [(1.0, Quadratic(target=1.0))], [(1.0, Linear())]
LAWS = [kind for kind in files("lower_solver") if options_class("lower_solver", kind).traits.finds == "law"]
DIRECT = [kind for kind in files("estimator") if kind != "auto"]  # `auto` chooses among the others


def process() -> Process:
    return process_of(WORLD.open(), Ddim(steps=STEPS, eta=1.0), Plain(weight=1.0), batch=64)


def instance(room: str, kind: str) -> Any:
    cls = options_class(room, kind)
    found = cls(**example_of(cls))
    return found.of(process()) if kind == "timesteps" else found  # its options must see the process first


FREE = [kind for kind in LAWS if options_class("lower_solver", kind).traits.free]  # nothing is trained at a lambda
BANKED = [kind for kind in FREE if instance("lower_solver", kind).drawing.bank != "none"]


def declared(protocol: type) -> dict[str, Any]:
    """Public members of a protocol, and `__call__`: their functions, or None for what is an attribute."""
    names = {*vars(protocol), *protocol.__annotations__}
    names = {name for name in names if not name.startswith("_") or name == "__call__"}
    members = {name: vars(protocol).get(name) for name in names}
    return {name: member if inspect.isfunction(member) else None for name, member in members.items()}


def lacks(thing: Any, protocol: type) -> list[str]:
    """What of a protocol is not there, or takes other arguments."""
    found = []
    for name, function in declared(protocol).items():
        if not hasattr(thing, name):
            found.append(name)
        elif function is not None and name != "__call__":
            wanted, own = (list(inspect.signature(f).parameters) for f in (function, getattr(thing, name)))
            if own != [p for p in wanted if p != "self"]:
                found.append(f"{name}{own}")
    return found


@pytest.mark.parametrize("kind", files("tunable"))
def test_a_tunable_is_whole(kind):
    tunable = instance("tunable", kind)
    assert lacks(tunable, Tunable) == []
    assert tunable.mistakes(STEPS) == []
    assert tunable.numbers(STEPS) == tunable.first(STEPS).tolist() and len(tunable.numbers(STEPS)) == tunable.size(
        STEPS
    )
    assert torch.equal(tunable.settled(tunable.first(STEPS)), tunable.first(STEPS))
    bounds = tunable.bounds_of(STEPS)
    assert len(bounds) == tunable.size(STEPS)
    for number, pair in zip(tunable.numbers(STEPS), bounds, strict=True):
        assert pair is None or pair[0] <= number <= pair[1]


@pytest.mark.parametrize("kind", files("optimizer"))
def test_an_optimizer_is_whole(kind):
    optimizer = instance("optimizer", kind)
    assert lacks(optimizer, Optimizer) == []
    assert optimizer.why_not(Facts(1, slope="covariance")) is None


@pytest.mark.parametrize("kind", DIRECT)
def test_an_estimator_is_whole(kind):
    estimator = instance("estimator", kind)
    assert lacks(estimator, Estimator) == []
    cost = estimator.cost(3)
    assert isinstance(cost, GradientCost)
    assert bool(cost.laws) == (estimator.follows == "law") == (not cost.draws)
    assert cost.tilted_solves <= cost.solves and bool(cost.solves) == (estimator.follows == "network")


@pytest.mark.parametrize("kind", DIRECT)
def test_an_estimator_is_asked_only_for_what_it_follows(kind):
    """Even one that never refuses, as an author's first version may not."""
    estimator = instance("estimator", kind)
    willing = type("Willing", (type(estimator),), {"why_not": lambda self, facts: None})()
    on_law, on_samples = cannot_follow(willing, Facts(1, slope="covariance")), cannot_follow(willing, Facts(1))
    assert (on_law is None, on_samples is None) == (estimator.follows == "law", estimator.follows != "law")
    assert "; use estimator: auto" in (on_law or on_samples or "")


@pytest.mark.parametrize("kind", files("lower_solver"))
def test_a_lower_solver_is_whole(kind):
    solver = instance("lower_solver", kind)
    assert lacks(solver, LowerSolver) == []
    traits, drawing = solver.traits, solver.drawing
    assert isinstance(traits, LowerTraits) and isinstance(drawing, Drawing)
    assert traits.estimator in files("estimator")
    assert bool(drawing.samples) == (traits.finds == "law" and not traits.on_paper)
    assert drawing.bank == "none" or drawing.samples
    assert solver.mistakes() == []
    assert solver.why_not(WORLD, UPPER, LOWER) is None
    assert solver.shortened(4).drawing.samples == (4 if drawing.samples else 0)


@pytest.mark.parametrize("kind", LAWS)
def test_a_law_is_found_in_one_way(kind, monkeypatch):
    """Whatever the solver: begun with what its drawing asks for, it gives a law at every lambda."""
    monkeypatch.setattr(finetune, "WORLD_ROWS", {"weighted": 256, "gradient": 32})
    monkeypatch.setattr(_measured_law, "WORLD_STEPS", 20)
    solver = instance("lower_solver", kind).shortened(16)
    opened = [[(weight, reward.open()) for weight, reward in rewards] for rewards in (UPPER, LOWER)]
    source = Sampled(process(), [PROMPT], *opened, Seed(1), samples_too=True)
    banks = () if solver.drawing.bank == "none" else (source.draw(0, solver.drawing.samples, None),)
    context = LawContext(source, banks, Seed(2), exact=ExactWorld(WORLD, [PROMPT], UPPER, LOWER))
    solve = solver.begin(context)
    y, z = solve(2.0), solve(2.0, 5.0)
    assert (y.lam, y.gamma, z.gamma) == (2.0, None, 5.0)
    for number in (y.r1, y.r2, y.kl, y.covariance, z.kl):
        assert number.value.shape == (1,) and number.value.isfinite().all() and number.value.dtype == torch.float64
    assert torch.equal(solver.begin(context)(2.0).r1.value, y.r1.value)
    assert not torch.equal(z.r1.value, y.r1.value), "the upper reward is not let in"
    for lam in (0.0, -1.0):
        with pytest.raises(ValueError, match=r"\w \w"):
            solve(lam)
    estimator = options_class("estimator", solver.traits.estimator)()
    assert cannot_follow(estimator, Facts(1, slope=solver.traits.estimator)) is None
    slope = estimator(solve, 2.0)
    assert slope.value.shape == (1,) and slope.value.isfinite().all()


@pytest.mark.parametrize("kind", BANKED)
def test_an_error_bar_of_a_law_is_that_of_another_bank(kind):
    """Over banks of other samples a number is spread as its influences say, to a factor that forty banks can tell."""
    solver = instance("lower_solver", kind)
    opened = [[(weight, reward.open()) for weight, reward in rewards] for rewards in (UPPER, LOWER)]
    source = Sampled(process(), [PROMPT], *opened, Seed(1), samples_too=True)
    banks = [source.draw(round, 128, None) for round in range(40)]
    laws = [solver.begin(LawContext(source, (bank,), Seed(2)))(2.0, gamma) for bank in banks for gamma in (None, 5.0)]
    for found in (laws[::2], laws[1::2]):
        for name in ("r1", "r2", "covariance"):
            numbers = [getattr(law, name) for law in found]
            spread = torch.tensor([number.mean for number in numbers]).std().item()
            said = sum(number.se**2 for number in numbers) ** 0.5 / len(numbers) ** 0.5
            assert 0.6 < said / spread < 1.7, name


@pytest.mark.parametrize("kind", [kind for kind in LAWS if kind != "reweight"])
def test_a_context_without_what_is_needed_is_refused_in_a_sentence(kind):
    with pytest.raises(ValueError, match=r"\w \w"):
        instance("lower_solver", kind).begin(LawContext())


def test_a_network_is_found_in_the_same_way():
    data = torch.zeros(4, 1, 2, 2)
    module = torch.nn.Conv2d(1, 1, 1)
    trainer = Denoising().begin(NetworkContext(module, data))
    assert isinstance(trainer, NetworkTrainer) and trainer.module is module and trainer.classes == ()
