"""The runs of a comparison: each tuner in each repeat, and what the best so far of each was worth on held-out samples.

    runs/x/ comparison.json      what is compared, and the figures of every run that has ended
            job-0/ gp-0/ job-1/ ...      run folders, as `genbo tune` leaves them, with their held-out scores

A comparison that was stopped goes on with the run that was under way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genbo.cli.errors import Diverged
from genbo.cli.plan.cost import Cost
from genbo.cli.plan.counts import plan
from genbo.cli.plan.entrants import Entrant, Entrants, work_of
from genbo.cli.run.seals import read_sealed, write_sealed
from genbo.cli.stages import lambda_search
from genbo.cli.stages.context import Context, judges_said

if TYPE_CHECKING:
    import torch

    from genbo.cli.job.job import Job
    from genbo.cli.report.summary import Tuned
    from genbo.cli.stages.build import Loaded

Document = dict[str, Any]
FIGURES = "figures.json"
EACH = 64  # held-out samples of a prompt, at least, by which a lambda is judged
POINTS = 6  # of the curve of each run: its best so far after each sixth of its work


def runs_of(
    entrants: Entrants, repeats: int, *, overwrite: bool, quiet: bool, points: int = POINTS
) -> Iterator[tuple[Entrant, int, Document]]:
    """The figures of every tuner in every repeat, as each run ends; those of runs that have ended are read."""
    from genbo.cli.stages.build import Loaded

    loaded = Loaded()
    for number in range(repeats):
        for entrant in entrants.each:
            job = entrant.repeat(number)
            yield entrant, number, _figures(job, loaded, overwrite=overwrite, quiet=quiet, points=points)


def _figures(job: Job, loaded: Loaded, *, overwrite: bool, quiet: bool, points: int) -> Document:
    """What one run came to; it is run, or gone on with, where it has not ended."""
    from genbo.cli.stages.run import Tuning, stages_of

    folder = Path(job.output)
    place = folder / FIGURES
    known = None if overwrite else read_sealed(place)
    if known is not None and known.get("digest") == job.digest():
        return known
    found: list[Document] = []

    def then(context: Context, document: Document) -> None:
        found.append(of_lambda(context, document) if job.tilts else measured(context, points))

    _forget_peak()
    resume = folder.exists() and not overwrite
    planned = plan(job)
    stages = stages_of(
        job,
        planned,
        resume=resume,
        overwrite=overwrite and folder.exists(),
        quiet=quiet,
        reproduce="genbo compare",
        loaded=loaded,
        then=then,
    )
    try:
        Tuning(folder, stages).result()
    except Diverged as problem:  # a tuner that fails on a job has lost there, and the others go on
        found = [{"failed": str(problem)}]
    document = {"digest": job.digest(), "peak_bytes": _peak(), **found[0]}
    write_sealed(place, document)
    return document


# -- what a run is worth -----------------------------------------------------------------------------------------------


def measured(context: Context, points: int) -> Document:
    """The work of a run, and the held-out scores of its start, of its best so far at `points` of its way, and its end.

    `scores` are the objective of every held-out sample; those of the way are means alone.
    """
    from genbo.cli.report import summary

    problem, records = context.assembled.problem, context.run.journal.records
    at = _Evaluated(context)
    if not records:
        return _fixed(context, at)
    choose = context.assembled.at
    tuned = summary.tuned_of(problem, records, choose)
    start, end = at("start", summary.at_start(problem)), at("tuned", tuned)
    way = []
    for steps in _stops(records, points):
        so_far = summary.tuned_of(problem, records[:steps], choose)
        scores = end if steps == len(records) else at(f"after-{steps}", so_far)
        way.append({"work": _spent(context, records[steps - 1]), "gain": (scores - start).mean().item()})
    here = choose(tuned.choices)
    values = {**tuned.choices, **here.spoken(here.settled(tuned.phi))}
    return _run(context, values, at.batch.prompts, start, end, way)


def _fixed(context: Context, at: _Evaluated) -> Document:
    """Of values that are given and not tuned: their scores themselves, from nothing."""
    from genbo.cli.report import summary

    problem = context.assembled.problem
    scores = at("start", summary.at_start(problem))
    return _run(context, problem.spoken(problem.first()), at.batch.prompts, 0 * scores, scores, [])


def _run(
    context: Context,
    phi: Mapping[str, Any],
    prompts: Sequence[str],
    start: torch.Tensor,
    tuned: torch.Tensor,
    way: Sequence[Document],
) -> Document:
    """The figures of a run; `start` and `tuned` are scores (N,) of these prompts."""
    records = context.run.journal.records
    return {
        "phi": dict(phi),
        "work": _spent(context, records[-1]) if records else 0,
        "trials": len(records),
        "cost": records[-1]["cost"] if records else {"denoiser_calls": 0},
        "elapsed_s": records[-1]["elapsed_s"] if records else 0.0,
        "prompts": list(prompts),
        "fresh_prompts": context.job.held_out_is_fresh_prompts,
        "start": start.tolist(),
        "tuned": tuned.tolist(),
        "way": list(way),
    }


def of_lambda(context: Context, document: Document) -> Document:
    """The same of a search for lambda: E[r1] of the tilt at its lambda, prompt by prompt, against the pretrained model.

    All tuners of a repeat are judged by the same plain samples, and where these do not reach a lambda by others that
    are drawn near it. A lambda that no samples reach has failed.
    """
    from genbo.bilevel.regularization.bank_sampler import at_once
    from genbo.bilevel.regularization.context import LawContext
    from genbo.bilevel.regularization.rounds import pilot_samples
    from genbo.cli.stages.laws import source_of

    a, job, record = context.assembled, context.job, context.run.journal.records[-1]
    prompts = job.held_out[: max(1, min(len(job.held_out), job.evaluate.samples // EACH))]
    samples, nowhere = job.evaluate.samples // len(prompts), lambda_search.kept_in(context, "evaluation")
    source = replace(source_of(context, nowhere, prompts, "compare"), keep=at_once)
    lam, plain = document["phi"]["regularization"]["tuned"], source.draw(0, samples, None)
    pretrained, tuned = (a.lower.begin(LawContext(banks=(plain,)))(at) for at in (math.inf, lam))
    if tuned.fit.verdict != "reliable" and source.shiftable:
        near = source.draw(1, samples, source.shifts(1, pilot_samples(samples), lam))
        tuned = a.lower.begin(LawContext(banks=(plain, near)))(lam)
    if tuned.fit.verdict == "refuse":
        return {"failed": f"the held-out samples do not reach lambda = {lam:.3g}; raise evaluate.samples"}
    gain = (tuned.r1.value - pretrained.r1.value).mean().item()
    way = [{"work": _spent(context, record), "gain": gain}]
    return _run(context, {"regularization": lam}, prompts, pretrained.r1.value, tuned.r1.value, way)


class _Evaluated:
    """Held-out scores of any answer, (N,) of the objective; what the run has drawn already is read."""

    def __init__(self, context: Context) -> None:
        from genbo.cli.stages import pretraining
        from genbo.diffusion.seed import batch_of

        a = context.assembled
        self.context = context
        self.batch = batch_of(a.held_out, context.job.evaluate.samples, a.seed.child("evaluate"))
        self.nowhere = pretraining.kept_networks(context)
        self.known: dict[tuple[object, ...], torch.Tensor] = {}

    def __call__(self, name: str, answer: Tuned) -> torch.Tensor:
        from genbo.cli.stages import ascent
        from genbo.cli.stages.holdout import evaluate_side

        context = self.context
        phi = context.assembled.at(answer.choices).settled(answer.phi)
        place = (*{**context.job.tuning.starts(), **answer.choices}.values(), *phi.tolist())
        if place not in self.known:
            problem = ascent.sides_of(context, answer, self.nowhere)[0 if name == "start" else 1]
            side = evaluate_side(
                context.run.path / "evaluation",
                name,
                problem,
                phi,
                self.batch,
                context.run.digest,
                lambda *_: context.stop_if_asked(),
                judges_said(context),
            )
            weights = problem.reward_weights
            self.known[place] = weights @ side.scores[: len(weights)].double()
        return self.known[place]


def _stops(records: Sequence[Mapping[str, Any]], points: int) -> list[int]:
    """After how many steps a run is looked at: evenly over its way, the last of them its end."""
    count = len(records)
    return sorted({max(1, round(count * k / points)) for k in range(1, points + 1)})


def _spent(context: Context, record: Mapping[str, Any]) -> int:
    """The work up to a step, without the training of a network before the first."""
    cost, training = record["cost"], context.planned.training
    own = Cost(
        image_forwards=cost["image_forwards"] - training.image_forwards,
        image_backwards=cost["image_backwards"] - training.image_backwards,
    )
    return work_of(own)


# -- memory ------------------------------------------------------------------------------------------------------------


def _forget_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak() -> int | None:
    """The most memory of the accelerator; None without one, where it is the process' and not the run's."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
