"""The worst prompts in a report: which they were, which they are, and the objective in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from genbo.cli.report import number_format
from genbo.cli.report.records import ComparedRow, HeldOutRow, Level, ObjectiveRecord, PromptMeans, Remark
from genbo.cli.report.trust import remark
from genbo.cli.report.words import change, quoted

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.objective import Objective
    from genbo.cli.report.records_report import RunReport

MOST = 10  # prompts that are listed of each side
LEAST = 3  # also where the objective looks at fewer
NAMED = 2  # in a sentence
NO_BAR = (
    "The tuned values are the mean of the last steps, and have no error bar: the weights of the prompts change along "
    "the path, and where prompts tie the gradient does not go through zero. The verdict does not depend on it."
)


def record_of(
    objective: Objective, start: Tensor, tuned: Tensor, prompts: Sequence[str], mean: ComparedRow
) -> ObjectiveRecord:
    """The key `objective` of the verdict's row, from the rewards (N,) of held-out samples of both sides."""
    groups: dict[str, list[int]] = {}
    for n, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(n)
    rows = [
        PromptMeans(prompt=p, start=start[at].mean().item(), tuned=tuned[at].mean().item(), samples=len(at))
        for p, at in groups.items()
    ]
    listed = min(MOST, max(LEAST, math.ceil(objective.share * len(rows))))
    return ObjectiveRecord(
        name=objective.name,
        share=objective.share,
        mean=mean,
        worst_before=sorted(rows, key=lambda row: row.start)[:listed],
        worst_after=sorted(rows, key=lambda row: row.tuned)[:listed],
    )


def whose(objective: ObjectiveRecord | None) -> str:
    """What follows the name of a reward: ` of the worst 20 % of prompts`, or nothing where it is that of all."""
    if objective is None:
        return ""
    return f" of the worst {100 * objective.share:.3g} % of prompts" if objective.share else " of the worst prompt"


def named(rows: Sequence[PromptMeans], side: str) -> str:
    """`'key' (0.412) and 'owl' (0.433)`."""
    return " and ".join(f"{quoted(row.prompt)} ({number_format.number(getattr(row, side))})" for row in rows[:NAMED])


def remarks(report: RunReport) -> list[Remark]:
    """Sentences for the trust list."""
    held_out = report.held_out
    if held_out is None or held_out.objective is None:
        return []
    of = held_out.objective
    found = [
        remark(
            "note",
            f"The objective is the reward{whose(of)}. The lowest were {named(of.worst_before, 'start')} at the start, "
            f"and are {named(of.worst_after, 'tuned')} tuned.",
        )
    ]
    if of.mean.difference is not None:
        level: Level = "warning" if of.mean.verdict == "worse" else "note"
        found.append(remark(level, f"The mean over all held-out prompts changed by {change(of.mean)}."))
    if any("undetermined" in value.kinds for value in report.phi.values()):
        found.append(remark("note", NO_BAR))
    return [*found, *_about_interval(held_out)]


def _about_interval(held_out: HeldOutRow) -> list[Remark]:
    """What the interval of a few worst prompts holds for."""
    if not held_out.fresh_prompts or held_out.counted == held_out.prompts:
        return []
    text = (
        "The interval holds for new seeds of these held-out prompts: too few are among the worst to say more of others."
    )
    return [remark("note", text)]
