"""The stages of a climb: steps along the gradient, the answer, and start against tuned on held-out samples."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from genbo.cli.errors import ArtifactRefused, Diverged
from genbo.cli.run.checkpoints import Checkpoint
from genbo.cli.run.faults import fault
from genbo.cli.run.journal import Mark
from genbo.cli.run.json_files import strict
from genbo.cli.run.loop_state import kinds
from genbo.cli.stages.context import Context, counting, judges_said, names_of, time_left
from genbo.cli.stages.finish import conclude, counted

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.loop import State, TuningStep
    from genbo.bilevel.problem import Problem
    from genbo.bilevel.race import Past
    from genbo.cli.job.job import Job
    from genbo.cli.report.held_out_side import Side
    from genbo.cli.report.summary import HeldOut, Names, Tuned
    from genbo.cli.run.chunk_cache import ChunkCache
    from genbo.cli.stages.build import Assembled

Document = dict[str, Any]


def whole(context: Context) -> Generator[Document, None, Document]:
    """All stages in order; each finds what an earlier process has left of it. Gives a step when it is safe."""
    from genbo.cli.plan.throughput import record_speed
    from genbo.cli.report import summary
    from genbo.cli.stages import pretraining

    first, anew = pretraining.kept_networks(context), pretraining.kept_networks(context)
    if context.job.trains:
        pretraining.before(context, first)
    last = yield from climb(context)
    problem, records = context.assembled.problem, context.run.journal.records
    if gave_up(last):
        reason = why_given_up(records)
        tuned = summary.last_good(problem, records)
        conclude(context, tuned, None, {**last.state.cost, "elapsed_s": last.elapsed_s}, "diverged", reason)
        raise Diverged(reason)
    tuned = summary.tuned_of(problem, records, context.assembled.at)
    tuned = replace(tuned, phi=context.assembled.at(tuned.choices).settled(tuned.phi))
    before, after = sides_of(context, tuned, anew)
    held_out = evaluate(context, (before, after), (problem.first(), tuned.phi), last)
    later = (anew, held_out.start, held_out.tuned)
    so_far = last.state.cost or dict.fromkeys(problem.process.meter.as_dict(), 0)
    cost = {key: spent + sum(stage.cost.get(key, 0) for stage in later) for key, spent in so_far.items()}
    cost = counted(cost, first.cost, *(record["cost"] for record in records), *(stage.cost for stage in later))
    elapsed_s = first.elapsed_s + last.elapsed_s + sum(stage.elapsed_s for stage in later)
    document = conclude(
        context, tuned, held_out, {**cost, "elapsed_s": elapsed_s}, "done", None, process=after.at(tuned.phi)
    )
    record_speed(context.job, cost.get("image_forwards", 0), elapsed_s)
    context.run.status("done", document["headline"], last_step=context.run.last_step, resumable=False)
    return document


def climb(context: Context) -> Generator[Document, None, Checkpoint]:
    """Steps until the budget is spent; what a step saw is on the disk before the next begins."""
    run = context.run
    last = where_it_stood(context)
    run.last_step = last.state.steps
    context.screen.begin(run.journal.records)
    began = time.monotonic() - last.elapsed_s
    steps = steps_of(context.assembled, last.state, run.journal.records)
    context.stop_if_asked()
    while not out_of_time(context, last):
        step = next(steps, None)
        if step is None:
            break
        fault("step.computed")
        last = keep(context, step, time.monotonic() - began)
        yield run.journal.last
        context.stop_if_asked()
    return last


def steps_of(a: Assembled, state: State, records: Sequence[Document] = ()) -> Iterator[TuningStep]:
    """Steps along the gradient, or candidates of a search, from a state on; the records are of the steps before."""
    from genbo.bilevel import race, search_loop

    if a.searcher is None:
        return race.tune(a.problem, a.estimator, a.optimizer, a.prompts, a.budget, a.seed, state, _past(records))
    return search_loop.tune(
        a.problem,
        a.candidate_value,
        a.searcher,
        a.prompts,
        a.budget,
        a.seed,
        state,
        variants=a.variants,
        pruner=a.pruner,
    )


def _past(records: Sequence[Document]) -> Past:
    """What the race of the last steps must know of the journal."""
    import torch

    from genbo.bilevel.race import COLUMNS, Past

    usable = [record for record in records if record["status"] == "ok"]
    columns = {name: [_row(record.get(name, 0.0)) for record in usable] for name in COLUMNS if usable}
    raced = [record["race"]["members"] for record in records if "members" in record.get("race", {})]
    members = torch.tensor(raced[0], dtype=torch.float64) if raced else None
    return Past({name: torch.tensor(rows, dtype=torch.float64) for name, rows in columns.items()}, members)


def _row(found: Any) -> list[float]:
    """A number or a list as a row, 0 where it is not known."""
    return [0.0 if x is None else float(x) for x in (found if isinstance(found, list) else [found])]


def where_it_stood(context: Context) -> Checkpoint:
    """The newest checkpoint that holds, and the journal put back to it; else the beginning."""
    from genbo.bilevel.loop import begin

    run, problem = context.run, context.assembled.problem
    found = run.last_safe_point()
    for file in run.checkpoints.skipped:
        context.screen.note(f"{file} is damaged and was skipped: going on from an older checkpoint")
    first = begin(problem)
    if found is None:
        run.journal.restore(Mark())
        found = Checkpoint(first, Mark(), 0.0)
    for name in (name for name, kind in kinds().items() if kind == "tensor"):
        has, wanted = getattr(found.state, name).shape, getattr(first, name).shape
        if has != wanted:
            raise ArtifactRefused(f"the checkpoint's tensor {name!r} is {tuple(has)}, not {tuple(wanted)}")
    return found


def keep(context: Context, step: TuningStep, elapsed_s: float) -> Checkpoint:
    """The step into the journal, then the checkpoint that follows it."""
    run, names = context.run, names_of(context.assembled)
    record = record_of(step, context.assembled, names, elapsed_s) | as_candidate(step, context.job)
    run.journal.append(record)
    last = Checkpoint(step.state, run.journal.mark, elapsed_s)
    run.checkpoints.save(last)
    run.last_step = step.state.steps
    text = f"step {run.last_step} of {context.assembled.budget.steps}"
    run.status("running", text, last_step=run.last_step, resumable=True)
    context.screen.step(strict(record), time_left(context, last.state.cost, elapsed_s))
    return last


def record_of(step: TuningStep, assembled: Assembled, names: Names, elapsed_s: float) -> Document:
    """A line of `steps.jsonl`."""
    return {
        "step": step.index,
        "phi": assembled.problem.spoken(step.phi),
        "value": step.value,
        "value_se": step.value_se,
        "scores": dict(zip((*names.rewards, *names.constraints), step.scores.tolist(), strict=True)),
        "gaps": dict(zip(names.constraints, step.gaps.tolist(), strict=True)),
        "multipliers": dict(zip(names.constraints, step.multipliers.tolist(), strict=True)),
        "u": step.u.tolist(),
        "grad": step.grad.tolist(),
        "grad_se": step.grad_se.tolist(),
        **({"width": step.width} if step.width else {}),
        **({} if step.objective is None else {"objective": step.objective}),
        **_parts(step),
        **_raced(step),
        "status": step.status,
        "cost": step.state.cost,
        "elapsed_s": round(elapsed_s, 3),
    }


def as_candidate(step: TuningStep, job: Job) -> Document:
    """Of a candidate of a search: what was chosen, and on how many samples it was measured, where these may differ."""
    from genbo.bilevel.search_loop import Tried

    if not isinstance(step, Tried):
        return {}
    found: Document = {}
    if job.choices:
        found["choices"] = {name: choice.value(step.words[name]) for name, choice in job.choices.items()}
    if job.search is not None and job.search.pruner is not None:
        found |= {"samples": step.samples, "rungs": list(step.rungs)}
    return found


def _parts(step: TuningStep) -> Document:
    """Of a gradient through a network in training: what the sampler does, and what the network answers."""
    if step.indirect is None:
        return {}
    direct = step.grad - step.indirect
    return {"direct": direct.tolist(), "indirect": step.indirect.tolist(), "apart": step.apart}


def _raced(step: TuningStep) -> Document:
    """Of a lap of a race; or why there is none, at the step where it could have begun."""
    if step.lap is not None:
        lap = {name: getattr(step.lap, name).tolist() for name in ("members", "ahead", "ahead_se")}
        return {"race": lap}
    return {} if step.not_raced is None else {"race": {"needless": step.not_raced}}


def out_of_time(context: Context, last: Checkpoint) -> bool:
    minutes = context.job.budget.minutes
    return minutes is not None and last.state.steps > 0 and last.elapsed_s >= 60 * minutes


def gave_up(last: Checkpoint) -> bool:
    from genbo.bilevel.loop import PATIENCE

    return last.state.wasted >= PATIENCE


def why_given_up(records: Sequence[Document]) -> str:
    chosen = [f"{name} {value}" for name, value in records[-1].get("choices", {}).items()]
    tried = ", ".join([*chosen, *(f"{name} {_short(value)}" for name, value in records[-1]["phi"].items())])
    if "objective" in records[-1]:
        return (
            f"the reward was not finite at any of the first {len(records)} candidates, the last of them {tried}. "
            "Narrow the bounds, or set model.dtype: fp32"
        )
    if records[-1]["status"] == "flat":
        names = " and ".join(records[-1]["phi"])
        return (
            f"the reward does not change with {names} near {tried}: the gradient is exactly zero. "
            "Start elsewhere, or take a reward that depends on it"
        )
    return (
        f"the reward or its gradient is not finite at {tried}, three steps in a row; "
        "the last good value is kept. Narrow the bounds, lower the optimizer's lr, or set model.dtype: fp32"
    )


def _short(value: float | list[float]) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{min(value):.3g} to {max(value):.3g}"


def sides_of(context: Context, tuned: Tuned, networks: ChunkCache) -> tuple[Problem, Problem]:
    """Start and tuned as they are judged.

    A network that serves every schedule serves both; one that was trained for the schedules on the way has been for
    neither, so each side gets its own, trained from scratch under its schedule, held fixed, at the same budget.
    """
    from genbo.cli.stages import pretraining

    a = context.assembled
    judges = a.judge, a.judge_at(tuned.choices)
    if a.problem.learning is None:
        return judges
    found = []
    for name, judge, phi in zip(("start", "tuned"), judges, (a.problem.first(), tuned.phi), strict=True):
        learning = pretraining.response_of(judge)
        learner = (
            pretraining.from_scratch(context, networks, phi, f"scratch-{name}")
            if learning.coupled
            else learning.trainer
        )
        found.append(judge.with_model(learner.network(learning.schedule(phi))))
    return found[0], found[1]


def evaluate(
    context: Context, sides: tuple[Problem, Problem], phis: tuple[Tensor, Tensor], last: Checkpoint
) -> HeldOut:
    """Start and tuned on the same prompts and seeds, which tuning never saw."""
    from genbo.cli.report.summary import HeldOut
    from genbo.cli.stages.holdout import evaluate_side
    from genbo.diffusion.seed import batch_of

    run, a = context.run, context.assembled
    batch = batch_of(a.held_out, context.job.evaluate.samples, a.seed.child("evaluate"))
    judges = judges_said(context)
    found: list[Side] = []
    for name, problem, phi in zip(("start", "tuned"), sides, phis, strict=True):
        run.status("running", f"held-out evaluation of {name}", last_step=run.last_step, resumable=True)
        between = counting(context, name, len(batch), last.state.cost, last.elapsed_s)
        if found and not context.job.budget.steps:  # nothing was tuned: the start is all there is
            found.append(replace(found[0], cost={}, elapsed_s=0.0))
            break
        found.append(evaluate_side(run.path / "evaluation", name, problem, phi, batch, run.digest, between, judges))
        context.stop_if_asked()
    return HeldOut(found[0], found[1], batch.prompts, a.held_out_is_fresh_prompts)
