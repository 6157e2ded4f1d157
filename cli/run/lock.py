"""The lock of a run folder: one process at a time, released by the kernel whatever happens to the process."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from genbo.cli.errors import ArtifactRefused, UserMistake
from genbo.cli.run.atomic import is_plain_file
from genbo.cli.run.disk import BROKEN, FULL
from genbo.cli.run.layout import LOCK


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the run folder for this process; the kernel lets go of it whatever happens to the process."""
    with _lock_file(path / LOCK) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise in_use(path, file.read()) from None
        except OSError as problem:
            raise UserMistake(f"{path} cannot be locked ({problem.strerror}); set an output on another disk") from None
        _sign(file)
        yield


def in_use(path: Path, signed: str) -> UserMistake:
    return UserMistake(f"{path} is locked by {signed.strip() or 'another process'}")


@contextmanager
def _lock_file(place: Path) -> Iterator[IO[str]]:
    """The file that is locked, open to be read and signed."""
    try:
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as problem:
        if problem.errno in FULL | BROKEN:
            raise
        raise ArtifactRefused(f"{place} cannot be opened as a plain file ({problem.strerror}); move it away") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ArtifactRefused(f"{place} is no plain file; move it away")
    with os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace") as file:
        yield file


def _sign(file: IO[str]) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    file.seek(0)
    file.truncate()
    file.write(f"pid {os.getpid()} on {socket.gethostname()} since {since}\n")
    file.flush()


def holder(path: Path) -> str | None:
    """Who holds the lock of a run folder now, or None."""
    if not is_plain_file(path / LOCK):
        return None
    try:
        with (path / LOCK).open(encoding="utf-8", errors="replace") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "another process"
    except OSError:
        return None
    return None
