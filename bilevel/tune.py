"""The outer loop: a generator of steps.

    weights = (reward weights, multipliers)
    grad    = estimator(u)           of sum_k weights_k mean_n score_kn
    u      <- optimizer(u, grad)
    mu     <- max(0, mu + rate (level - constraint))          a multiplier a constraint

It prints nothing, writes nothing and stops nothing but itself: each `Step` carries the `State` that follows it, and the
same state given back goes on exactly there. The samples of step k depend on the seed and on k alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from genbo.bilevel.problem import Estimate, Estimator, Optimizer, Problem
from genbo.diffusion.seed import Seed, batch_of

PATIENCE = 3  # steps without a usable gradient after which the loop gives up


@dataclass(frozen=True)
class Budget:
    """`samples` a step; whichever of the others is reached first ends the run."""

    steps: int = 20
    samples: int = 64
    denoiser_calls: int | None = None


@dataclass(frozen=True)
class State:
    """All that the loop knows after `steps` steps; tensors in float64, on the CPU."""

    u: Tensor
    steps: int = 0
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    estimator: dict[str, Tensor] = field(default_factory=dict)
    multipliers: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
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


def begin(problem: Problem) -> State:
    """The state before the first step."""
    return State(problem.coordinates(problem.first()), multipliers=torch.zeros(len(problem.constraints), dtype=torch.float64))


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
    meter = problem.process.meter
    for name, spent in state.cost.items():
        setattr(meter, name, spent)
    while state.steps < budget.steps and state.wasted < PATIENCE:
        if budget.denoiser_calls is not None and meter.denoiser_calls >= budget.denoiser_calls:
            return
        step = _step(problem, estimator, optimizer, prompts, budget, seed.child("tune", state.steps), state)
        yield step
        state = step.state


def _step(
    problem: Problem,
    estimator: Estimator,
    optimizer: Optimizer,
    prompts: Sequence[str],
    budget: Budget,
    seed: Seed,
    state: State,
) -> Step:
    batch = batch_of(prompts, budget.samples, seed)
    reward_weights = torch.tensor([weight for weight, _ in problem.rewards], dtype=torch.float64)
    weights = torch.cat([reward_weights, state.multipliers])
    estimate, estimator_state = estimator(problem, state.u, batch, weights, seed, state.estimator)
    scores = estimate.scores.mean(1)
    per_sample = reward_weights @ estimate.scores[: len(reward_weights)]
    gaps = _gaps(problem, scores, batch)

    status = _status(estimate)
    after = replace(state, steps=state.steps + 1, wasted=state.wasted + 1)
    if status == "ok":
        u, optimizer_state = optimizer.step(state.u, estimate.grad, state.optimizer, state.steps / budget.steps)
        after = replace(after, u=u, optimizer=optimizer_state, estimator=estimator_state, wasted=0)
        after = replace(after, multipliers=_multipliers(state.multipliers, gaps, estimate, len(reward_weights)))
    return Step(
        index=state.steps,
        phi=problem.value(state.u),
        u=state.u,
        grad=estimate.grad,
        grad_se=estimate.grad_se,
        scores=scores,
        value=per_sample.mean().item(),
        value_se=per_sample.std().item() / len(batch) ** 0.5,
        gaps=gaps,
        multipliers=state.multipliers,
        status=status,
        state=replace(after, cost=problem.process.meter.as_dict()),
    )


def _gaps(problem: Problem, scores: Tensor, batch) -> Tensor:  # type: ignore[no-untyped-def]
    """How far each constraint is above its level; a relative level is measured at the start's phi on the same noise."""
    if not problem.constraints:
        return torch.zeros(0, dtype=torch.float64)
    levels = torch.tensor([c.at_least for c in problem.constraints], dtype=torch.float64)
    relative = torch.tensor([c.relative_to_start for c in problem.constraints])
    if relative.any():
        at_start = problem.scores(problem.first()[None], batch).mean((1, 2))[len(problem.rewards) :]
        levels = levels + at_start.where(relative, torch.zeros_like(at_start))
    return scores[len(problem.rewards) :] - levels


def _multipliers(multipliers: Tensor, gaps: Tensor, estimate: Estimate, rewards: int) -> Tensor:
    """Dual ascent; the rate makes a violation of one standard deviation over the samples worth one unit of price."""
    if not len(gaps):
        return multipliers
    scale = estimate.scores[rewards:].std(1).clamp(min=1e-12)
    price = estimate.scores[:rewards].sum(0).std() / scale
    return (multipliers - price * gaps / scale).clamp(min=0)


def _status(estimate: Estimate) -> str:
    if not (estimate.grad.isfinite().all() and estimate.scores.isfinite().all()):
        return "non_finite"
    return "flat" if not estimate.grad.any() else "ok"
