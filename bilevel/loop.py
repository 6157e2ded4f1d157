"""The outer loop: a generator of steps.

    weights = (reward weights, multipliers of the constraints)
    grad    = estimator(u)           of sum_k weights_k mean_n score_kn
    u      <- optimizer(u, grad)
    price  <- max(0, integral + PROPORTIONAL gap)             a constraint each (Stooke et al. 2007.03964, PI control)

It prints nothing, writes nothing and stops nothing but itself: each `Step` carries the `State` that follows it, and the
same state given back goes on exactly there. The samples of step k depend on the seed and on k alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from genbo.bilevel.problem import Estimator, Problem
from genbo.bilevel.protocols import Estimate, Optimizer
from genbo.diffusion.seed import Batch, Seed, batch_of

PROPORTIONAL, INTEGRAL = 1.0, 0.15  # price of a constraint one standard deviation short, at once and each step
PATIENCE = 3  # steps without a usable gradient after which the loop gives up


@dataclass(frozen=True)
class Budget:
    """`samples` a step; `steps` or `denoiser_calls`, whichever is reached first, ends the run.

    With a `pool` the samples of all steps come from that many, in turn: what belongs to a sample whatever phi is, such
    as a teacher's, is then made once.
    """

    steps: int = 20
    samples: int = 64
    denoiser_calls: int | None = None
    pool: int | None = None


@dataclass(frozen=True)
class State:
    """All that the loop knows after `steps` steps; tensors in float64, on the CPU, but for those of a network."""

    u: Tensor
    steps: int = 0
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    estimator: dict[str, Tensor] = field(default_factory=dict)
    multipliers: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    integral: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    learning: dict[str, Tensor] = field(default_factory=dict)  # of a network in training, wherever it lives
    wasted: int = 0  # steps in a row without a usable gradient
    cost: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One step: where it stood (`phi`, `u`), what it saw there, and the `state` that follows."""

    index: int
    phi: Tensor  # (P,)
    u: Tensor  # (P,)
    grad: Tensor  # (P,), of the weighted objective, in u
    grad_se: Tensor
    scores: Tensor  # (K,), rewards then constraints, averaged over the samples
    value: float  # the upper objective: the weighted sum of the rewards
    value_se: float
    gaps: Tensor  # (C,), constraint minus its level: negative is violated
    multipliers: Tensor  # (C,), as they stood in the gradient
    status: str  # ok | non_finite | flat
    state: State
    indirect: Tensor | None = None  # (P,), the part of `grad` that a network in training answers with
    apart: float | None = None  # how far two estimates of that answer stood from each other, of the gradient's length
    width: float = 0.0  # half the stretch of u over which each coordinate of `grad` is an average


def begin(problem: Problem) -> State:
    """The state before the first step."""
    none = torch.zeros(len(problem.constraints), dtype=torch.float64)
    return State(problem.coordinates(problem.first()), multipliers=none, integral=none)


def tune(
    problem: Problem,
    estimator: Estimator,
    optimizer: Optimizer,
    prompts: Sequence[str],
    budget: Budget,
    seed: Seed,
    state: State | None = None,
) -> Iterator[Step]:
    """Steps until the budget is spent or `PATIENCE` steps in a row had no usable gradient."""
    state = state or begin(problem)
    meter, learning = problem.process.meter, problem.learning
    if learning is not None and state.learning:
        learning.load(state.learning)
    for name, spent in state.cost.items():
        setattr(meter, name, spent)
    while state.steps < budget.steps and state.wasted < PATIENCE:
        if budget.denoiser_calls is not None and meter.denoiser_calls >= budget.denoiser_calls:
            return
        batch = batch_of_step(prompts, budget, seed, state.steps)
        step = _step(problem, estimator, optimizer, batch, budget, seed.child("tune", state.steps), state)
        yield step
        state = step.state


def batch_of_step(prompts: Sequence[str], budget: Budget, seed: Seed, step: int) -> Batch:
    """Fresh samples, or the next of the pool."""
    if budget.pool is None:
        return batch_of(prompts, budget.samples, seed.child("tune", step))
    whole = batch_of(prompts, budget.pool, seed.child("pool"))
    rows = [n % budget.pool for n in range(step * budget.samples, (step + 1) * budget.samples)]
    return Batch(tuple(whole.prompts[n] for n in rows), tuple(whole.seeds[n] for n in rows))


def _step(
    problem: Problem,
    estimator: Estimator,
    optimizer: Optimizer,
    batch: Batch,
    budget: Budget,
    seed: Seed,
    state: State,
) -> Step:
    problem.prepare(batch)
    if problem.learning is not None:
        problem.learning.update(problem.value(state.u), seed.child("train"))
    reward_weights = torch.tensor([weight for weight, _ in problem.rewards], dtype=torch.float64)
    weights = torch.cat([reward_weights, state.multipliers])
    estimate, estimator_state = estimator(problem, state.u, batch, weights, seed, state.estimator)
    scores = estimate.scores.mean(1)
    per_sample = reward_weights @ estimate.scores[: len(reward_weights)]
    gaps = _gaps(problem, scores, batch)

    status = _status(estimate)
    after = replace(state, steps=state.steps + 1, wasted=state.wasted + 1, learning=_learned(problem))
    if status != "non_finite":  # a first one-point step has no gradient yet, and is what the second one needs
        after = replace(after, estimator=estimator_state)
    if status == "ok":
        u, optimizer_state = optimizer.step(state.u, estimate.grad, state.optimizer, state.steps / budget.steps)
        after = replace(after, u=u, optimizer=optimizer_state, wasted=0)
        multipliers, integral = _multipliers(state.integral, gaps, estimate, reward_weights)
        after = replace(after, multipliers=multipliers, integral=integral)
    return Step(
        index=state.steps,
        phi=problem.value(state.u),
        u=state.u,
        grad=estimate.grad,
        grad_se=estimate.grad_se,
        width=estimate.width,
        scores=scores,
        value=per_sample.mean().item(),
        value_se=per_sample.std().item() / len(batch) ** 0.5,
        gaps=gaps,
        multipliers=state.multipliers,
        status=status,
        state=replace(after, cost=problem.process.meter.as_dict()),
        indirect=estimate.indirect,
        apart=estimate.apart,
    )


def _learned(problem: Problem) -> dict[str, Tensor]:
    """What a network that is trained between steps has come to; one that is not is no part of the loop's state."""
    learning = problem.learning
    return learning.state() if learning is not None and learning.moves else {}


def _gaps(problem: Problem, scores: Tensor, batch: Batch) -> Tensor:
    """How far each constraint is above its level; a relative level is measured at the start's phi on the same noise."""
    if not problem.constraints:
        return torch.zeros(0, dtype=torch.float64)
    levels = torch.tensor([c.at_least for c in problem.constraints], dtype=torch.float64)
    relative = torch.tensor([c.relative_to_start for c in problem.constraints])
    if relative.any():
        at_start = problem.scores(problem.first()[None], batch).mean((1, 2))[len(problem.rewards) :]
        levels = levels + at_start.where(relative, torch.zeros_like(at_start))
    return scores[len(problem.rewards) :] - levels


def _multipliers(integral: Tensor, gaps: Tensor, estimate: Estimate, reward_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Proportional and integral control of each gap: the integral alone would swing around the level for ever.

    A gap is counted in standard deviations of its constraint over the samples, and priced in those of the reward.
    """
    if not len(gaps):
        return integral, integral
    rewards = len(reward_weights)
    spread = estimate.scores[rewards:].std(1).clamp(min=1e-12)
    short = -gaps / spread
    integral = (integral + INTEGRAL * short).clamp(min=0)
    price = (reward_weights @ estimate.scores[:rewards]).std() / spread
    return price * (integral + PROPORTIONAL * short).clamp(min=0), integral


def _status(estimate: Estimate) -> str:
    if not (estimate.grad.isfinite().all() and estimate.scores.isfinite().all()):
        return "non_finite"
    return "flat" if not estimate.grad.any() else "ok"
