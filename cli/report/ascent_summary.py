"""What a climb along the gradient gives to its report: start against tuned, the headline, how far to trust it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from genbo.cli.report import choices, number_format, worst_prompts
from genbo.cli.report.ascent_trust import about_path
from genbo.cli.report.comparison import by_prompt, row_of, unjudged
from genbo.cli.report.method import Compared
from genbo.cli.report.records import ComparedRow, HeldOutRow, KeptRow, Remark, RewardRow
from genbo.cli.report.trust import about_held_out, about_judges, nothing_tuned, remark
from genbo.cli.report.words import change, instead, opinions, title

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.problem import Constraint, Problem
    from genbo.cli.report.held_out_side import Side
    from genbo.cli.report.records_report import RunReport


@dataclass(frozen=True)
class Names:
    rewards: tuple[str, ...]
    constraints: tuple[str, ...]
    judges: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeldOut:
    """Both sides of the evaluation, sample by sample."""

    start: Side
    tuned: Side
    prompts: tuple[str, ...]
    fresh_prompts: bool


@dataclass(frozen=True)
class Ascent:
    """The climb as a `Method`; `sides` is None where it ended without an evaluation."""

    problem: Problem
    names: Names
    sides: HeldOut | None

    # -- start against tuned -----------------------------------------------------------------------------------

    def compared(self) -> Compared:
        """The verdict is that of the weighted rewards; constraints have rows of their own."""

        sides, problem = self.sides, self.problem
        if sides is None:
            return Compared(None, {}, {})
        weights = problem.reward_weights
        judged = len(weights) + len(problem.constraints)
        start, tuned = (side.scores[:judged].double() for side in (sides.start, sides.tuned))
        before, after = (weights @ side[: len(weights)] for side in (start, tuned))
        total = self._of_objective(before, after)
        rows = [self._row(a, b) for a, b in zip(start, tuned, strict=True)]
        gains = weights @ (tuned - start)[: len(weights)]
        each = by_prompt(sides.prompts, gains.tolist())
        held_out = HeldOutRow(**total.given(), fresh_prompts=sides.fresh_prompts, by_prompt=each)
        if not problem.objective.is_mean:
            mean = self._row(before, after)
            held_out.objective = worst_prompts.record_of(problem.objective, before, after, sides.prompts, mean)
        named = zip(self.names.rewards, problem.rewards, rows, strict=False)
        rewards = {name: RewardRow(weight=weight, **row.given()) for name, (weight, _), row in named}
        kept = zip(
            self.names.constraints, problem.constraints, rows[len(weights) :], tuned[len(weights) :], strict=True
        )
        return Compared(held_out, rewards, {name: self._kept(*parts) for name, *parts in kept})

    def opinions(self) -> dict[str, ComparedRow]:
        """Judges have the last rows of the scores."""
        sides, names = self.sides, self.names.judges
        if sides is None or not names:
            return {}
        rows = zip(*(side.scores.double()[-len(names) :] for side in (sides.start, sides.tuned)), strict=True)
        return {
            name: self._of_objective(a, b) if a.isfinite().all() and b.isfinite().all() else unjudged()
            for name, (a, b) in zip(names, rows, strict=True)
        }

    def _row(self, start: Tensor, tuned: Tensor) -> ComparedRow:
        """Scores (N,) of the same held-out samples at the start and tuned."""
        from genbo.bilevel.verdict import compare

        assert self.sides is not None
        return row_of(compare(start, tuned, self.sides.prompts, fresh_prompts=self.sides.fresh_prompts))

    def _of_objective(self, start: Tensor, tuned: Tensor) -> ComparedRow:
        """The same by the objective over the prompts, which need not be the mean."""
        from genbo.bilevel.verdict import compare

        assert self.sides is not None
        fresh, objective = self.sides.fresh_prompts, self.problem.objective
        return row_of(compare(start, tuned, self.sides.prompts, fresh_prompts=fresh, objective=objective))

    def _kept(self, constraint: Constraint, row: ComparedRow, scores: Tensor) -> KeptRow:
        """A constraint against its level: broken only where the interval excludes that it was kept.

        A level relative to the start is tested by differences on the same samples; an absolute one by the tuned
        samples (N,) alone.
        """
        level = constraint.at_least
        against = row if constraint.relative_to_start else self._row(0 * scores + level, scores)
        assert against.difference is not None and against.interval[1] is not None
        if constraint.relative_to_start:
            assert row.start is not None
            gap, most = against.difference - level, against.interval[1] - level
            level += row.start
        else:
            gap, most = against.difference, against.interval[1]
        return KeptRow(**row.given(), at_least=level, gap=gap, held=gap >= 0, broken=most < 0)

    def document(self) -> None:
        """A climb has no curve."""

    # -- in words ----------------------------------------------------------------------------------------------

    def headline(self, report: RunReport) -> str:
        numbers = (instead(name, value) for name, value in report.phi.items())
        chosen = (choices.instead(name, record) for name, record in report.choices.items())
        changes = ", ".join([*chosen, *numbers])
        held_out = report.held_out
        if report.status != "done" or held_out is None:
            return f"{changes}, and no verdict: {report.reason or 'the run has not ended'}."
        name = next(iter(report.rewards)) if len(report.rewards) == 1 else "the weighted reward"
        if nothing_tuned(report.job):
            return self._evaluated(report, held_out, name)
        image = "held-out image" if held_out.fresh_prompts else "fresh sample"
        on = number_format.plural(held_out.samples, image)
        broken = [name for name, kept in report.keep.items() if kept.broken]
        joint = "but" if held_out.verdict == "better" else "and"
        fell = f", {joint} {' and '.join(broken)} fell below its level" if broken else ""
        of = f"{name}{worst_prompts.whose(held_out.objective)}"
        return f"{changes}: {of} {change(held_out)} on {on}: {opinions(held_out.verdict, name, report.judges)}{fell}."

    def _evaluated(self, report: RunReport, held_out: HeldOutRow, name: str) -> str:
        """Of a job without steps."""
        values = ", ".join(f"{title(n)} {number_format.numbers(value.start)}" for n, value in report.phi.items())
        image = "held-out image" if held_out.fresh_prompts else "fresh sample"
        on = number_format.plural(held_out.samples, image)
        return f"{values}: {name} {number_format.number(held_out.start)} on {on}. Nothing was tuned: budget.steps is 0."

    def trust(self, report: RunReport) -> list[Remark]:
        about_prompts = worst_prompts.remarks(report)
        return [
            *about_path(report),
            *about_held_out(report),
            *about_prompts,
            *about_judges(report),
            *_about_keep(report),
        ]


def _about_keep(report: RunReport) -> list[Remark]:
    return about_kept(report.keep) if report.keep else _about_no_keep(list(report.rewards))


def about_kept(keep: Mapping[str, KeptRow]) -> list[Remark]:
    """Whether each reward under `keep:` was kept."""
    found = []
    for name, kept in keep.items():
        level = f"{number_format.number(kept.tuned)} against a level of {number_format.number(kept.at_least)}"
        if kept.held:
            found.append(remark("good", f"{title(name)} was kept: {level}."))
        elif kept.broken:
            found.append(remark("warning", f"{title(name)} was not kept: {level}."))
        else:
            found.append(remark("note", f"{title(name)} is below its level by less than the noise: {level}."))
    return found


def _about_no_keep(rewards: Sequence[str]) -> list[Remark]:
    if not rewards:
        return []
    were = "was" if len(rewards) == 1 else "were"
    text = f"Only {' and '.join(rewards)} {were} optimised, and a reward can rise while images get worse"
    return [remark("note", f"{text}: look at the images, or add `keep:`.")]
