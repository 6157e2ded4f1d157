"""The outer loop: a generator of steps.

    weights = (reward weights, multipliers of the constraints)
    grad    = estimator(u)           of sum_k weights_k mean_n score_kn
    u      <- optimizer(u, grad)
    price  <- max(0, integral + PROPORTIONAL gap)             a constraint each (Stooke et al. 2007.03964, PI control)

The loop prints nothing and writes nothing. Each `TuningStep` carries the `State` that follows; given back, that state
goes on exactly there. The samples of step k depend on the seed and on k alone; where the objective is not the mean,
how many of them each prompt gets depends on the steps before (`bilevel.emphasis`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from genbo.bilevel.emphasis import Emphasis, emphasis_of, updated
from genbo.bilevel.problem import Problem, SampleEstimator, SamplesAt
from genbo.bilevel.protocols import Estimate, Optimizer
from genbo.bilevel.tunables.guidance import EDGE, NUDGED
from genbo.diffusion.seed import Batch, Seed, batch_of

PROPORTIONAL, INTEGRAL = 1.0, 0.15  # price of a constraint one standard deviation short, at once and each step
PATIENCE = 3  # steps without a usable gradient after which the loop gives up


@dataclass(frozen=True)
class Budget:
    """How much the loop may spend; it ends at `steps` or at `denoiser_calls`, whichever comes first.

    Attributes:
        steps: at most so many, 0 or more.
        samples: of each step, 1 or more; 2 or more give a standard error.
        denoiser_calls: network calls after which no further step begins; None for no limit.
        pool: where given, the samples of all steps come from that many, in turn: what belongs to a sample whatever phi
            is, such as a teacher's sample, is then made once. None draws new samples at each step.
        work: of a search, image forwards plus twice the backwards after which no further candidate begins.
    """

    steps: int = 20
    samples: int = 64
    denoiser_calls: int | None = None
    pool: int | None = None
    work: int | None = None


@dataclass(frozen=True)
class State:
    """All that the loop knows after `steps` steps; tensors in float64, on the CPU, but for those of a network.

    Attributes:
        u: the point of the next step, (P,).
        steps: how many have been taken.
        optimizer: the optimizer's own tensors.
        estimator: the estimator's own tensors.
        multipliers: the price of each constraint in the next gradient, (C,), 0 or more.
        integral: the integral part of each price, (C,), 0 or more.
        learning: the weights and the training state of a network that is trained between steps.
        wasted: steps in a row, up to this one, without a usable gradient.
        standing: running sums of each prompt's reward, where the objective is not the mean.
        cost: what the process' meter has counted so far.
    """

    u: Tensor
    steps: int = 0
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    estimator: dict[str, Tensor] = field(default_factory=dict)
    multipliers: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    integral: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    learning: dict[str, Tensor] = field(default_factory=dict)  # of a network in training, wherever it lives
    wasted: int = 0  # steps in a row without a usable gradient
    standing: dict[str, Tensor] = field(default_factory=dict)  # (C,) each, of the different prompts
    cost: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Lap:
    """Candidates `members` (M, P) in u on common samples: how far each is `ahead` of the first, and its error, (M,)."""

    members: Tensor
    ahead: Tensor
    ahead_se: Tensor


@dataclass(frozen=True)
class TuningStep:
    """One step: where it stood, what it saw there, and the state that follows.

    Attributes:
        index: 0 for the first.
        phi: where it stood, (P,).
        u: the same in coordinates, (P,).
        grad: of the objective in u, with its constraints, (P,).
        grad_se: its standard error over the samples, (P,); 0 or NaN where it is not known.
        scores: rewards, then constraints, averaged over the samples, (K,).
        value: the upper objective: the weighted sum of the rewards, each prompt with its weight.
        value_se: its standard error over the samples.
        gaps: each constraint minus its level, (C,); below 0 it is violated.
        multipliers: as they stood in the gradient, (C,).
        status: "ok"; "non_finite" where a score or the gradient is no number; "flat" where the gradient is exactly 0;
            "raced" where candidates were compared. The point moves after "ok" alone.
        state: what follows, to go on from.
        indirect: the part of `grad` that a network in training answers with, (P,), where there is one.
        apart: the distance of two estimates of that answer, relative to the gradient's length.
        width: half the stretch of u over which each coordinate of `grad` is an average; 0 for a derivative.
        emphasis: how much each prompt counted, where the objective is not the mean.
        objective: of a search, the value less what missed constraints cost, which it is told.
        lap: of a race, how its candidates did.
        not_raced: of the step at which a race could have begun, why there is none.
    """

    index: int
    phi: Tensor
    u: Tensor
    grad: Tensor
    grad_se: Tensor
    scores: Tensor
    value: float
    value_se: float
    gaps: Tensor
    multipliers: Tensor
    status: str
    state: State
    indirect: Tensor | None = None
    apart: float | None = None
    width: float = 0.0
    emphasis: Emphasis | None = None
    objective: float | None = None
    lap: Lap | None = None
    not_raced: str | None = None


def begin(problem: Problem) -> State:
    """The state before the first step; a number on a bound begins inside, where the link is not yet flat."""
    none = torch.zeros(len(problem.constraints), dtype=torch.float64)
    u = problem.coordinates(problem.first())
    pairs = [b for t in problem.tunables for b in t.bounds_of(problem.process.steps)]
    bounded = torch.tensor([pair is not None for pair in pairs], dtype=torch.bool)  # also where there are none
    on_bound = bounded & (torch.minimum(u.sigmoid(), (-u).sigmoid()) <= EDGE * (1 + 1e-6))
    nudged = torch.where(u < 0, NUDGED, 1 - NUDGED).to(u).logit()
    return State(nudged.where(on_bound, u), multipliers=none, integral=none)


def tune(
    problem: Problem,
    estimator: SampleEstimator,
    optimizer: Optimizer,
    prompts: Sequence[str],
    budget: Budget,
    seed: Seed,
    state: State | None = None,
) -> Iterator[TuningStep]:
    """Climbs the upper objective, and yields each step as it is taken.

    Args:
        problem: what is tuned, of what, for what; without constraints, where its objective is not the mean.
        estimator: of the gradient in u; it must be able to follow the problem (`protocols.cannot_follow`).
        optimizer: takes the step in u.
        prompts: shared out evenly among the samples of a step.
        budget: when to end.
        seed: every sample of step k depends on it and on k alone.
        state: where an earlier loop has left off; by default the start that the tunables name.

    Yields:
        Steps until the budget is spent, or `PATIENCE` steps in a row had no usable gradient.

    Raises:
        TrainingDiverged: where a network that is trained between steps leaves the finite numbers.
    """
    state, meter = state or begin(problem), problem.process.meter
    go_on(problem, state)
    while state.steps < budget.steps and state.wasted < PATIENCE:
        if budget.denoiser_calls is not None and meter.denoiser_calls >= budget.denoiser_calls:
            return
        emphasis = emphasis_of(problem.objective, prompts, state.standing, state.u, pooled=budget.pool is not None)
        batch = batch_of_step(prompts, budget, seed, state.steps, emphasis if state.standing else None)
        step = _step(problem, estimator, optimizer, batch, budget, seed.child("tune", state.steps), state, emphasis)
        yield step
        state = step.state


def go_on(problem: Problem, state: State) -> None:
    """Puts the meter, and a network in training, to where a state has them."""
    if problem.learning is not None and state.learning:
        problem.learning.load(state.learning)
    for name, spent in state.cost.items():
        setattr(problem.process.meter, name, spent)


def batch_of_step(
    prompts: Sequence[str], budget: Budget, seed: Seed, step: int, emphasis: Emphasis | None = None
) -> Batch:
    """Fresh samples, shared out evenly or by the emphasis on each prompt; or the next of the pool."""
    if budget.pool is None and emphasis is not None:
        return emphasis.batch(budget.samples, seed.child("tune", step))
    if budget.pool is None:
        return batch_of(prompts, budget.samples, seed.child("tune", step))
    whole = batch_of(prompts, budget.pool, seed.child("pool"))
    rows = [n % budget.pool for n in range(step * budget.samples, (step + 1) * budget.samples)]
    return Batch(tuple(whole.prompts[n] for n in rows), tuple(whole.seeds[n] for n in rows))


def _step(
    problem: Problem,
    estimator: SampleEstimator,
    optimizer: Optimizer,
    batch: Batch,
    budget: Budget,
    seed: Seed,
    state: State,
    emphasis: Emphasis | None = None,
) -> TuningStep:
    problem.prepare(batch)
    if problem.learning is not None:
        problem.learning.update(problem.value(state.u), seed.child("train"))
    reward_weights = problem.reward_weights
    weights = torch.cat([reward_weights, state.multipliers])
    at = SamplesAt(state.u, batch, weights, seed, state.estimator, None if emphasis is None else emphasis.factor)
    estimate = estimator(problem, at)
    per_sample = reward_weights @ estimate.scores[: len(reward_weights)]
    gaps = gaps_of(problem, estimate.scores.mean(1), batch)

    status = _status(estimate)
    after = replace(state, steps=state.steps + 1, wasted=state.wasted + 1, learning=_learned(problem))
    if status != "non_finite":  # a first one-point step has no gradient yet, and is what the second one needs
        after = replace(after, estimator=dict(estimate.state))
        if emphasis is not None:
            after = replace(after, standing=_standing(state, emphasis, at, per_sample, estimate))
    if status == "ok":
        u, optimizer_state = optimizer.step(
            state.u,
            estimate.grad,
            state.optimizer,
            state.steps / budget.steps,
            noise=estimate.grad_se,
            width=estimate.width,
        )
        after = replace(after, u=u, optimizer=optimizer_state, wasted=0)
        multipliers, integral = _multipliers(state.integral, gaps, estimate, reward_weights)
        after = replace(after, multipliers=multipliers, integral=integral)
    after = replace(after, cost=problem.process.meter.as_dict())
    step = step_of(problem, state, estimate, gaps, status, after, reward_weights)
    if emphasis is None:
        return step
    value, value_se = _value(per_sample, at)
    scores = _over_prompts(estimate.scores, emphasis, batch)
    return replace(step, scores=scores, value=value, value_se=value_se, emphasis=emphasis)


def step_of(
    problem: Problem,
    state: State,
    estimate: Estimate,
    gaps: Tensor,
    status: str,
    after: State,
    reward_weights: Tensor,
    objective: float | None = None,
) -> TuningStep:
    """The record of a step that stood at `state` and is followed by `after`."""
    per_sample = reward_weights @ estimate.scores[: len(reward_weights)]  # (N,)
    return TuningStep(
        index=state.steps,
        phi=problem.value(state.u),
        u=state.u,
        grad=estimate.grad,
        grad_se=estimate.grad_se,
        width=estimate.width,
        scores=estimate.scores.mean(1),
        value=per_sample.mean().item(),
        value_se=per_sample.std().item() / len(per_sample) ** 0.5,
        gaps=gaps,
        multipliers=state.multipliers,
        status=status,
        state=after,
        indirect=estimate.indirect,
        apart=estimate.apart,
        objective=objective,
    )


def _over_prompts(scores: Tensor, emphasis: Emphasis | None, batch: Batch) -> Tensor:
    """The mean over the prompts of the scores (K, N), however often each was drawn, (K,)."""
    if emphasis is None:
        return scores.mean(1)
    even = emphasis.evenly(batch.prompts)
    return (even * scores).sum(1) / even.sum()


def _value(values: Tensor, at: SamplesAt) -> tuple[float, float]:
    """The objective by the samples' values (N,), and its standard error."""
    if at.factor is None:
        return values.mean().item(), values.std().item() / len(values) ** 0.5
    weight = at.factors(at.batch.prompts)
    value = (weight * values).sum() / weight.sum()
    error = (weight * (values - value)).square().sum().sqrt() / weight.sum()
    return value.item(), error.item()


def _standing(state: State, emphasis: Emphasis, at: SamplesAt, values: Tensor, estimate: Estimate) -> dict[str, Tensor]:
    """What is known of each prompt after this step, by the samples' rewards (N,) and their slopes."""
    if estimate.slopes is None:
        raise RuntimeError("this estimator does not say what each sample's derivative is")
    prompts = at.batch.prompts
    slopes = estimate.slopes / at.factors(prompts)
    return updated(state.standing, emphasis.prompts, prompts, values, slopes, state.u, state.steps)


def _learned(problem: Problem) -> dict[str, Tensor]:
    """What a network that is trained between steps has come to; one that is not is no part of the loop's state."""
    learning = problem.learning
    return learning.state() if learning is not None and learning.moves else {}


def gaps_of(problem: Problem, scores: Tensor, batch: Batch) -> Tensor:
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
