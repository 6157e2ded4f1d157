"""The outer loop of a search: a generator of steps, each of which measures one candidate.

    candidate = search.ask()
    value     = mean score of the samples at the candidate, less a price for each constraint that it misses
    search.tell(value)

Where there are choices beside the numbers, each combination of them is a problem of its own (`bilevel.variants`). Where
there is a pruner, a candidate is measured on a growing part of its samples, and ends where the pruner stops it: its
value is then that of the samples so far.

A number is searched over as a share s of its range, u = logit(s), so that s is linear in phi (or in its logarithm,
where the tunable counts it so). A number without bounds, such as the ratio of two time steps, is searched within
`REACH` of its start in u. All candidates are drawn from the same prompts and seeds where `common` says so: then the
noise of two candidates is shared.

Like `bilevel.loop`, it prints nothing and writes nothing, and each step carries the state from which it goes on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from genbo.bilevel.candidate_value import CandidateValue, GrowingScores, measured
from genbo.bilevel.loop import PATIENCE, Budget, State, TuningStep, begin, step_of
from genbo.bilevel.problem import Problem
from genbo.bilevel.trials import Candidate, Pruner, Pruning, Search, Searcher, Space, Trial, replayed, resumed
from genbo.bilevel.variants import Variants, Words
from genbo.diffusion.seed import Batch, Seed, batch_of

REACH = 2.0  # in u, on either side of the start, of a number without bounds
INSIDE = 1e-4  # of the range: a candidate on a bound is measured this far inside
PRICE = 10.0  # of a constraint that is missed, in spreads of the reward for each spread of the constraint


@dataclass(frozen=True)
class Tried(TuningStep):
    """The step of a candidate.

    Attributes:
        words: the word of each choice, where there are choices.
        samples: how many were drawn at it.
        rungs: its values, less what missed constraints cost, where a pruner looked at it.
    """

    words: Words = field(default_factory=dict)
    samples: int = 0
    rungs: tuple[float, ...] = ()


def space_of(variants: Variants) -> Space:
    """The numbers of phi by the tunables' names, each a share of its range, and the choices; the start comes first."""
    problem = variants.start
    steps = problem.process.steps
    names = [f"{t.name}[{k}]" for t in problem.tunables for k in range(t.size(steps))]
    first = Candidate(tuple(_shares(problem, _start(problem)).tolist()), dict(variants.first))
    return Space(tuple(names), dict(variants.choices), first)


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
    return torch.tensor([pair is not None for pair in bounds], dtype=torch.bool)


def tune(
    problem: Problem,
    value: CandidateValue,
    searcher: Searcher,
    prompts: Sequence[str],
    budget: Budget,
    seed: Seed,
    state: State | None = None,
    *,
    variants: Variants | None = None,
    pruner: Pruner | None = None,
) -> Iterator[Tried]:
    """Asks for a candidate, measures it, and yields it as a step whose gradient is NaN.

    Args:
        problem: what is tuned, of what, for what.
        value: gives the scores of samples at u, the same ones for all candidates where it is `common`.
        searcher: chooses the candidates.
        prompts: shared out evenly among the samples of a step.
        budget: when to end; `steps` is the number of candidates.
        seed: every sample of step k depends on it and on k alone.
        state: where an earlier loop has left off; by default the beginning.
        variants: the choices beside phi, of which `problem` is the start; by default there are none.
        pruner: stops candidates on a part of their samples; by default all are drawn.

    Yields:
        Steps until the budget is spent, or the first `PATIENCE` candidates all had scores that are not finite.

    Raises:
        NotTheSame: where the searcher would not have asked for the candidates in `state`.
    """
    state = state or begin(problem)
    meter = problem.process.meter
    for name, spent in state.cost.items():
        setattr(meter, name, spent)
    under_way = _begun(variants or Variants(problem), searcher, pruner, budget, seed, state)
    while state.steps < budget.steps and not (state.wasted == state.steps >= PATIENCE) and not _spent(budget, problem):
        batch = batch_of_trial(prompts, budget, seed, state.steps, common=value.common)
        step = under_way.step(batch, state)
        yield step
        state = step.state


def _spent(budget: Budget, problem: Problem) -> bool:
    meter = problem.process.meter
    calls, work = budget.denoiser_calls, budget.work
    worked = meter.image_forwards + 2 * meter.image_backwards
    return (calls is not None and meter.denoiser_calls >= calls) or (work is not None and worked >= work)


def batch_of_trial(prompts: Sequence[str], budget: Budget, seed: Seed, trial: int, *, common: bool) -> Batch:
    """The samples of one candidate: the same for all, or new ones."""
    return batch_of(prompts, budget.samples, seed.child("pool") if common else seed.child("tune", trial))


@dataclass(frozen=True)
class _UnderWay:
    """A search with all that measures its candidates; `rungs` are numbers of samples, the last of them all."""

    variants: Variants
    search: Search
    pruning: Pruning | None
    rungs: tuple[int, ...]

    def step(self, batch: Batch, state: State) -> Tried:
        """Measures the next candidate, tells the search, and gives the record."""
        start = self.variants.start
        candidate = self.search.ask()
        problem = self.variants.at(candidate.words)
        u = coordinates(problem, candidate)
        found = self._climbed(problem, u, batch)
        trial = Trial(candidate, found.value, found.rungs, found.samples / self.rungs[-1])
        self.search.tell(trial.value, trial.share)
        fine = math.isfinite(trial.value)
        after = replace(
            state,
            u=u,
            steps=state.steps + 1,
            wasted=0 if fine else state.wasted + 1,
            optimizer=_with(state, trial, self.variants, self.rungs),
            cost=start.process.meter.as_dict(),
        )
        status, weights = "ok" if fine else "non_finite", problem.reward_weights
        estimate, here = measured(u, found.scores), replace(state, u=u)
        step = step_of(problem, here, estimate, found.gaps, status, after, weights, objective=trial.value)
        return Tried(**vars(step), words=candidate.words, samples=found.samples, rungs=trial.rungs)

    def _climbed(self, problem: Problem, u: Tensor, batch: Batch) -> _Found:
        """The candidate on one rung after the other, until the last, a stop, or a score that is not finite."""
        of_candidate = GrowingScores(problem, problem.value(u))
        levels, looks, at = _Levels(self.variants.start), list[float](), 0
        for samples in self.rungs:
            more = batch.part(slice(at, samples))
            scores, at = of_candidate.with_more(more), samples
            gaps = scores[len(problem.rewards) :].mean(1) - levels.with_more(more)
            value = _objective(scores, problem.reward_weights, gaps)
            if samples == self.rungs[-1] or not math.isfinite(value):
                break
            looks.append(value)
            if self._stops(value, samples):
                break
        if self.pruning is not None:
            self.pruning.ended()
        return _Found(scores, gaps, value, tuple(looks), at)

    def _stops(self, value: float, samples: int) -> bool:
        return self.pruning is not None and self.pruning.stops(value, samples)


@dataclass(frozen=True)
class _Found:
    """Scores (K, N) of N samples, the gaps of the constraints, the value, and those where a pruner looked."""

    scores: Tensor
    gaps: Tensor
    value: float
    rungs: tuple[float, ...]
    samples: int


class _Levels:
    """The levels of the constraints, (C,); a relative one is measured at the start on the same samples."""

    def __init__(self, start: Problem) -> None:
        constraints = start.constraints
        self._fixed = torch.tensor([c.at_least for c in constraints], dtype=torch.float64)
        self._relative = torch.tensor([c.relative_to_start for c in constraints], dtype=torch.bool)
        self._at_start = GrowingScores(start, start.first())

    def with_more(self, batch: Batch) -> Tensor:
        if not self._relative.any():
            return self._fixed
        problem = self._at_start.problem
        means = self._at_start.with_more(batch).mean(1)[len(problem.rewards) :]
        return self._fixed + means.where(self._relative, torch.zeros_like(means))


def _begun(
    variants: Variants,
    searcher: Searcher,
    pruner: Pruner | None,
    budget: Budget,
    seed: Seed,
    state: State,
) -> _UnderWay:
    """The search as it stands after the trials in a state."""
    rungs = (budget.samples,) if pruner is None else pruner.rungs(budget.samples)
    trials = trials_in(state, variants, rungs)
    search = resumed(searcher.open(space_of(variants), budget.steps, seed.child("search")), trials)
    pruning = None if pruner is None else replayed(pruner.open(budget.samples, seed), rungs, trials)
    return _UnderWay(variants, search, pruning, rungs)


def _objective(scores: Tensor, weights: Tensor, gaps: Tensor) -> float:
    """The mean reward, less what missed constraints cost; NaN where a score is not finite."""
    if not scores.isfinite().all():
        return math.nan
    per_sample = weights @ scores[: len(weights)]
    if not len(gaps):
        return per_sample.mean().item()
    spread = scores[len(weights) :].std(1).clamp(min=1e-12)
    short = (-gaps).clamp(min=0) / spread
    return (per_sample.mean() - PRICE * per_sample.std() * short.sum()).item()


# -- the trials so far, which are all that a search remembers ----------------------------------------------------------


def _with(state: State, trial: Trial, variants: Variants, rungs: Sequence[int]) -> dict[str, Tensor]:
    """The trials of a state and one more, a row of each table:

    shares (n, P), values (n,), failed (n,)     1 where there is no value
    words (n, C)                                the place of each choice's word, where there are choices
    rungs (n, R), samples (n,)                  values at the rungs but the last, where there are several
    """
    fine = math.isfinite(trial.value)
    rows: dict[str, list[list[float]] | list[float]] = {
        "shares": [list(trial.point.shares)],
        "values": [trial.value if fine else 0.0],
        "failed": [0.0 if fine else 1.0],
    }
    if variants.choices:
        rows["words"] = [[float(words.index(trial.point.words[name])) for name, words in variants.choices.items()]]
    if len(rungs) > 1:
        rows["rungs"] = [[*trial.rungs, *[0.0] * (len(rungs) - 1 - len(trial.rungs))]]
        rows["samples"] = [trial.share * rungs[-1]]
    new = {name: torch.tensor(row, dtype=torch.float64) for name, row in rows.items()}
    return {name: torch.cat([state.optimizer[name], row]) if state.steps else row for name, row in new.items()}


def trials_in(state: State, variants: Variants, rungs: Sequence[int]) -> list[Trial]:
    """The trials behind a state, in their order."""
    return [_trial(state, number, variants, rungs) for number in range(state.steps)]


def _trial(state: State, number: int, variants: Variants, rungs: Sequence[int]) -> Trial:
    def row(table: str) -> list[float]:
        listed = state.optimizer[table][number].reshape(-1).tolist() if table in state.optimizer else []
        return [float(entry) for entry in listed]

    places = zip(variants.choices.items(), row("words"), strict=True)
    point = Candidate(tuple(row("shares")), {name: words[int(place)] for (name, words), place in places})
    (failed,) = row("failed")
    value = math.nan if failed else row("values")[0]
    if len(rungs) == 1:
        return Trial(point, value)
    samples = round(row("samples")[0])
    stopped = samples < rungs[-1] and not failed
    return Trial(point, value, tuple(row("rungs")[: rungs.index(samples) + stopped]), samples / rungs[-1])
