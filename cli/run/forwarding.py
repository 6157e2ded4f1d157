"""A command in a process of its own, to which the signals of this one are passed on."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

PR_SET_PDEATHSIG = 1  # of prctl(2)


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
