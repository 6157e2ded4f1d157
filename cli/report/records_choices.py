"""The records of choices and of rungs in `report.json`, of a search that has any."""

from __future__ import annotations

from pydantic import Field

from genbo.cli.report.records import Number, Record

ChoiceWord = str | int | float | bool


class ChoiceValue(Record):
    """The candidates that had this value of a choice; their rewards are those of tuning, less missed constraints."""

    value: ChoiceWord
    candidates: int = 0  # that were tried with it
    whole: int = 0  # of them, those that were measured on all samples
    best: Number | None = None  # reward of the best of these
    best_se: Number | None = None  # its standard error over the samples
    mean: Number | None = None  # over these
    spread: Number | None = None  # their standard deviation; None where there are fewer than two


class ChoiceRecord(Record):
    """A choice: the job's own value, the one that was found, and all there were."""

    start: ChoiceWord
    tuned: ChoiceWord
    values: list[ChoiceValue] = Field(default_factory=list)


class RungRow(Record):
    """A rung: how many candidates were measured on so many samples, and how many of them were stopped there."""

    samples: int
    candidates: int = 0
    stopped: int = 0
