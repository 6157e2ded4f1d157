"""The last steps of a climb as a race, where nothing else says that its end is better than its start.

    ahead_m = mean over the samples of   r(candidate m) - r(answer),      all on the same samples

A climb can end worse than it began: its steps were too long, or its gradients were mostly noise. So before the last
tenth of the steps the gain over the start is read off the values of the last quarter, or added up from the gradients
along the path, which share the noise of their two sides:

    gain = sum_k g_{k+1} (u_{k+1} - u_k)

of which each is that of the arrival, whose noise had no part in the move. Where the gain stands clear of its noise, or
the one number that is tuned has a root with an interval, the remaining steps follow the gradient as before. Elsewhere
they compare candidates: the answer so far, the start, the mean of the last steps, and the steps with the highest
values. As many as the members of a difference, so a lap costs exactly what a step costs. One that is clearly ahead of
the answer takes its place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from genbo.bilevel.found import domain
from genbo.bilevel.loop import PATIENCE, Budget, Lap, State, TuningStep, batch_of_step, begin, go_on
from genbo.bilevel.loop import tune as climb
from genbo.bilevel.problem import Problem, SampleEstimator
from genbo.bilevel.protocols import Optimizer
from genbo.bilevel.root_estimate import TAIL, Answer, answer
from genbo.diffusion.seed import Seed

FEWEST = 5  # steps of a budget in which there is room for a race
PART = 10  # the steps over this are raced, one at least
CLEAR = 3.0  # standard errors by which a gain is beyond doubt
SURE = 2.5  # standard errors by which a candidate must be ahead of the answer
APART = 0.05  # in u: candidates that are nearer to each other are one
ASIDE = 1e-5  # in u: a place where the weight may be 1 is measured this far from it, so all candidates cost the same


Path = Mapping[str, Tensor]  # rows of usable steps: COLUMNS, of which the first three have P entries, the others one
COLUMNS = ("u", "grad", "grad_se", "value", "value_se", "width")


@dataclass(frozen=True)
class Past:
    """The usable steps of a climb so far, whose unknown errors are 0; and the candidates, where a race has begun."""

    path: Path = field(default_factory=dict)
    members: Tensor | None = None

    def with_step(self, step: TuningStep) -> Past:
        """And one more step."""
        if step.status != "ok":
            return self
        new = {name: torch.as_tensor(getattr(step, name), dtype=torch.float64).reshape(1, -1) for name in COLUMNS}
        new = {name: row.nan_to_num(0.0, 0.0, 0.0) for name, row in new.items()}
        return replace(self, path={n: torch.cat([self.path[n], x]) if self.path else x for n, x in new.items()})


def laps(budget: Budget) -> int:
    """How many of the last steps may be raced."""
    return max(1, budget.steps // PART) if budget.steps >= FEWEST else 0


def why_not(problem: Problem, estimator: SampleEstimator, budget: Budget) -> str | None:
    """None, or why a job of this kind is never raced."""
    draws = estimator.cost(problem.parameters).draws
    if not laps(budget):
        return f"fewer than {FEWEST} steps have no room for a race"
    if len(draws) != 1 or len(draws[0]) < 2 or None in draws[0]:
        return "the gradients are not differences on common samples, in whose place candidates could be drawn"
    if problem.constraints or not problem.objective.is_mean:
        return "the objective moved along the path"
    if problem.learning is not None and problem.learning.moves:
        return "the network was trained along the path"
    return None


def tune(
    problem: Problem,
    estimator: SampleEstimator,
    optimizer: Optimizer,
    prompts: Sequence[str],
    budget: Budget,
    seed: Seed,
    state: State | None = None,
    past: Past | None = None,
) -> Iterator[TuningStep]:
    """The steps of `loop.tune`, of which the last ones are laps of a race where that is needed.

    The step after the decision carries the reason where there is no race. `past` is what led to `state`.
    """
    state, at, past = state or begin(problem), budget.steps - laps(budget), past or Past()
    steps = climb(problem, estimator, optimizer, prompts, budget, seed, state)
    if why_not(problem, estimator, budget) is not None:
        yield from steps
        return
    while state.steps < at:
        step = next(steps, None)
        if step is None:
            return
        yield step
        state, past = step.state, past.with_step(step)
    if state.wasted >= PATIENCE:
        return
    needless, members = None, past.members
    if state.steps == at:
        needless = unneeded(problem, past.path)
        if not needless:
            members = candidates(problem, past.path, len(estimator.cost(problem.parameters).draws[0]))
    if members is None:
        first = next(steps, None)
        if first is not None:
            yield first if needless is None else replace(first, not_raced=needless)
            yield from steps
        return
    go_on(problem, state)
    while state.steps < budget.steps:
        if budget.denoiser_calls is not None and problem.process.meter.denoiser_calls >= budget.denoiser_calls:
            return
        step = _lap(problem, members, prompts, budget, seed, state)
        yield step
        state = step.state


# -- whether it is needed ----------------------------------------------------------------------------------------------


def gains(path: Path) -> Iterator[tuple[float, float]]:
    """By how much the path's end is above its beginning, and the standard error of that.

    By its gradients, where they are central differences: derivatives miss jumps. And by its values.
    """
    if (path["width"] > 0).all() and (path["grad_se"] > 0).all():
        moves = path["u"].diff(dim=0)
        by_step, noise = path["grad"][1:] * moves, path["grad_se"][1:] * moves
        yield by_step.sum().item(), noise.square().sum().sqrt().item()
    last = max(1, round(len(path["value"]) * TAIL))
    value, se = path["value"][:, 0], path["value_se"][:, 0]
    yield (value[-last:].mean() - value[0]).item(), (se[-last:].square().mean() / last + se[0] ** 2).sqrt().item()


def unneeded(problem: Problem, path: Path) -> str | None:
    """None, or why the last steps are better spent along the gradient."""
    if not path or len(path["u"]) < FEWEST - 1:
        return "there are too few steps to tell"
    for gain, se in gains(path):
        if gain > CLEAR * se:
            return f"along the path the reward rose by {gain:.3g} ± {se:.2g} over the start"
    if problem.parameters == 1 and _answer(problem, path).kinds == ("interior",):
        return "its one number has a root with an interval inside the path"
    return None


def _answer(problem: Problem, path: Path) -> Answer:
    columns = [[*path[name]] for name in ("u", "grad", "grad_se")]
    return answer(*columns, domain=domain(problem, path["u"]), width=path["width"].max().item())


# -- the race ----------------------------------------------------------------------------------------------------------


def candidates(problem: Problem, path: Path, count: int) -> Tensor:
    """(count, P) in u: the answer so far, the start, the mean of the last steps, and then the steps by their values."""
    tail = path["u"][-max(1, round(len(path["u"]) * TAIL)) :].mean(0)
    seen = path["u"][path["value"][:, 0].argsort(descending=True, stable=True)]
    found = [_answer(problem, path).u, begin(problem).u + ASIDE]
    for u in (tail, *(seen + ASIDE)):
        if min((u - known).abs().max().item() for known in found) > APART:
            found.append(u)
    found += [found[0]] * count
    return torch.stack(found[:count])


def names(count: int) -> list[str]:
    """What the candidates are."""
    return ["answer", "start", *["candidate from the path"] * (count - 2)]


def _lap(
    problem: Problem, members: Tensor, prompts: Sequence[str], budget: Budget, seed: Seed, state: State
) -> TuningStep:
    batch = batch_of_step(prompts, budget, seed, state.steps)
    problem.prepare(batch)
    weights = problem.reward_weights
    scores = problem.scores(problem.value(members), batch)  # (K, M, N)
    total = torch.einsum("k,kmn->mn", weights, scores[: len(weights)])
    ahead = total - total[0]
    after = replace(state, steps=state.steps + 1, cost=problem.process.meter.as_dict(), wasted=0)
    unknown = torch.full_like(members[0], torch.nan)
    return TuningStep(
        index=state.steps,
        phi=problem.value(members[0]),
        u=members[0],
        grad=unknown,
        grad_se=unknown,
        scores=scores[:, 0].mean(1),
        value=total[0].mean().item(),
        value_se=total[0].std().item() / len(batch) ** 0.5,
        gaps=torch.zeros(0, dtype=torch.float64),
        multipliers=state.multipliers,
        status="raced",
        state=after,
        lap=Lap(members, ahead.mean(1), ahead.std(1) / len(batch) ** 0.5),
    )


@dataclass(frozen=True)
class Outcome:
    """The candidate that the answer is (0: as it was), and how far it and the start are ahead of the answer so far."""

    winner: int
    ahead: float
    se: float
    start_ahead: float
    start_se: float


def outcome(ahead: Sequence[Sequence[float]], ahead_se: Sequence[Sequence[float]]) -> Outcome:
    """Of laps with a row each: the candidate that leads most of those that clearly lead the answer, over all laps.

    A candidate with a lead that is not finite in any lap has lost.
    """
    lead, errors = torch.tensor(ahead, dtype=torch.float64), torch.tensor(ahead_se, dtype=torch.float64)
    mean, se = lead.mean(0), errors.square().sum(0).sqrt() / len(lead)
    clear = mean.isfinite() & (mean > SURE * se)
    winner = int(mean.where(clear, -math.inf).argmax()) if clear.any() else 0
    return Outcome(winner, mean[winner].item(), se[winner].item(), mean[1].item(), se[1].item())
