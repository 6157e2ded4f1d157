"""genbo batch: signals reach the job that runs, what was begun is gone on with, and every exit code is a shell's."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from genbo.cli.commands import batch
from genbo.cli.run.folder import opened
from tests.cli.conftest import JOB

# In place of `python -m genbo tune JOB ...`: notes its arguments, and ends as the file `as` says.
COMMAND = """\
#!{python} -S
import os, signal, sys, time
job, flags = sys.argv[4], sys.argv[5:]
how = open("as").read()
received = []
def stop(number, frame):
    if received:
        os._exit(128 + number)
    received.append(number)
    open("received", "w").close()
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, stop)
with open("log", "a") as file:
    print(os.path.basename(job), *flags, file=file)
if how.startswith("exit"):
    sys.exit(int(how.split()[1]))
if how == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
open("ready", "w").close()
for _ in range(60_000):
    time.sleep(0.01)
    if received and how == "safe point":
        sys.exit({{signal.SIGTERM: 75, signal.SIGINT: 130}}[received[0]])
"""


@pytest.fixture
def jobs(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    command = workplace / "python"
    command.write_text(COMMAND.format(python=sys.executable))
    command.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(command))
    for name in ("a", "b"):
        Path(f"{name}.yaml").write_text(JOB.replace("output: run", f"output: {name}"))
    Path("as").write_text("exit 0")
    return [Path("a.yaml"), Path("b.yaml")]


def run(jobs: list[Path], capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, list[dict[str, Any]]]:
    code = batch.run(jobs, options, as_json=True)
    return code, json.loads(capsys.readouterr().out)


def sent(*numbers: int) -> threading.Thread:
    """A thread that sends this process signals: one once the job is ready, the next once the job has had the first."""

    def send() -> None:
        for number, awaited in zip(numbers, ("ready", "received"), strict=False):
            while not Path(awaited).exists():
                time.sleep(0.005)
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_the_job_at_its_safe_point_and_the_others_are_not_begun(
    jobs: list[Path], capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    Path("as").write_text("safe point")
    before = signal.getsignal(number)
    thread = sent(number)
    ended, rows = run(jobs, capsys)
    thread.join()
    assert ended == code
    assert [(row["exit_code"], row["status"]) for row in rows] == [(code, "failed"), (None, "not begun")]
    assert Path("log").read_text() == "a.yaml\n"
    assert signal.getsignal(number) is before


def test_a_second_signal_ends_the_job_at_once(jobs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    Path("as").write_text("never")
    thread = sent(signal.SIGTERM, signal.SIGTERM)
    ended, rows = run(jobs, capsys)
    thread.join()
    assert (ended, rows[0]["exit_code"]) == (75, 128 + signal.SIGTERM)


def test_a_job_that_is_killed_does_not_stop_the_others(jobs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    Path("as").write_text("killed")
    ended, rows = run(jobs, capsys)
    assert ended == 128 + signal.SIGKILL
    assert [row["exit_code"] for row in rows] == [137, 137]


def test_the_job_stands_in_a_group_of_its_own(workplace: Path) -> None:
    """Ctrl-C at a terminal reaches a whole group, and a second signal would end the job at once."""
    script = f"import os, sys; sys.exit(os.getpgid(0) == {os.getpgid(0)})"
    with batch.Forwarded() as signals:
        assert signals.passed_to([sys.executable, "-S", "-c", script]) == 0


@pytest.mark.parametrize("left", ["job.yaml alone", "a status", "a damaged status"])
def test_what_was_begun_is_gone_on_with(jobs: list[Path], capsys: pytest.CaptureFixture[str], left: str) -> None:
    with opened(Path("a"), {"version": 1}, resume=False, overwrite=False) as begun:
        if left != "job.yaml alone":
            begun.status("running", "step 1", last_step=1, resumable=True)
    if left == "a damaged status":
        Path("a/status.json").write_text("")
    Path("b").mkdir()
    Path("b/lock").write_text("pid 1 on host since 2026-01-01\n")  # killed before it had kept its job
    assert run(jobs, capsys)[0] == 0
    assert Path("log").read_text() == "a.yaml --resume\nb.yaml\n"
    assert run(jobs, capsys, "--overwrite")[0] == 0
    assert Path("log").read_text().endswith("a.yaml --overwrite\nb.yaml --overwrite\n")


def test_a_run_without_a_readable_report_is_a_row(jobs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    with opened(Path("a"), {"version": 1}, resume=False, overwrite=False) as begun:
        Path("a/report.json").write_text('{"headline": 1')
        begun.status("done", "better", last_step=1, resumable=False)
    assert batch.run(jobs[:1]) == 0
    assert "done" in capsys.readouterr().out
