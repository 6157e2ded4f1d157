"""The whole of `report.json`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from genbo.cli.report.records import (
    AnswerRecord,
    ComparedRow,
    HeldOutRow,
    KeptRow,
    Number,
    PhiValue,
    Record,
    Remark,
    RewardRow,
    StepRecord,
    Verdict,
)
from genbo.cli.report.records_choices import ChoiceRecord, RungRow
from genbo.cli.report.records_search import SearchRecord
from genbo.cli.run.layout import SCHEMA


class CostRecord(Record):
    """Calls, images and seconds that were spent, beside the plan; a count that is not known is None."""

    denoiser_calls: int | None = None
    image_forwards: int | None = None
    image_backwards: int | None = None
    reward_images: int | None = None
    elapsed_s: Number | None = None
    planned: dict[str, Number] = Field(default_factory=dict)  # the most, where the plan is a range
    planned_at_least: dict[str, Number] = Field(default_factory=dict)
    inexact: str | None = None  # why the plan is a range

    def range_of(self, key: str) -> tuple[Number | None, Number | None]:
        """The least and the most that were planned of a count."""
        most = self.planned.get(key)
        return self.planned_at_least.get(key, most), most


class EstimatorRecord(Record):
    kind: str
    reason: str | None = None


class RaceRecord(Record):
    """Whether the last steps compared candidates; `text` is what came of it, or why not."""

    raced: bool
    text: str


class Use(Record):
    """What to paste."""

    folder: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    diffusers: str | None = None
    genbo: str | None = None


class RunReport(Record):
    """`report.json`."""

    schema_: int = Field(SCHEMA, alias="schema")
    genbo: str = ""
    status: str = "done"  # done | diverged
    reason: str | None = None
    verdict: Verdict | None = None
    headline: str = ""
    phi: dict[str, PhiValue] = Field(default_factory=dict)
    choices: dict[str, ChoiceRecord] = Field(default_factory=dict)  # of a search that has any
    rungs: list[RungRow] = Field(default_factory=list)  # of a search with a pruner, from few samples to all
    answer: AnswerRecord | None = None
    held_out: HeldOutRow | None = None
    rewards: dict[str, RewardRow] = Field(default_factory=dict)
    keep: dict[str, KeptRow] = Field(default_factory=dict)
    judges: dict[str, ComparedRow] = Field(default_factory=dict)
    cost: CostRecord = Field(default_factory=CostRecord)
    estimator: EstimatorRecord | None = None
    steps: list[StepRecord] = Field(default_factory=list)
    search: SearchRecord | None = None
    race: RaceRecord | None = None  # of the last steps of a climb; none where an earlier genbo wrote none
    trust: list[Remark] = Field(default_factory=list)
    use: Use = Field(default_factory=Use)
    job: dict[str, Any] = Field(default_factory=dict)
    environment: dict[str, Any] = Field(default_factory=dict)
    reproduce: str = ""
