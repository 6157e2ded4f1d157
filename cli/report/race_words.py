"""What a race of the last steps found, or why there was none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genbo.cli.report import number_format
from genbo.cli.report.records_report import RaceRecord

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.problem import Problem
    from genbo.bilevel.race import Outcome

Steps = Sequence[Mapping[str, Any]]


def winner(problem: Problem, records: Steps) -> Tensor | None:
    """phi (P,) of the candidate that took the answer's place, if one did."""
    laps = _laps(records)
    if not laps or not (at := _outcome(laps).winner):
        return None
    import torch

    if at == 1:
        return problem.first()
    return problem.value(torch.tensor(laps[0]["members"][at], dtype=torch.float64))


def record_of(records: Steps) -> RaceRecord | None:
    """For `report.json`; None where a job of this kind is never raced."""
    if laps := _laps(records):
        return RaceRecord(raced=True, text=_sentence(laps))
    reasons = [record["race"]["needless"] for record in records if record.get("race")]
    return RaceRecord(raced=False, text=f"not raced: {reasons[0]}") if reasons else None


def _laps(records: Steps) -> list[Mapping[str, Any]]:
    return [record["race"] for record in records if "ahead" in record.get("race", {})]


def _outcome(laps: Sequence[Mapping[str, Any]]) -> Outcome:
    from genbo.bilevel.race import outcome

    ahead, se = ([[math.nan if x is None else x for x in lap[name]] for lap in laps] for name in ("ahead", "ahead_se"))
    return outcome(ahead, se)


def _sentence(laps: Sequence[Mapping[str, Any]]) -> str:
    from genbo.bilevel.race import names

    found, size = _outcome(laps), len(laps[0]["ahead"])
    raced = f"raced: {size} candidates on the samples of the last {number_format.plural(len(laps), 'step')}"
    if found.winner:
        lead = number_format.with_error(found.ahead, found.se)
        name = names(size)[found.winner]
        return f"{raced}; the {name} is {lead} ahead of the path's answer and takes its place"
    lead = number_format.with_error(-found.start_ahead, found.start_se)
    return f"{raced}; none is clearly ahead of the path's answer, which leads the start by {lead}"
