"""The tuners of a comparison as jobs of their own, each with the same work to spend.

Beside the job itself these are searchers, and the estimators of the paper as they were published.

    work = image forwards + 2 x image backwards

A backward pass costs about twice a forward pass. The work is that of the job's own tuning as it is planned; training
and held-out evaluation, which all tuners share, are not in it. A searcher divides it into `usual_trials`, so many that
its candidates cover the space of numbers and choices, each on as many samples as are left. Where candidates differ in
cost, `budget.work` is the work of each, and a search ends when it has spent that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from genbo.bilevel.trials import usual_trials
from genbo.cli.errors import UserMistake
from genbo.cli.job import catalog
from genbo.cli.job.job import Job, Kind, read_job, read_text
from genbo.cli.job.search_misfits import space_of
from genbo.cli.job.sections.budget import BudgetJob
from genbo.cli.job.sections.lower import LowerJob
from genbo.cli.job.sections.model import MAX_STEPS
from genbo.cli.job.sections.search import SearchJob
from genbo.cli.job.user_code import Allowed
from genbo.cli.job.yaml_nodes import node_of_text
from genbo.cli.plan.choice_counts import differ
from genbo.cli.plan.cost import Cost
from genbo.cli.plan.counts import plan

OWN = "job"  # the tuner that the job itself names
FEWEST = 4  # samples of a trial
PUBLISHED = {"two_point": "central", "one_point": "one_point"}  # the paper's estimators, by the points of a difference


@dataclass(frozen=True)
class Entrant:
    """A tuner: its name, and the job that lets it tune, for the first repeat."""

    name: str
    job: Job

    def repeat(self, number: int) -> Job:
        """The job of one repeat, whose seed and folder are its own."""
        place = Path(self.job.output) / f"{self.name}-{number}"
        return self.job.model_copy(update={"seed": self.job.seed + number, "output": str(place)})


@dataclass(frozen=True)
class Entrants:
    """All tuners of a comparison, the work that each may spend, and why others were left out."""

    each: tuple[Entrant, ...]
    work: int
    left_out: dict[str, str]


def work_of(cost: Cost) -> int:
    return cost.image_forwards + 2 * cost.image_backwards


def entrants_of(
    job: Job,
    kinds: Sequence[str],
    output: Path,
    *,
    share: float = 1.0,
    trials: int | None = None,
    common: bool = True,
    work: int | None = None,
) -> Entrants:
    """The job against searchers of these kinds, each at this share of the job's budget, or with this `work`.

    Raises:
        UserMistake: where a kind is unknown, none of them can search here, or the job has nothing to compare.
    """
    _comparable(job)
    if job.budget.work is None and differ(job) and plan(job).least["tuning"] != plan(job).tuning:
        raise UserMistake(
            "candidates of this search differ in cost, so its work must be limited to be equal; set budget.work"
        )
    if not job.budget.steps:
        raise UserMistake("budget.steps is 0, so the job tunes nothing; raise it, or compare fixed values with --phi")
    level = _on_samples(job, _samples(job, share)) if job.tilts else {}
    own = job.model_copy(update={"output": str(output), "budget": _scaled(job, share), **level})
    work = own.budget.work or work_of(plan(own).tuning) if work is None else work
    entrants, left_out = [Entrant(OWN, own)], dict[str, str]()
    for kind in dict.fromkeys(kinds):  # once, where one is named twice
        known = (*catalog.kinds("searchers"), *PUBLISHED)
        if kind not in known:
            raise UserMistake(f"unknown searcher {kind!r}{catalog.nearest(kind, known)}")
        found = _published(own, kind, work) if kind in PUBLISHED else _searcher(own, kind, work, trials, common)
        if isinstance(found, str):
            left_out[kind] = found
        else:
            entrants.append(Entrant(kind, found))
    if len(entrants) == 1:
        reasons = "; ".join(f"{kind}: {reason}" for kind, reason in left_out.items()) or "name some with --with"
        raise UserMistake(f"there is nothing to compare with ({reasons})")
    return Entrants(tuple(entrants), work, left_out)


def fixed(path: Path, overrides: Sequence[str], files: Sequence[Path], output: Path, code: Allowed) -> Entrants:
    """The job at fixed values in place of tuners: each file maps names under `tune` to a start, and nothing is tuned.

    Raises:
        UserMistake: where a file is no such mapping, or two have the same name.
        JobMistakes: where the job does not allow a value.
    """
    names = [file.stem for file in files]
    if len(set(names)) < len(names):
        raise UserMistake(f"two of the files are called {max(names, key=names.count)}; rename one")
    each = []
    for name, file in zip(names, files, strict=True):
        given = [f"tune.{key}.start={json.dumps(value)}" for key, value in _values_in(file).items()]
        job = read_job(path, [*overrides, *given, "budget.steps=0", f"output={output}"], code)
        _comparable(job)
        each.append(Entrant(name, job))
    return Entrants(tuple(each), 0, {})


def _comparable(job: Job) -> None:
    """Scores are compared by their means."""
    if not job.objective.is_mean:
        raise UserMistake(f"a comparison counts mean rewards, not objective: {job.objective.name}; set objective=mean")


def _values_in(file: Path) -> dict[str, object]:
    """What a file of values says, such as `guidance: 2.5`."""
    found: object = node_of_text(read_text(file), str(file)).plain()
    if not isinstance(found, dict) or not found:
        raise UserMistake(f"{file} must map names under tune to values, like guidance: 2.5")
    return found


def _scaled(job: Job, share: float) -> BudgetJob:
    """Fewer steps and fewer samples a step, in equal parts; a pool in proportion to the samples of all steps.

    Of a search the samples alone, so that its candidates still cover the space, or the work that ends it.
    """
    part, budget = math.sqrt(share), job.budget
    if job.tilts:
        return budget
    if budget.work is not None:
        return budget.model_copy(update={"work": max(1, round(budget.work * share))})
    if job.search is not None:
        return budget.model_copy(update={"samples": max(FEWEST, round(budget.samples * share))})
    samples = max(2, round(budget.samples * part))
    steps = max(1, round(budget.steps * budget.samples * share / samples))
    pool = None if budget.pool is None else max(samples, round(budget.pool * share))
    return budget.model_copy(update={"steps": steps, "samples": samples, "pool": pool})


def _searcher(own: Job, kind: str, work: int, trials: int | None, common: bool) -> Job | str:
    """The job with this searcher in place of its gradient, or why it cannot be."""
    if own.training is not None and own.training.coupled:
        return "every candidate would need a network of its own"
    if (
        own.tilts
        and own.lower is not None
        and not (own.lower.options.traits.free and own.lower.options.drawing.samples)
    ):
        return "it measures lambda by reweighting samples, which this lower level does not"
    if own.tilts and own.keep:
        return "a search over lambda keeps no level"
    options = catalog.options_of("searchers", kind)()
    space = space_of(own)
    wanted = [trials] if trials else [n * usual_trials(space.size) for n in (1, 2, 3)]
    if common and not space.numbers:  # more candidates than there are would be the same once more
        wanted = [own.tuning.combinations]
    reasons = [options.why_not(space, count) for count in wanted]
    fitting = [count for count, reason in zip(wanted, reasons, strict=True) if reason is None]
    if not fitting:
        return str(reasons[-1])
    auto = Kind.model_construct(kind="auto", options=catalog.options_of("estimators", "auto")())
    search = SearchJob.model_construct(kind=kind, options=options, common=common)
    return _with_work(own.model_copy(update={"search": search, "estimator": auto}), fitting[0], work)


def _published(own: Job, kind: str, work: int) -> Job | str:
    """The job with an estimator of the paper as its released code has it: one random direction a step, fresh noise.

    Xiao et al. 2025, zeroth-order estimators; adam follows it, as it follows genbo's own.
    """
    if own.choices:
        return "it follows a gradient, and this job chooses among values that have none"
    if own.tilts or own.trains:
        return "it follows samples at phi alone, and here a lower level is solved for each"
    options = catalog.options_of("estimators", "zeroth_order")
    estimator = options(directions="random", points=PUBLISHED[kind], count=1, common=False)
    job = own.model_copy(
        update={
            "estimator": Kind.model_construct(kind="zeroth_order", options=estimator),
            "optimizer": Kind.model_construct(kind="adam", options=catalog.options_of("optimizers", "adam")()),
        }
    )

    def of(steps: int) -> Job:
        given = {"steps": steps, "denoiser_calls": None, "minutes": None, "work": None}
        return job.model_copy(update={"budget": job.budget.model_copy(update=given)})

    few, more = (work_of(plan(of(steps)).tuning) for steps in (1, 2))
    if few > work:
        return f"one step takes {few} units of work, and each tuner may spend {work}"
    return of(1 + (work - few) // (more - few))


def _samples(job: Job, share: float) -> int:
    """Of the first bank of a search over lambda, a prompt."""
    assert job.lower is not None
    return max(2, round(job.lower.options.drawing.samples * share))


def _on_samples(job: Job, samples: int) -> dict[str, LowerJob]:
    """The lower level of a search over lambda with so many samples a prompt."""
    assert job.lower is not None
    options: Any = job.lower.options  # a dataclass, as every file of the room is
    return {"lower": job.lower.model_copy(update={"options": replace(options, samples=samples)})}


def _with_work(search: Job, trials: int, work: int) -> Job | str:
    """So many trials, each on as many samples as the work allows, or why it allows too few.

    A trial's cost is linear in its samples, so two plans show what a sample costs.
    """

    def of(samples: int) -> Job:
        given: dict[str, object] = {"steps": trials, "pool": None, "denoiser_calls": None, "minutes": None}
        given |= {"work": None}
        given |= {"precision": None} if search.tilts else {"samples": samples}
        level = _on_samples(search, samples) if search.tilts else {}
        return search.model_copy(update={"budget": search.budget.model_copy(update=given), **level})

    few, more = (work_of(plan(of(samples)).tuning) for samples in (FEWEST, 2 * FEWEST))
    if few > work:
        return f"{trials} trials of {FEWEST} samples take {few} units of work, and each tuner may spend {work}"
    each = (more - few) / FEWEST
    found = of(FEWEST + int((work - few) / each))
    return _until_spent(found, work) if search.budget.work is not None and search.parameters else found


def _until_spent(search: Job, work: int) -> Job:
    """With as many candidates as the cheapest need to spend the work, which ends the search."""
    trials, least = search.budget.steps, work_of(plan(search).least["tuning"])
    steps = min(MAX_STEPS, math.ceil(trials * work / least))
    return search.model_copy(update={"budget": search.budget.model_copy(update={"steps": steps, "work": work})})
