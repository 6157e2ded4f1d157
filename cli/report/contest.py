"""A comparison of tuners as one record, `comparison.json`, and as a table and a page for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup
from pydantic import Field

from genbo.cli.report import number_format
from genbo.cli.report.html import POLICY, environment
from genbo.cli.report.records import Interval, Number, Numbers, Record
from genbo.cli.report.svg import Frame, joined, padded, svg, tag
from genbo.cli.report.words import capitalised
from genbo.cli.run.atomic import write_atomic
from genbo.cli.run.versions import version

if TYPE_CHECKING:
    from rich.table import Table

    from genbo.bilevel.contest import Contest

SCHEMA = 1
WORK = "image forwards + 2 × backwards"
COLORS = ("var(--tuned)", "#b4572b", "#5b6fb5", "#8a6100", "#7a4a8c", "#4d7c3a", "#8b8377")
Run = Mapping[str, Any]


class WayPoint(Record):
    """The best so far of a tuner, averaged over the repeats: its gain on held-out samples after so much work."""

    work: Number
    gain: Number


class TunerRow(Record):
    """A tuner over all repeats; `against` is the job minus this tuner, and `standing` where the job stands."""

    gain: Number | None = None
    interval: Interval = (None, None)
    difference: Number | None = None  # the job's gain minus this one's
    difference_interval: Interval = (None, None)
    standing: Literal["ahead", "behind", "no measurable difference"] | None = None
    work: Number | None = None
    denoiser_calls: Number | None = None
    elapsed_s: Number | None = None
    peak_bytes: int | None = None
    trials: int | None = None
    samples: int | None = None
    phi: list[dict[str, str | bool | Number | Numbers]] = Field(default_factory=list)  # of each repeat
    gains: Numbers = Field(default_factory=list)  # of each repeat
    way: list[WayPoint] = Field(default_factory=list)
    failed: list[str] = Field(default_factory=list)


class ComparisonRecord(Record):
    """`comparison.json`."""

    schema_: int = Field(SCHEMA, alias="schema")
    genbo: str
    headline: str
    own: str = "job"  # what all others are compared with
    work: int  # 0 where fixed values are compared, and not tuners
    repeats: int
    common_noise: bool
    held_out: int  # samples, in each repeat
    fresh_prompts: bool
    tuners: dict[str, TunerRow]
    left_out: dict[str, str]
    job: dict[str, Any]


def record_of(
    runs: Mapping[str, Sequence[Run]],
    plans: Mapping[str, tuple[int, int]],
    *,
    own: str,
    work: int,
    common: bool,
    left_out: Mapping[str, str],
    job: Mapping[str, object],
) -> ComparisonRecord:
    """The record of all runs, a list a tuner, a run a repeat; `plans` has its trials or steps, and samples of each.

    Intervals of differences hold together (Bonferroni's level). A tuner that failed in a repeat has no figures.
    """
    fine = {name: each for name, each in runs.items() if not any("failed" in run for run in each)}
    rivals = [name for name in fine if name != own]
    rows = {}
    for name, each in runs.items():
        row = _row(each, *plans[name]) if name in fine else _failed(each)
        if own in fine and name in rivals:
            _stand(row, _contest(fine[own], each, "tuned", len(rivals)))
        rows[name] = row
    some = next(run for each in runs.values() for run in each if "failed" not in run) if fine else {}
    return ComparisonRecord(
        schema=SCHEMA,
        genbo=version(),
        headline=_headline(rows, own, tuned=work > 0),
        own=own,
        work=work,
        repeats=len(runs[own]),
        common_noise=common,
        held_out=len(some.get("tuned", ())),
        fresh_prompts=bool(some.get("fresh_prompts", False)),
        tuners=rows,
        left_out=dict(left_out),
        job=dict(job),
    )


def _row(each: Sequence[Run], trials: int, samples: int) -> TunerRow:
    gain = _contest(each, each, "start", 1)
    ways = zip(*(run["way"] for run in each), strict=False)
    return TunerRow(
        gain=gain.difference,
        interval=gain.interval,
        work=fmean(run["work"] for run in each),
        denoiser_calls=fmean(run["cost"]["denoiser_calls"] for run in each),
        elapsed_s=fmean(run["elapsed_s"] for run in each),
        peak_bytes=max((run["peak_bytes"] for run in each if run["peak_bytes"] is not None), default=None),
        trials=trials,
        samples=samples,
        phi=[run["phi"] for run in each],
        gains=[fmean(run["tuned"]) - fmean(run["start"]) for run in each],
        way=[WayPoint(work=fmean(p["work"] for p in at), gain=fmean(p["gain"] for p in at)) for at in ways],
    )


def _failed(each: Sequence[Run]) -> TunerRow:
    return TunerRow(failed=[run["failed"] for run in each if "failed" in run])


def _contest(first: Sequence[Run], second: Sequence[Run], scores: str, comparisons: int) -> Contest:
    """What the first reached against these scores of the second."""
    import torch

    from genbo.bilevel.contest import against

    sides = [torch.tensor(run["tuned"], dtype=torch.float64) for run in first]
    others = [torch.tensor(run[scores], dtype=torch.float64) for run in second]
    prompts, fresh = first[0]["prompts"], first[0]["fresh_prompts"]
    return against(sides, others, prompts, fresh_prompts=fresh, comparisons=comparisons)


def _stand(row: TunerRow, contest: Contest) -> None:
    row.difference, row.difference_interval, row.standing = contest.difference, contest.interval, contest.standing


def _headline(rows: Mapping[str, TunerRow], own: str, *, tuned: bool) -> str:
    """Where the job, or the first of fixed values, stands, in a sentence."""
    who = "the job" if tuned else own
    if rows[own].failed:
        failed = number_format.plural(len(rows[own].failed), "repeat")
        return f"{capitalised(who)} failed in {failed}: {rows[own].failed[0]}"
    names = {
        standing: [name for name, row in rows.items() if row.standing == standing]
        for standing in ("ahead", "behind", "no measurable difference")
    }
    parts = [
        f"is ahead of {_listed(names['ahead'])}" if names["ahead"] else "",
        f"is behind {_listed(names['behind'])}" if names["behind"] else "",
        f"shows no measurable difference to {_listed(names['no measurable difference'])}"
        if names["no measurable difference"]
        else "",
    ]
    stands = _listed([part for part in parts if part])
    return f"At equal work the job {stands}." if tuned else f"{who} {stands}."


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


# -- a table in the terminal -------------------------------------------------------------------------------------------

COLUMNS = ("tuner", "gain", "job minus tuner", "the job is", "trials × samples", "work", "time", "memory")


def columns(record: ComparisonRecord) -> tuple[str, ...]:
    """The head of the table."""
    return COLUMNS if record.work else ("values", "score", f"{record.own} minus it", f"{record.own} is")


def rows_of(record: ComparisonRecord) -> list[list[str]]:
    """The body of the table."""
    return [cells(name, row)[: len(columns(record))] for name, row in record.tuners.items()]


def cells(name: str, row: TunerRow) -> list[str]:
    """A row of the table of tuners, of which fixed values have the first cells."""
    if row.failed:
        return [name, "failed", "—", "—", "—", "—", "—", "—"]
    against = "—" if row.difference is None else number_format.change(row.difference, row.difference_interval)
    memory = "—" if row.peak_bytes is None else f"{row.peak_bytes / 1e9:.2f} GB"
    return [
        name,
        number_format.change(row.gain, row.interval),
        against,
        row.standing or "—",
        f"{row.trials} × {row.samples}",
        number_format.count(row.work),
        number_format.duration(row.elapsed_s),
        memory,
    ]


def table_of(record: ComparisonRecord) -> Table:
    """For a terminal."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for k, name in enumerate(columns(record)):
        table.add_column(name, overflow="fold", justify="left" if k in (0, 3) else "right")
    for row in rows_of(record):
        table.add_row(*row)
    return table


def notes(record: ComparisonRecord) -> list[str]:
    """What a reader of the table must know."""
    counted = "repeats and prompts" if record.fresh_prompts else "repeats"
    if record.repeats == 1:
        counted = "prompts of this one repeat" if record.fresh_prompts else "samples of this one repeat"
    kept = ["No score counts the levels under keep; the report of each run says whether they hold."]
    levels = kept if record.job.get("keep") else []
    if not record.work:
        return [
            f"Scores are means over {record.held_out} held-out samples, which all share; 95 % intervals count "
            f"{'prompts' if record.fresh_prompts else 'samples'}. Those of the differences hold together.",
            *levels,
        ]
    noise = "Candidates of a search share their noise" if record.common_noise else "Each candidate has fresh noise"
    return [
        f"Each tuner may spend {number_format.count(record.work)} units of work ({WORK}) in each of "
        f"{number_format.plural(record.repeats, 'repeat')}. {noise}.",
        f"Gains are over {_baseline(record)}; 95 % intervals count {counted}. Those of the differences hold together.",
        *levels,
        *(f"{name} is left out: {reason}." for name, reason in record.left_out.items()),
        *(f"{name} failed: {reason}" for name, row in record.tuners.items() for reason in row.failed[:1]),
    ]


def _baseline(record: ComparisonRecord) -> str:
    """What a gain is counted from, and on which samples."""
    if "regularization" in record.job.get("tune", {}):
        return (
            f"the pretrained model, by reweighting {record.job['evaluate']['samples']} held-out samples to each lambda"
        )
    return f"the start, on {record.held_out} held-out samples"


# -- a page ------------------------------------------------------------------------------------------------------------


def chart_of(record: ComparisonRecord) -> Markup:
    """The gain of each tuner's best so far over its work."""
    lines = {name: [(p.work, p.gain) for p in row.way] for name, row in record.tuners.items() if row.way}
    if not lines:
        return Markup("")
    seen = [gain for points in lines.values() for _, gain in points] + [0.0]
    most = max(work for points in lines.values() for work, _ in points)
    frame = Frame((0.0, most * 1.02), padded(seen), width=720, height=320)
    parts = [frame.axes(f"work: {WORK}"), frame.level(0.0, class_="before")]
    for (name, points), color in zip(lines.items(), cycle(COLORS), strict=False):
        style = f"stroke: {color}; stroke-width: {2.5 if name == next(iter(lines)) else 1.5}"
        parts.append(frame.line(points, style=style))
        parts += [
            frame.dot(x, y, style=f"fill: {color}", title=f"{name}: {number_format.number(y, sign=True)}")
            for x, y in points
        ]
    return svg(joined(parts), "gain over work", 720, 320)


def legend_of(record: ComparisonRecord) -> Markup:
    names = [name for name, row in record.tuners.items() if row.way]
    keys = (
        tag("span", name, style=f"color: {color}; font-weight: 600; margin-right: 1.2em")
        for name, color in zip(names, cycle(COLORS), strict=False)
    )
    return joined(list(keys))


def write_page(record: ComparisonRecord, place: Path) -> Path:
    """`comparison.html`, one file that opens offline."""
    page = (
        environment()
        .get_template("contest.html.j2")
        .render(
            d=record,
            policy=POLICY,
            columns=columns(record),
            rows=list(zip(rows_of(record), (row.standing for row in record.tuners.values()), strict=True)),
            chart=chart_of(record),
            legend=legend_of(record),
            notes=notes(record),
            phis=[(name, _phis(row)) for name, row in record.tuners.items() if row.phi],
        )
    )
    write_atomic(place, page.encode("utf-8", "replace"))
    return place


def _phis(row: TunerRow) -> list[str]:
    """What each repeat ended at."""
    return [", ".join(f"{name} {_value(value)}" for name, value in phi.items()) for phi in row.phi]


def _value(value: Any) -> str:
    """A number of phi, or the value of a choice, which is a word or a whole number."""
    return str(value) if isinstance(value, (str, int)) else number_format.numbers(value)
