"""stdout and stderr as they are found: in another encoding, closed, full, or read by a program that has gone.

A run is worth more than the lines that tell of it: what cannot be written is let go, a character that the encoding
lacks becomes a question mark, and the command ends with its own exit code. A command whose lines are all that it makes
learns from `lost` that they did not arrive.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any

GONE = {errno.EPIPE, errno.EBADF, errno.ECONNRESET}  # nobody reads any more, which is the reader's own wish


class Lenient(io.FileIO):
    """A descriptor that takes all that it is given; `lost` is the first error that kept something from arriving."""

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        while self.lost is None:
            try:
                if (written := super().write(view)) is not None:
                    return written
                select.select([], [self], [])  # it does not block by itself, and is full for now
            except OSError as problem:
                self.lost = problem
        return len(view)


def settle() -> None:
    """Makes stdout and stderr such that writing never fails, and gives closed ones a place that takes everything."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # or the next file that is opened would get its number, and the lines meant for it
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, _lenient(stream, ("stdout", "stderr").index(name) + 1))
            setattr(sys, f"__{name}__", getattr(sys, name))


def _lenient(stream: Any, number: int) -> io.TextIOWrapper:
    if stream is not None:
        with suppress(OSError, ValueError):
            stream.flush()
    known = stream if isinstance(stream, io.TextIOWrapper) else None
    encoding = known.encoding if known else "utf-8"
    lines = number == 2 or (known is not None and known.line_buffering)
    raw = io.BufferedWriter(Lenient(number, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding=encoding, errors="replace", line_buffering=lines, write_through=lines)


def lost() -> OSError | None:
    """Why what was printed on stdout did not arrive, where that was not the reader's own wish."""
    found = None
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
        buffer = stream.buffer if isinstance(stream, io.TextIOWrapper) else None
        raw = buffer.raw if isinstance(buffer, io.BufferedWriter) else None
        if stream is sys.stdout and isinstance(raw, Lenient) and raw.lost and raw.lost.errno not in GONE:
            found = raw.lost
    return found
