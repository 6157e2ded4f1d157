"""The key `search.weights` of `report.json`: fine-tuned weights beside the law that they were tuned for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genbo.cli.report.records import ComparedRow, Interval, Number, Record

FitVerdict = Literal["reliable", "doubtful", "refuse"]


class PromisedRecord(Record):
    """What the law at a lambda gains over the pretrained model on the tuning prompts, with standard errors."""

    r1: Number | None = None
    r1_se: Number | None = None
    r2: Number | None = None
    r2_se: Number | None = None
    kl: Number | None = None  # nats
    verdict: FitVerdict = "reliable"  # of its samples


class ReachedRecord(Record):
    """What weights gain over the pretrained model on one kind of prompts."""

    r1: ComparedRow
    r2: ComparedRow
    share: Number | None = None  # of the law's gain in r2 on the tuning prompts; None where that is not clear
    share_interval: Interval | None = None
    r1_per_r2: Number | None = None  # None where r2 did not clearly move
    r1_per_r2_interval: Interval | None = None
    judges: dict[str, ComparedRow] = Field(default_factory=dict)


class WeightsRow(Record):
    """Fine-tuned weights on held-out noise, against the pretrained model."""

    factor: Number | None = None  # of the lambda that was found; None is the pretrained model
    lam: Number | None = None
    kl: Number | None = None  # of the paths, nats
    kl_se: Number | None = None
    r1: Number | None = None
    r1_gain: ComparedRow | None = None
    r2: Number | None = None
    r2_gain: ComparedRow | None = None
    judges: dict[str, ComparedRow] = Field(default_factory=dict)
    promised: PromisedRecord | None = None
    on_tuned: ReachedRecord | None = None  # fresh seeds of the tuning prompts
    on_held_out: ReachedRecord | None = None  # None where the held-out prompts are the tuning prompts
