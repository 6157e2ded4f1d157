"""What the stages of a run share: its objects, its pace and its names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from genbo.cli.errors import Preempted
from genbo.cli.run.folder import Run
from genbo.cli.run.json_files import Document
from genbo.cli.run.signals import Signals
from genbo.cli.stages.progress import Quiet

if TYPE_CHECKING:
    from genbo.cli.job.job import Job
    from genbo.cli.plan.counts import Plan
    from genbo.cli.report.summary import Names
    from genbo.cli.stages.build import Assembled


@dataclass(frozen=True)
class Context:
    """What every stage needs."""

    run: Run
    job: Job
    assembled: Assembled
    planned: Plan
    screen: Quiet
    signals: Signals
    reproduce: str
    notes: tuple[str, ...]

    def stop_if_asked(self) -> None:
        """Ends the run between two safe points when a signal has come."""
        if self.signals.received is not None:
            where = f"stopped by a signal after step {self.run.last_step}"
            raise Preempted(f"{where}; the same command with --resume goes on", exit_code=self.signals.exit_code)


# -- pace ----------------------------------------------------------------------------------------------------


def time_left(context: Context, cost: Mapping[str, int], elapsed_s: float) -> float | None:
    """The plan's images that are not drawn yet, at the pace so far; a network's first training has its own clock.

    None where nobody knows how many there are.
    """
    if (
        context.planned.total_at_least.image_forwards < context.planned.image_forwards
        and context.job.budget.minutes is None
    ):
        return None
    forwards = cost.get("image_forwards", 0)
    timed = forwards - context.planned.training.image_forwards
    if timed <= 0:
        return None
    left = elapsed_s / timed * max(0, context.planned.image_forwards - forwards)
    minutes = context.job.budget.minutes
    return left if minutes is None else min(left, max(0.0, 60 * minutes - elapsed_s))


def counting(
    context: Context, side: str, total: int, cost: Mapping[str, int], elapsed_s: float
) -> Callable[[str, int, int], None]:
    """Called after each chunk of `total` images: moves the bar, and stops where a signal asks for it."""
    paced = cost.get("image_forwards", 0)

    def between(name: str, done: int, chunks: int) -> None:
        left = time_left(context, cost, elapsed_s)
        drawn = context.assembled.problem.process.meter.image_forwards - paced
        if left is not None and paced:
            left = max(0.0, left - elapsed_s / paced * drawn)
        context.screen.evaluating(side, round(total * done / chunks), total, left)
        context.stop_if_asked()

    return between


# -- names --------------------------------------------------------------------------------------------------


def names_of(assembled: Assembled) -> Names:
    from genbo.cli.report.summary import Names

    return Names(tuple(assembled.reward_names), tuple(assembled.constraint_names), tuple(assembled.judge_names))


def judges_said(context: Context) -> Document | None:
    """Who the judges are, by their options and their files."""
    from genbo.cli.stages.provenance import judges_of

    judges = context.job.evaluate.judges
    return {"kinds": [j.document("rewards") for j in judges], "files": judges_of(context.assembled)} if judges else None
