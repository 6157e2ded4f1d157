"""What a run found, as one record: `report.json`, from which `genbo show` and the report are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from genbo.cli.job.choices import Value
from genbo.cli.report import choices, race_words, root_words
from genbo.cli.report.ascent_summary import Ascent, HeldOut, Names
from genbo.cli.report.method import Method
from genbo.cli.report.records import AnswerRecord, PhiValue, StepRecord
from genbo.cli.report.records_report import CostRecord, EstimatorRecord, RunReport, Use
from genbo.cli.report.trust import nothing_tuned, remark
from genbo.cli.run.layout import SCHEMA
from genbo.cli.run.versions import version

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.problem import Problem
    from genbo.bilevel.protocols import Tunable
    from genbo.cli.report.lambda_summary import Searched

Document = dict[str, Any]
__all__ = ["Findings", "HeldOut", "Names", "Tuned", "document_of", "last_good", "report_of", "tuned_of"]


@dataclass(frozen=True)
class Tuned:
    """The answer in phi, (P,) each; the error is None where the path does not determine it."""

    phi: Tensor
    se: list[float | None]
    method: str  # root | mean | start | last | curve | best | raced
    interval: Sequence[tuple[float, float] | None] | None = None  # of 95 %
    kinds: Sequence[str | None] | None = None  # interior | lower_bound | upper_bound | undetermined | unsettled
    answer: AnswerRecord | None = None  # the key of report.json
    choices: Mapping[str, Value] = field(default_factory=dict)  # what was chosen, of a search with choices


@dataclass(frozen=True)
class Findings:
    """All that the report is made of."""

    problem: Problem
    names: Names
    records: Sequence[Mapping[str, Any]]
    tuned: Tuned
    held_out: HeldOut | None
    cost: Mapping[str, float]
    planned: Mapping[str, float]
    estimator: Mapping[str, Any]
    job: Document
    environment: Document
    reproduce: str
    status: str = "done"
    reason: str | None = None
    notes: Sequence[str] = field(default_factory=tuple)
    search: Searched | None = None  # where lambda was searched for
    left_out: Sequence[str] = ()  # prompts of the evaluation's list that are tuned on too
    tuned_problem: Problem | None = None  # with what was chosen, where there were choices

    @property
    def method(self) -> Method:
        """What tuned: the search, or else a climb."""
        return self.search or Ascent(self.problem, self.names, self.held_out)


def document_of(found: Findings) -> Document:
    """The object of `report.json`."""
    return report_of(found).document()


def report_of(found: Findings) -> RunReport:
    """The record of `report.json`; its sentences are written last, by the method, from all the rest."""
    method = found.method
    held_out, rewards, keep = method.compared()
    if held_out is not None:
        held_out.left_out = list(found.left_out)
    if found.status == "done" and nothing_tuned(found.job):  # so there is nothing to judge
        for row in (held_out, *rewards.values(), *keep.values()):
            if row is not None:
                row.verdict = None
    report = RunReport(
        schema=SCHEMA,
        genbo=version(),
        status=found.status,
        reason=found.reason,
        verdict=None if held_out is None else held_out.verdict or None,
        headline="",
        phi=phi_of(found.problem, found.tuned, found.tuned_problem),
        **_where_there_are(found),
        answer=found.tuned.answer,
        held_out=held_out,
        rewards=rewards,
        keep=keep,
        judges=method.opinions(),
        cost=CostRecord.model_validate({**found.cost, "planned": dict(found.planned)}),
        estimator=EstimatorRecord.model_validate(dict(found.estimator)),
        steps=[StepRecord.model_validate(dict(record)) for record in found.records],
        search=method.document(),
        trust=[],
        use=Use(),
        job=found.job,
        environment=found.environment,
        reproduce=found.reproduce,
    )
    report.headline = method.headline(report)
    report.trust = [*method.trust(report), *(remark("note", text) for text in found.notes)]
    return report


def _where_there_are(found: Findings) -> Document:
    """The keys of a search with choices, of one with a pruner, and of a race."""
    keys = {
        "choices": choices.chosen_of(found.job, found.tuned.choices, found.records),
        "rungs": choices.rungs_of(found.job, found.records),
        "race": race_words.record_of(found.records),
    }
    return {key: record for key, record in keys.items() if record}


# -- the answer ----------------------------------------------------------------------------------------------


def at_start(problem: Problem) -> Tuned:
    """The start, where nothing better is known."""
    return Tuned(problem.first(), [None] * problem.parameters, "start")


def tuned_of(
    problem: Problem, records: Sequence[Mapping[str, Any]], at: Callable[[Mapping[str, Value]], Problem] | None = None
) -> Tuned:
    """phi from the usable steps of the path, with its error bar carried through the link by its slope.

    `at` gives the problem with other choices, where a search has made some.
    """
    from genbo.bilevel.found import found

    usable = [r for r in records if r["status"] == "ok"]
    if not usable:
        return at_start(problem)
    if "objective" in usable[0]:
        return _best_of(problem, usable, at)
    width = max(r.get("width", 0.0) for r in usable)  # of journals before it was written: none is taken back
    here = found(problem, *(_column(usable, name) for name in ("u", "grad", "grad_se")), width=width)
    intervals = [(low, high) if math.isfinite(high - low) else None for low, high in here.interval.tolist()]
    answer = root_words.record_of(here, root_words.labels_of(problem))
    tuned = Tuned(here.phi, _finite(here.se), here.method, intervals, list(here.kinds), answer)
    won = race_words.winner(problem, records)
    return tuned if won is None else Tuned(won, [None] * problem.parameters, "raced")


def _best_of(
    problem: Problem, trials: Sequence[Mapping[str, Any]], at: Callable[[Mapping[str, Value]], Problem] | None
) -> Tuned:
    """phi and choices of the candidate that did best, of those with the most samples.

    How far it is from the optimum is not known, so it has no error bar.
    """
    best = max(trials, key=lambda trial: (trial.get("samples", 0), trial["objective"]))
    first = best["step"] == 0  # a start on a bound is measured a little inside, and is itself where it stays
    made = best.get("choices", {})
    chosen = problem if at is None else at(made)
    phi = problem.first() if first else chosen.value(_column([best], "u")[0])
    return Tuned(phi, [None] * problem.parameters, "best", choices=made)


def last_good(problem: Problem, records: Sequence[Mapping[str, object]]) -> Tuned:
    """phi at the last step whose numbers were finite."""
    usable = [r for r in records if r["status"] != "non_finite"]
    nothing: list[float | None] = [None] * problem.parameters
    if not usable:
        return at_start(problem)
    return Tuned(problem.value(_column(usable, "u")[-1]), nothing, "last")


def _column(records: Sequence[Mapping[str, Any]], name: str) -> list[Tensor]:
    """A list of numbers of each record as tensors (P,), NaN where one is null."""
    import torch

    rows = [[math.nan if x is None else x for x in record[name]] for record in records]
    return [torch.tensor(row, dtype=torch.float64) for row in rows]


def _finite(numbers: Tensor) -> list[float | None]:
    return [x if math.isfinite(x) else None for x in numbers.tolist()]


# -- the key `phi` -------------------------------------------------------------------------------------------


def phi_of(problem: Problem, found: Tuned, tuned: Problem | None = None) -> dict[str, PhiValue]:
    """The tuned value of each tunable beside its start, by its name; `tuned` is the problem with what was chosen."""
    first, pieces, at, tuned = problem.first(), {}, 0, tuned or problem
    for before, after, size in zip(problem.tunables, tuned.tunables, problem.sizes, strict=True):
        here = slice(at, at + size)
        sides = Placed(before, problem.process.steps), Placed(after, tuned.process.steps)
        pieces[before.name] = _value(sides, first[here], _part(found, here))
        at += size
    return pieces


class Placed(NamedTuple):
    """A tunable at the start or tuned, and for how many steps of the sampler."""

    tunable: Tunable
    steps: int


def _part(found: Tuned, here: slice) -> Tuned:
    """The numbers of one tunable, with their intervals and kinds, None where there are none."""
    intervals = found.interval or [None] * len(found.phi)
    kinds = found.kinds or [None] * len(found.phi)
    return Tuned(found.phi[here], found.se[here], found.method, intervals[here], kinds[here])


def _value(sides: tuple[Placed, Placed], first: Tensor, found: Tuned) -> PhiValue:
    """Numbers that stay where they start come first in a list, with an error of 0."""
    tunable = sides[0].tunable
    start, tuned = tunable.spoken(first), sides[1].tunable.spoken(found.phi)
    se, intervals, kinds = found.se, list(found.interval or []), list(found.kinds or [])
    many = isinstance(tuned, list)
    fixed = len(tuned) - len(found.phi) if isinstance(tuned, list) else 0
    rows: dict[str, list[Any]] = {
        "se": [*[0.0] * fixed, *se],
        "interval": [*[None] * fixed, *intervals],
        "kind": [*["fixed"] * fixed, *kinds],
    }
    given = vars(tunable).get("bounds")  # a schedule's are those of its family
    return PhiValue(
        start=start,
        tuned=tuned,
        bounds=(given[0], given[1]) if isinstance(given, Sequence) and given else None,
        **{name: row if many else row[0] for name, row in rows.items()},
        **_over_steps(sides, first, found.phi),
    )


def _over_steps(sides: tuple[Placed, Placed], first: Tensor, phi: Tensor) -> Document:
    """The values that the sampler sees, one a step, where the tunable is a schedule; or where its steps stop."""
    labels = {"labels": sides[0].tunable.labels} if sides[0].tunable.labels else {}
    start, tuned = (side.tunable.shown(at, side.steps) for side, at in zip(sides, (first, phi), strict=True))
    by_side = {"start": start, "tuned": tuned}
    return {**labels, **{f"{side}_{name}": values for side, shown in by_side.items() for name, values in shown.items()}}
