"""genbo show: a run in the terminal, finished or not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genbo.cli.errors import UserMistake
from genbo.cli.report import number_format, root_words
from genbo.cli.run.folder import is_run
from genbo.cli.run.journal import read_journal
from genbo.cli.run.json_files import to_json
from genbo.cli.run.layout import SCHEMA
from genbo.cli.run.lock import holder
from genbo.cli.run.status import read_report, read_status

if TYPE_CHECKING:
    from rich.console import Console

Document = dict[str, Any]
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
        show_report(document, folder, console)
    else:
        show_unfinished(document, folder, console)
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
        why = "status.json is damaged" if (folder / "status.json").exists() else "it ended before it began"
        status = {"state": "running" if held else "interrupted", "reason": why, "last_step": len(steps)}
        return {"schema": SCHEMA, **status, "resumable": True}
    if status["state"] == "running" and holder(folder) is None:
        status |= {"state": "interrupted", "reason": f"killed during: {status['reason']}", "resumable": True}
    return status


def last_lines(document: Document, folder: Path) -> str:
    """The end of `genbo tune`: the verdict, the values, the place of the report."""
    values = [f"{name}: {values_in_full(value)}" for name, value in document["phi"].items()]
    return "\n".join([document["headline"], *values, f"report: {folder / 'report.html'}"])


def values_in_full(value: Document) -> str:
    tuned, se = value["tuned"], value["se"]
    if not isinstance(tuned, list):
        return number_format.with_error(tuned, se) + root_words.in_full(value)
    return ", ".join(number_format.with_error(t, e) for t, e in zip(tuned, se, strict=True))


# -- a finished run ------------------------------------------------------------------------------------------


def show_report(document: Document, folder: Path, console: Console) -> None:
    from rich.text import Text

    tone = {"better": "bold green", "worse": "bold red"}.get(document["verdict"], "bold")
    console.print(Text(document["verdict"] or f"no verdict ({document['status']})", style=tone))
    console.print(Text(document["headline"]), "")
    console.print(values_table(document), "")
    if document["rewards"] or document["keep"]:
        console.print(rewards_table(document), "")
    for line in paths(document["phi"], document["steps"]):
        console.print(line)
    console.print()
    for said in document["trust"]:
        console.print(MARKS[said["level"]], Text(said["text"]))
    cost = document["cost"]
    names = {"denoiser_calls": "denoiser calls", "image_forwards": "image forwards", "image_backwards": "backwards"}
    spent = ", ".join(f"{number_format.count(cost[key])} {name}" for key, name in names.items() if key in cost)
    console.print(Text(f"\ncost: {spent}, {number_format.duration(cost['elapsed_s'])}", style="dim"))
    console.print(Text(f"report: {folder / 'report.html'}"), soft_wrap=True)


def values_table(document: Document) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "start", "tuned", "bounds"):
        table.add_column(name, justify="left" if not name else "right")
    for name, value in document["phi"].items():
        if "labels" in value:
            for label, *numbers in zip(value["labels"], value["start"], value["tuned"], value["se"], strict=True):
                table.add_row(
                    escape(f"{name}.{label}"),
                    number_format.number(numbers[0]),
                    number_format.with_error(*numbers[1:]),
                    "",
                )
            continue
        bounds = "" if value["bounds"] is None else escape(f"[{value['bounds'][0]:g}, {value['bounds'][1]:g}]")
        table.add_row(
            escape(name),
            number_format.spoken(value["start"]),
            number_format.spoken(value["tuned"], value["se"]),
            bounds,
        )
    return table


def rewards_table(document: Document) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    every = [*document["rewards"].values(), *document["keep"].values(), *document.get("judges", {}).values()]
    prompts = "up / down" if any(map(_counts, every)) else ""  # how many prompts gained and lost
    for name in ("held out", "start", "tuned", "difference,\n95 % interval"):
        table.add_column(name, justify="left" if name == "held out" else "right", no_wrap=True)
    table.add_column("")
    table.add_column(prompts, justify="right", no_wrap=True)
    for name, row in document["rewards"].items():
        gain = escape(number_format.change(row["difference"], row["interval"]))
        start, tuned = number_format.number(row["start"]), number_format.number(row["tuned"])
        table.add_row(escape(name), start, tuned, gain, row["verdict"], _counts(row))
    for name, row in document["keep"].items():
        gain = escape(number_format.change(row["difference"], row["interval"]))
        end = "kept" if row["held"] else "broken" if row["broken"] else "within noise"
        label = f"keep {name} ≥ {number_format.number(row['at_least'])}"
        table.add_row(
            escape(label),
            number_format.number(row["start"]),
            number_format.number(row["tuned"]),
            gain,
            end,
            _counts(row),
        )
    for name, row in document.get("judges", {}).items():
        gain = escape(number_format.change(row["difference"], row["interval"]))
        label, end = f"judge {name}", row["verdict"] or "no verdict"
        table.add_row(
            escape(label),
            number_format.number(row["start"]),
            number_format.number(row["tuned"]),
            gain,
            end,
            _counts(row),
        )
    return table


def _counts(row: Document) -> str:
    """How many prompts gained and lost, where there is more than one."""
    return f"{row['gained']} / {row['lost']}" if row.get("prompts", 0) > 1 and "gained" in row else ""


def paths(names: Sequence[str], steps: Sequence[Document]) -> list[Any]:
    """A sparkline for each scalar hyperparameter and for the reward."""
    from rich.text import Text

    rows = [(n, [s["phi"][n] for s in steps]) for n in names]
    drawn = [(n, values) for n, values in rows if values and not isinstance(values[0], list)]
    drawn.append(("reward", [s["value"] for s in steps]))
    width = max(len(name) for name, _ in drawn)
    return [
        Text.assemble((f"{name:<{width}}  ", "dim"), number_format.sparkline(values), f"  {_ends(values)}")
        for name, values in drawn
        if values
    ]


def _ends(values: Sequence[float | None]) -> str:
    return f"{number_format.number(values[0])} → {number_format.number(values[-1])}"


# -- a run under way, stopped or failed ----------------------------------------------------------------------


def show_unfinished(document: Document, folder: Path, console: Console) -> None:
    from rich.text import Text

    from genbo.cli.stages.progress import table

    console.print(Text(document["state"], style="bold"), Text(document["reason"] or ""))
    steps = document["steps"]
    if steps:
        console.print(table(steps[-10:]), "")
        for line in paths(tuple(steps[-1]["phi"]), steps):
            console.print(line)
    if document["state"] != "running" and document["resumable"]:
        console.print(Text(f"the same `genbo tune` command with --resume goes on after step {document['last_step']}"))
