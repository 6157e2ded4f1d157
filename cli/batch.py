"""genbo batch: several jobs one after the other and one table at the end; a failed job does not stop the others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genbo.cli import figures
from genbo.cli.allowed import Allowed, allowed
from genbo.cli.job import JobMistakes, read_job
from genbo.cli.run import to_json
from genbo.cli.show import document_of

Document = dict[str, Any]
COLUMNS = ("job", "ended", "tuned", "held-out gain", "verdict", "time")


def run(
    jobs: Sequence[Path], options: Sequence[str] = (), *, as_json: bool = False, allow_code: Sequence[Path] = ()
) -> int:
    """Tune every job in a process of its own; the exit code is that of the first that failed, or 0.

    A job that was begun before is gone on with, and left as it is where it is done, as `--resume` does. `options` are
    handed to `genbo tune`.
    """
    known = allowed(allow_code)
    options = [*options, *(part for path in allow_code for part in ("--allow-code", str(path)))]
    rows = [_one(path, options, known) for path in jobs]
    if as_json:
        sys.stdout.write(to_json(rows).decode())
    else:
        _print(rows)
    return next((row["exit_code"] for row in rows if row["exit_code"]), 0)


def _one(path: Path, options: Sequence[str], own: Allowed) -> Document:
    print(f"{path}:", file=sys.stderr, flush=True)
    try:
        output = Path(read_job(path, code=own).output)
    except JobMistakes as mistakes:
        print(mistakes, file=sys.stderr)
        return {"job": path.name, "exit_code": mistakes.exit_code, "status": "bad job", "report": None}
    again = () if "--overwrite" in options or not (output / "status.json").exists() else ("--resume",)
    command = [sys.executable, "-m", "genbo", "tune", str(path), *again, *options]
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    known = (output / "status.json").exists()
    document = document_of(output) if known else {"status": "failed"}
    return {"job": path.name, "exit_code": code, "status": document["status"], "report": document if known else None}


def _print(rows: Sequence[Document]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*_cells(row))
    Console(highlight=False, width=None if sys.stdout.isatty() else 140).print(table)


def _cells(row: Document) -> list[str]:
    ended = row["status"] if row["exit_code"] == 0 else f"{row['status']} (exit {row['exit_code']})"
    report = row["report"] or {}
    held_out = report.get("held_out")
    if held_out is None:
        return [row["job"], ended, "—", "—", "—", "—"]
    tuned = ", ".join(f"{name} {_value(phi)}" for name, phi in report["phi"].items())
    gain = f"{figures.number(held_out['difference'], sign=True)} {figures.interval(held_out['interval'])}"
    judges = [f"{name}: {row['verdict'] or 'no verdict'}" for name, row in report.get("judges", {}).items()]
    verdict = "; ".join([report["verdict"] or "no verdict", *judges])
    return [row["job"], ended, tuned, gain, verdict, f"{report['cost']['elapsed_s']:.0f} s"]


def _value(phi: Document) -> str:
    if isinstance(phi["tuned"], list):
        return f"[{', '.join(figures.number(x) for x in phi['tuned'])}]"
    return figures.with_error(phi["tuned"], phi["se"])
