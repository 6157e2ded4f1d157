"""SIGTERM and SIGINT, which ask a run to end at its next safe point."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any


class Signals:
    """SIGTERM and SIGINT ask for an end after the step; a second one ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may: elsewhere the caller has its own way to stop
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number

    @property
    def exit_code(self) -> int:
        return 130 if self.received == signal.SIGINT else 75
