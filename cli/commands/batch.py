"""genbo batch: several jobs one after the other and one table at the end; a failed job does not stop the others.

A signal reaches the job that runs, which ends at its next safe point; the jobs after it are not begun. The same command
goes on with what is left.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from genbo.cli.commands.show import document_of
from genbo.cli.job.job import JobMistakes, read_job
from genbo.cli.job.user_code import Allowed, allowed
from genbo.cli.report import number_format
from genbo.cli.run.folder import is_run
from genbo.cli.run.json_files import to_json

Document = dict[str, Any]
PR_SET_PDEATHSIG = 1  # of prctl(2)
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
    with Forwarded() as signals:
        rows = [_one(path, options, known, signals) if signals.received is None else _not_begun(path) for path in jobs]
    if as_json:
        sys.stdout.write(to_json(rows).decode())
    else:
        _print(rows)
    if signals.received is not None and any(row["status"] in ("not begun", "preempted", "interrupted") for row in rows):
        return signals.exit_code
    return next((row["exit_code"] for row in rows if row["exit_code"]), 0)


def _one(path: Path, options: Sequence[str], own: Allowed, signals: Forwarded) -> Document:
    print(f"{path}:", file=sys.stderr, flush=True)
    try:
        output = Path(read_job(path, code=own).output)
    except JobMistakes as mistakes:
        print(mistakes, file=sys.stderr)
        return {"job": path.name, "exit_code": mistakes.exit_code, "status": "bad job", "report": None}
    again = () if "--overwrite" in options or not is_run(output) else ("--resume",)
    code = signals.passed_to([sys.executable, "-m", "genbo", "tune", str(path), *again, *options])
    document = document_of(output) if is_run(output) else {"status": "failed"}
    report = document if "headline" in document else None
    return {"job": path.name, "exit_code": code, "status": document["status"], "report": report}


def _not_begun(path: Path) -> Document:
    return {"job": path.name, "exit_code": None, "status": "not begun", "report": None}


class Forwarded:
    """Passes SIGTERM, SIGINT and a stop at the terminal on to the job that runs, which ends as it would alone.

    The job stands in a process group of its own, or Ctrl-C at a terminal would reach it twice, which ends it at once.
    Where this process is killed itself, the system sends the job a SIGTERM.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._passed = False  # to the job
        self._job: subprocess.Popen[bytes] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Forwarded:
        if threading.current_thread() is threading.main_thread():
            for number, handler in {
                signal.SIGTERM: self._end,
                signal.SIGINT: self._end,
                signal.SIGTSTP: self._stop,
            }.items():
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        return 130 if self.received == signal.SIGINT else 75

    def passed_to(self, command: Sequence[str]) -> int:
        """Runs a command to its end; the exit code as a shell says it, 128 + n where signal n ended it."""
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=_ends_with_parent(),
        ) as job:
            self._job = job
            if self.received is not None and not self._passed:  # it came while the process was made
                self._end(self.received, None)
            code = job.wait()
            self._job = None
        return 128 - code if code < 0 else code

    def _end(self, number: int, _frame: object) -> None:
        self.received, self._passed = number, self._job is not None
        if self._job is not None:
            self._job.send_signal(number)

    def _stop(self, _number: int, _frame: object) -> None:
        for number in (signal.SIGSTOP, signal.SIGCONT):
            if self._job is not None:
                self._job.send_signal(number)
            if number == signal.SIGSTOP:
                os.kill(os.getpid(), number)


def _ends_with_parent() -> Callable[[], None] | None:
    """What a new process does before it begins, so that it gets a SIGTERM when this one dies; on Linux alone."""
    if not sys.platform.startswith("linux"):
        return None
    control = ctypes.CDLL(None, use_errno=True).prctl

    def ask() -> None:
        control(PR_SET_PDEATHSIG, signal.SIGTERM)

    return ask


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
    ended = row["status"] if not row["exit_code"] else f"{row['status']} (exit {row['exit_code']})"
    report = row["report"] or {}
    held_out = report.get("held_out")
    if held_out is None:
        return [row["job"], ended, "—", "—", "—", "—"]
    tuned = ", ".join(f"{name} {_value(phi)}" for name, phi in report["phi"].items())
    gain = f"{number_format.number(held_out['difference'], sign=True)} {number_format.interval(held_out['interval'])}"
    judges = [f"{name}: {row['verdict'] or 'no verdict'}" for name, row in report.get("judges", {}).items()]
    verdict = "; ".join([report["verdict"] or "no verdict", *judges])
    return [row["job"], ended, tuned, gain, verdict, f"{report['cost']['elapsed_s']:.0f} s"]


def _value(phi: Document) -> str:
    if isinstance(phi["tuned"], list):
        return f"[{', '.join(number_format.number(x) for x in phi['tuned'])}]"
    return number_format.with_error(phi["tuned"], phi["se"])
