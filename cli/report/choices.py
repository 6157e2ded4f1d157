"""What a search chose, and on how many samples its candidates were measured: records, and words for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from genbo.cli.job.choices import Value
from genbo.cli.report.records_choices import ChoiceRecord, ChoiceValue, RungRow
from genbo.cli.report.words import capitalised

Step = Mapping[str, Any]


def chosen_of(job: Mapping[str, Any], tuned: Mapping[str, Value], steps: Sequence[Step]) -> dict[str, ChoiceRecord]:
    """Each choice of a job's document by its name; `tuned` is what was chosen, or nothing where that is not known."""
    lists = {name: values for name, values in job.get("tune", {}).items() if isinstance(values, list)}
    found = {}
    for name, values in lists.items():
        start = steps[0]["choices"][name] if steps else tuned.get(name, values[0])
        whole = job["budget"]["samples"]
        rows = [_value(value, [step for step in steps if step["choices"][name] == value], whole) for value in values]
        found[name] = ChoiceRecord(start=start, tuned=tuned.get(name, start), values=rows)
    return found


def _value(value: Value, tried: Sequence[Step], whole: int) -> ChoiceValue:
    """One value of a choice, by the candidates that had it and were measured on `whole`, all, samples."""
    usable = [step for step in tried if step["status"] == "ok" and step.get("samples", whole) == whole]
    row = ChoiceValue(value=value, candidates=len(tried), whole=len(usable))
    if usable:
        best = max(usable, key=lambda step: step["objective"])
        rewards = [step["objective"] for step in usable]
        row.best, row.best_se, row.mean = best["objective"], best["value_se"], fmean(rewards)
        row.spread = stdev(rewards) if len(rewards) > 1 else None
    return row


def rungs_of(job: Mapping[str, Any], steps: Sequence[Step]) -> list[RungRow]:
    """Every number of samples at which a candidate ended, with all that came so far."""
    if not any("rungs" in step for step in steps):
        return []
    whole = job["budget"]["samples"]
    return [
        RungRow(
            samples=samples,
            candidates=sum(step["samples"] >= samples for step in steps),
            stopped=sum(step["samples"] == samples < whole and step["status"] == "ok" for step in steps),
        )
        for samples in sorted({step["samples"] for step in steps})
    ]


def instead(name: str, record: ChoiceRecord) -> str:
    """`Sampler kind dpmpp instead of ddim`, or that it stays."""
    what = spoken_name(name)
    if record.tuned == record.start:
        return f"{what} {record.start} (as at the start)"
    return f"{what} {record.tuned} instead of {record.start}"


def spoken_name(name: str) -> str:
    """`sampler.kind` -> `Sampler kind`."""
    return capitalised(name.replace(".", " "))
