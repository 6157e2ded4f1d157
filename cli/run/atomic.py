"""Files and folders that are on the disk whole or not at all: written beside their place, synced, renamed."""

from __future__ import annotations

import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genbo.cli.run.disk import FULL, error_number, no_space
from genbo.cli.run.faults import fault


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, data: bytes) -> None:
    """A file that is on the disk when this returns."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with sized(path, len(data)), os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def sized(path: Path, needed: int) -> Iterator[None]:
    """An error in writing says what was written, and how many bytes it needed."""
    try:
        yield
    except OSError as problem:
        problem.filename = problem.filename or str(path)
        problem.needed = needed  # type: ignore[attr-defined]
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """The whole file or the one before it, never a part."""
    beside = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        write_new(beside, data)
        fault(f"{path.name}.before_rename")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def folder_in_place(target: Path, needed: int = 0) -> Iterator[Path]:
    """The name of a folder to make beside its place; it moves there whole, in place of one that was there.

    `needed` bytes at least will be written into it: where they are not free, nothing is begun.
    """
    beside = target.with_name(f".tmp-{target.name}-{uuid.uuid4().hex[:8]}")
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise no_space(target.absolute(), needed, free)
    try:
        fault(f"{target.name}.begin")
        yield beside
        for file in sorted(beside.rglob("*"), reverse=True):
            _sync(file)
        sync_folder(beside)
        fault(f"{target.name}.before_rename")
        if target.exists():
            os.replace(target, target.with_name(f".tmp-old-{target.name}-{uuid.uuid4().hex[:8]}"))
        os.replace(beside, target)
        sync_folder(target.parent)
        fault(f"{target.name}.after_rename")
    except Exception as problem:
        if error_number(problem) in FULL:
            raise no_space(target.absolute(), needed or None, free) from problem
        raise
    finally:
        for stale in (beside, *target.parent.glob(f".tmp-old-{target.name}-*")):
            shutil.rmtree(stale, ignore_errors=True)


def _sync(path: Path) -> None:
    if path.is_dir():
        sync_folder(path)
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())


def is_plain_file(path: Path) -> bool:
    """A file that is neither a link nor anything that could block who opens it."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False
