"""genbo show: a run in the terminal, finished or not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from genbo.cli.errors import UserMistake
from genbo.cli.report import number_format, words
from genbo.cli.report.records import ComparedRow, ObjectiveRecord, PhiValue, Status, StepRecord
from genbo.cli.report.records_report import CostRecord, RunReport
from genbo.cli.run.folder import is_run
from genbo.cli.run.journal import read_journal
from genbo.cli.run.json_files import Document, to_json
from genbo.cli.run.layout import SCHEMA
from genbo.cli.run.lock import holder
from genbo.cli.run.status import read_report, read_status

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

SHOWN = {"step", "phi", "value", "value_se", "grad", "grad_se", "status"}  # of a line of the journal
MARKS = {"good": "[green]✓[/]", "note": "[dim]i[/]", "warning": "[yellow]![/]"}


def run(folder: str | Path, *, as_json: bool = False) -> int:
    """The command: the report of a finished run, or how far another has come."""
    folder = Path(folder)
    if not is_run(folder):
        raise UserMistake(f"{folder} is not a run of genbo; give the folder that `output:` named")
    document = document_of(folder)
    if as_json:
        sys.stdout.write(to_json(document).decode())
        return 0
    from rich.console import Console

    console = Console(highlight=False)
    if "headline" in document:
        show_report(RunReport.read(document, folder / "report.json"), folder, console)
    else:
        show_unfinished(
            Status.read(document, folder / "status.json"), cast("list[Document]", document["steps"]), folder, console
        )
    return 0


def document_of(folder: Path) -> Document:
    """`report.json` where the run came to an end, else its status and the steps so far."""
    status = state_of(folder)
    if status["state"] in ("done", "diverged"):
        if report := read_report(folder):
            return report
        status["resumable"] = status["state"] == "done"
        status["reason"] = f"{status['reason']} (its report.json is missing or damaged)"
    return {
        "status": status["state"],
        **status,
        "verdict": None,
        "steps": [record for record in read_journal(folder / "steps.jsonl") if record.keys() >= SHOWN],
    }


def state_of(folder: Path) -> Document:
    """`status.json`, corrected where it says running and no process holds the folder."""
    status = read_status(folder)
    if status is None:
        steps, held = read_journal(folder / "steps.jsonl"), holder(folder)
        why = "status.json is damaged" if (folder / "status.json").exists() else "it ended before its first step"
        status = {"state": "running" if held else "interrupted", "reason": why, "last_step": len(steps)}
        return {"schema": SCHEMA, **status, "resumable": True}
    if status["state"] == "running" and holder(folder) is None:
        status |= {"state": "interrupted", "reason": f"killed during: {status['reason']}", "resumable": True}
    return status


def last_lines(document: Document, folder: Path) -> str:
    """The end of `genbo tune`: the verdict, the values, the place of the report."""
    report = RunReport.read(document, folder / "report.json")
    values = [f"{name}: {values_in_full(value)}" for name, value in report.phi.items()]
    chosen = [f"{name}: {record.tuned}" for name, record in report.choices.items()]
    return "\n".join([report.headline, *chosen, *values, f"report: {folder / 'report.html'}"])


def values_in_full(value: PhiValue) -> str:
    """Every number with its error bar, and a single one with its interval."""
    if not isinstance(value.tuned, list):
        se = None if isinstance(value.se, list) else value.se
        return number_format.with_error(value.tuned, se) + words.interval_or_reason(value)
    return ", ".join(number_format.with_error(t, e) for t, e in zip(value.tuned, _listed(value.se), strict=True))


# -- a finished run ------------------------------------------------------------------------------------------


def show_report(report: RunReport, folder: Path, console: Console) -> None:
    from rich.text import Text

    tone = {"better": "bold green", "worse": "bold red"}.get(str(report.verdict), "bold")
    console.print(Text(report.verdict or f"no verdict ({report.status})", style=tone))
    console.print(Text(report.headline), "")
    console.print(values_table(report), "")
    if report.rewards or report.keep:
        console.print(rewards_table(report), "")
    if report.held_out is not None and report.held_out.objective is not None:
        console.print(worst_table(report.held_out.objective), "")
    for line in paths(tuple(report.phi), report.steps):
        console.print(line)
    console.print()
    for remark in report.trust:
        console.print(MARKS[remark.level], Text(remark.text))
    console.print(Text(f"\ncost: {spent(report.cost)}", style="dim"))
    console.print(Text(f"report: {folder / 'report.html'}"), soft_wrap=True)


def spent(cost: CostRecord) -> str:
    """The counts that are known, and the time."""
    counts = {
        "denoiser calls": cost.denoiser_calls,
        "image forwards": cost.image_forwards,
        "image backwards": cost.image_backwards,
    }
    known = [f"{number_format.count(count)} {name}" for name, count in counts.items() if count is not None]
    return ", ".join([*known, number_format.duration(cost.elapsed_s)])


def values_table(report: RunReport) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "start", "tuned", "bounds"):
        table.add_column(name, justify="left" if not name else "right")
    for name, record in report.choices.items():
        among = ", ".join(str(row.value) for row in record.values)
        table.add_row(escape(name), escape(str(record.start)), escape(str(record.tuned)), escape(f"of {among}"))
    for name, value in report.phi.items():
        if value.labels:
            rows = zip(value.labels, *map(_listed, (value.start, value.tuned, value.se)), strict=True)
            for label, start, tuned, se in rows:
                after = number_format.with_error(tuned, se)
                table.add_row(escape(f"{name}.{label}"), number_format.number(start), after, "")
            continue
        bounds = "" if value.bounds is None else escape(f"[{value.bounds[0]:g}, {value.bounds[1]:g}]")
        before, after = number_format.numbers(value.start), number_format.numbers(value.tuned, value.se)
        table.add_row(escape(name), before, after, bounds)
    return table


def _listed(value: float | Sequence[float | None] | None) -> Sequence[float | None]:
    return value if isinstance(value, Sequence) else [value]


def rewards_table(report: RunReport) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    rows: list[tuple[str, ComparedRow, str]] = [(name, row, row.verdict or "") for name, row in report.rewards.items()]
    if report.held_out is not None and (of := report.held_out.objective) is not None:
        rows.insert(0, (f"objective: {of.name}", report.held_out, report.held_out.verdict or ""))
    for name, kept in report.keep.items():
        rows.append((f"keep {name} ≥ {number_format.number(kept.at_least)}", kept, kept.outcome))
    rows += [(f"judge {name}", row, row.verdict or "no verdict") for name, row in report.judges.items()]
    for name in ("held out", "start", "tuned", "difference,\n95 % interval"):
        table.add_column(name, justify="left" if name == "held out" else "right", no_wrap=True)
    table.add_column("")
    prompts = "up / down" if any(_counts(row) for _, row, _ in rows) else ""  # how many prompts gained and lost
    table.add_column(prompts, justify="right", no_wrap=True)
    for label, row, end in rows:
        start, tuned = number_format.number(row.start), number_format.number(row.tuned)
        table.add_row(escape(label), start, tuned, escape(words.change(row)), end, _counts(row))
    return table


def worst_table(objective: ObjectiveRecord) -> Table:
    """The worst prompts before and after tuning, side by side."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, justify in (
        ("worst at the start", "left"),
        ("start", "right"),
        ("worst tuned", "left"),
        ("tuned", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for before, after in zip(objective.worst_before, objective.worst_after, strict=True):
        cells = [words.quoted(before.prompt), number_format.number(before.start)]
        table.add_row(*map(escape, [*cells, words.quoted(after.prompt), number_format.number(after.tuned)]))
    return table


def _counts(row: ComparedRow) -> str:
    """How many prompts gained and lost, where there is more than one."""
    return f"{row.gained} / {row.lost}" if row.is_shaped else ""


def paths(names: Sequence[str], steps: Sequence[StepRecord]) -> list[Text]:
    """A sparkline for each scalar hyperparameter and for the reward."""
    from rich.text import Text

    rows = [(n, [s.phi[n] for s in steps]) for n in names]
    drawn = [(n, [v for v in values if not isinstance(v, list)]) for n, values in rows]
    drawn = [(n, values) for n, values in drawn if len(values) == len(steps)]
    drawn.append(("reward", [s.value for s in steps]))
    width = max(len(name) for name, _ in drawn)
    return [
        Text.assemble((f"{name:<{width}}  ", "dim"), number_format.sparkline(values), f"  {_ends(values)}")
        for name, values in drawn
        if values
    ]


def _ends(values: Sequence[float | None]) -> str:
    return f"{number_format.number(values[0])} → {number_format.number(values[-1])}"


# -- a run under way, stopped or failed ----------------------------------------------------------------------


def show_unfinished(status: Status, records: Sequence[Document], folder: Path, console: Console) -> None:
    from rich.text import Text

    from genbo.cli.stages.progress import table

    console.print(Text(status.state, style="bold"), Text(status.reason or ""))
    if records:
        steps = [StepRecord.read(record, folder / "steps.jsonl") for record in records]
        console.print(table(records[-10:]), "")
        for line in paths(tuple(steps[-1].phi), steps):
            console.print(line)
    if status.state != "running" and status.resumable:
        console.print(Text(f"to continue after step {status.last_step}, run the same command with --resume"))
