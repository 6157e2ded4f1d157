"""genbo batch: several jobs one after the other and one table at the end; a failed job does not stop the others.

A signal reaches the job that runs, which ends at its next safe point; the jobs after it are not begun. The same command
goes on with what is left.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from genbo.cli.commands.show import document_of
from genbo.cli.job.job import JobMistakes, read_job
from genbo.cli.job.user_code import Allowed, allowed
from genbo.cli.report import number_format
from genbo.cli.report.records import PhiValue
from genbo.cli.report.records_report import RunReport
from genbo.cli.run.folder import is_run
from genbo.cli.run.forwarding import Forwarded
from genbo.cli.run.json_files import Document, to_json

COLUMNS = ("job", "ended", "tuned", "held-out gain", "verdict", "time")


class EndedJob(TypedDict):
    """How a job ended: its exit code, its status, and `report.json` where it came to an end."""

    job: str
    exit_code: int | None
    status: str
    report: Document | None


def run(
    jobs: Sequence[Path], options: Sequence[str] = (), *, as_json: bool = False, allow_code: Sequence[Path] = ()
) -> int:
    """Tune every job in a process of its own; the exit code is that of the first that failed, or 0.

    A job that was begun before is gone on with, and left as it is where it is done, as `--resume` does. `options` are
    handed to `genbo tune`.
    """
    known = allowed(allow_code)
    options = [*options, *(part for path in allow_code for part in ("--allow-code", str(path)))]
    with Forwarded() as signals:
        rows = [_one(path, options, known, signals) if signals.received is None else _not_begun(path) for path in jobs]
    if as_json:
        sys.stdout.write(to_json(rows).decode())
    else:
        _print(rows)
    if signals.received is not None and any(row["status"] in ("not begun", "preempted", "interrupted") for row in rows):
        return signals.exit_code
    return next((row["exit_code"] for row in rows if row["exit_code"]), 0)


def _one(path: Path, options: Sequence[str], own: Allowed, signals: Forwarded) -> EndedJob:
    print(f"{path}:", file=sys.stderr, flush=True)
    try:
        output = Path(read_job(path, code=own).output)
    except JobMistakes as mistakes:
        print(mistakes, file=sys.stderr)
        return {"job": path.name, "exit_code": mistakes.exit_code, "status": "bad job", "report": None}
    again = () if "--overwrite" in options or not is_run(output) else ("--resume",)
    code = signals.passed_to([sys.executable, "-m", "genbo", "tune", str(path), *again, *options])
    document: Document = document_of(output) if is_run(output) else {"status": "failed"}
    report = document if "headline" in document else None
    return {"job": path.name, "exit_code": code, "status": str(document["status"]), "report": report}


def _not_begun(path: Path) -> EndedJob:
    return {"job": path.name, "exit_code": None, "status": "not begun", "report": None}


def _print(rows: Sequence[EndedJob]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*_cells(row))
    Console(highlight=False, width=None if sys.stdout.isatty() else 140).print(table)


def _cells(row: EndedJob) -> list[str]:
    ended = row["status"] if not row["exit_code"] else f"{row['status']} (exit {row['exit_code']})"
    report = RunReport.model_validate(row["report"]) if row["report"] else None
    if report is None or report.held_out is None:
        return [row["job"], ended, "—", "—", "—", "—"]
    held_out, elapsed = report.held_out, report.cost.elapsed_s
    tuned = ", ".join(f"{name} {_value(phi)}" for name, phi in report.phi.items())
    gain = f"{number_format.number(held_out.difference, sign=True)} {number_format.interval(held_out.interval)}"
    judges = [f"{name}: {judge.verdict or 'no verdict'}" for name, judge in report.judges.items()]
    verdict = "; ".join([report.verdict or "no verdict", *judges])
    return [row["job"], ended, tuned, gain, verdict, "—" if elapsed is None else f"{elapsed:.0f} s"]


def _value(phi: PhiValue) -> str:
    if isinstance(phi.tuned, list):
        return f"[{', '.join(number_format.number(x) for x in phi.tuned)}]"
    return number_format.with_error(phi.tuned, None if isinstance(phi.se, list) else phi.se)
