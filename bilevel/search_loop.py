"""The outer loop of a search: a generator of steps, each of which measures one candidate.

    candidate = search.ask()
    value     = mean score of the samples at the candidate, less a price for each constraint that it misses
    search.tell(value)

A number is searched over as a share s of its range, u = logit(s), so that s is linear in phi (or in its logarithm,
where the tunable counts it so). A number without bounds, such as the ratio of two time steps, is searched within
`REACH` of its start in u. All candidates are drawn from the same prompts and seeds where `common` says so: then the
noise of two candidates is shared.

Like `bilevel.loop`, it prints nothing and writes nothing, and each step carries the state from which it goes on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from genbo.bilevel.candidate_value import CandidateValue
from genbo.bilevel.loop import PATIENCE, Budget, State, TuningStep, begin, gaps_of, step_of
from genbo.bilevel.problem import Problem, SamplesAt
from genbo.bilevel.protocols import Estimate
from genbo.bilevel.trials import Candidate, Search, Searcher, Space, Trial, resumed
from genbo.diffusion.seed import Batch, Seed, batch_of

REACH = 2.0  # in u, on either side of the start, of a number without bounds
INSIDE = 1e-4  # of the range: a candidate on a bound is measured this far inside
PRICE = 10.0  # of a constraint that is missed, in spreads of the reward for each spread of the constraint


def space_of(problem: Problem) -> Space:
    """The numbers of phi by the tunables' names, each a share of its range; the start is tried first."""
    steps = problem.process.steps
    names = [f"{t.name}[{k}]" for t in problem.tunables for k in range(t.size(steps))]
    return Space(tuple(names), first=Candidate(tuple(_shares(problem, _start(problem)).tolist())))


def coordinates(problem: Problem, candidate: Candidate) -> Tensor:
    """u (P,) of a candidate."""
    share = torch.tensor(candidate.shares, dtype=torch.float64).clamp(INSIDE, 1 - INSIDE)
    start = _start(problem)
    return share.logit().where(_bounded(problem), start + REACH * (2 * share - 1))


def _start(problem: Problem) -> Tensor:
    """u (P,) of the start, a number on a bound as near to it as it can be measured."""
    return problem.coordinates(problem.first())


def _shares(problem: Problem, u: Tensor) -> Tensor:
    """The inverse of `coordinates`, (P,) in [0, 1]."""
    return u.sigmoid().where(_bounded(problem), (u - _start(problem)) / (2 * REACH) + 0.5).clamp(0, 1)


def _bounded(problem: Problem) -> Tensor:
    """(P,): which numbers have bounds of their own."""
    bounds = [pair for t in problem.tunables for pair in t.bounds_of(problem.process.steps)]
    return torch.tensor([pair is not None for pair in bounds])


def tune(
    problem: Problem,
    value: CandidateValue,
    searcher: Searcher,
    prompts: Sequence[str],
    budget: Budget,
    seed: Seed,
    state: State | None = None,
) -> Iterator[TuningStep]:
    """Asks for a candidate, measures it, and yields it as a step whose gradient is NaN.

    Args:
        problem: what is tuned, of what, for what.
        value: gives the scores of samples at u, the same ones for all candidates where it is `common`.
        searcher: chooses the candidates.
        prompts: shared out evenly among the samples of a step.
        budget: when to end; `steps` is the number of candidates.
        seed: every sample of step k depends on it and on k alone.
        state: where an earlier loop has left off; by default the beginning.

    Yields:
        Steps until the budget is spent, or the first `PATIENCE` candidates all had scores that are not finite.

    Raises:
        NotTheSame: where the searcher would not have asked for the candidates in `state`.
    """
    state = state or begin(problem)
    meter = problem.process.meter
    for name, spent in state.cost.items():
        setattr(meter, name, spent)
    search = resumed(searcher.open(space_of(problem), budget.steps, seed.child("search")), trials_in(state))
    while state.steps < budget.steps and not (state.wasted == state.steps >= PATIENCE):
        if budget.denoiser_calls is not None and meter.denoiser_calls >= budget.denoiser_calls:
            return
        batch = batch_of_trial(prompts, budget, seed, state.steps, common=value.common)
        step = _step(problem, value, search, batch, seed.child("tune", state.steps), state)
        yield step
        state = step.state


def batch_of_trial(prompts: Sequence[str], budget: Budget, seed: Seed, trial: int, *, common: bool) -> Batch:
    """The samples of one candidate: the same for all, or new ones."""
    return batch_of(prompts, budget.samples, seed.child("pool") if common else seed.child("tune", trial))


def _step(
    problem: Problem, value_at: CandidateValue, search: Search, batch: Batch, seed: Seed, state: State
) -> TuningStep:
    problem.prepare(batch)
    candidate = search.ask()
    u = coordinates(problem, candidate)
    weights = problem.reward_weights
    none = torch.zeros(len(problem.constraints), dtype=torch.float64)
    estimate = value_at(problem, SamplesAt(u, batch, torch.cat([weights, none]), seed))
    gaps = gaps_of(problem, estimate.scores.mean(1), batch)
    value = _objective(estimate, weights, gaps)
    search.tell(value)
    fine = math.isfinite(value)
    after = replace(
        state,
        u=u,
        steps=state.steps + 1,
        wasted=0 if fine else state.wasted + 1,
        optimizer=_with(state, candidate, value),
        cost=problem.process.meter.as_dict(),
    )
    return step_of(
        problem, replace(state, u=u), estimate, gaps, "ok" if fine else "non_finite", after, weights, objective=value
    )


def _objective(estimate: Estimate, weights: Tensor, gaps: Tensor) -> float:
    """The mean reward, less what missed constraints cost; NaN where a score is not finite."""
    per_sample = weights @ estimate.scores[: len(weights)]
    if not estimate.scores.isfinite().all():
        return math.nan
    if not len(gaps):
        return per_sample.mean().item()
    spread = estimate.scores[len(weights) :].std(1).clamp(min=1e-12)
    short = (-gaps).clamp(min=0) / spread
    return (per_sample.mean() - PRICE * per_sample.std() * short.sum()).item()


# -- the trials so far, which are all that a search remembers ----------------------------------------------------------


def _with(state: State, candidate: Candidate, value: float) -> dict[str, Tensor]:
    """The trials of a state and one more: `shares` (n, P), `values` (n,), and `failed` (n,), 1 where there is none."""
    fine = math.isfinite(value)
    new = {
        "shares": torch.tensor([candidate.shares], dtype=torch.float64),
        "values": torch.tensor([value if fine else 0.0], dtype=torch.float64),
        "failed": torch.tensor([0.0 if fine else 1.0], dtype=torch.float64),
    }
    return {name: torch.cat([state.optimizer[name], row]) if state.steps else row for name, row in new.items()}


def trials_in(state: State) -> list[Trial]:
    """The trials behind a state, in their order."""
    if not state.steps:
        return []
    rows = zip(*(state.optimizer[name].tolist() for name in ("shares", "values", "failed")), strict=True)
    return [Trial(Candidate(tuple(shares)), math.nan if failed else value) for shares, value, failed in rows]
