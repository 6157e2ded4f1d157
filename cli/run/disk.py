"""A disk that is full, broken or not writable: told from other errors, and named in a sentence."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genbo.cli.errors import GenboError, StorageFailed

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
BROKEN = {errno.EIO, errno.EROFS, errno.EXDEV, errno.ENODEV, errno.ESTALE}
FORBIDDEN = {errno.EACCES, errno.EPERM}
BLOCKS = 1_000_000  # bytes that a disk's blocks and tables may round away
_NUMBER = re.compile(r"(?:\bos error |\bOs { code: |\[Errno )(\d+)")  # as Rust and Python write it


@contextmanager
def storage(folder: Path | None = None) -> Iterator[None]:
    """A disk that is full or broken ends the run with a sentence; `folder` is where the run writes."""
    try:
        yield
    except GenboError:
        raise
    except Exception as problem:  # libraries wrap what the system told them in errors of their own
        if (ended := _of_storage(problem, folder)) is None:
            raise
        raise ended from problem


def _of_storage(problem: BaseException, folder: Path | None) -> StorageFailed | None:
    """The end that an error of the system stands for, or None where it is of another kind."""
    number = error_number(problem)
    inside = [name for name in _names_in(problem) if folder is None or name.is_relative_to(folder.absolute())]
    where = in_its_place(inside[0]) if inside else folder or "the run folder"
    if number in FULL:
        free = shutil.disk_usage(folder).free if folder is not None and folder.is_dir() else None
        return no_space(where, getattr(problem, "needed", None), free)
    if number in BROKEN or (number in FORBIDDEN and inside and folder is not None):
        said = f"writing {where} failed: {os.strerror(number or 0)}"
        return StorageFailed(f"{said}; mend the storage, then go on with --resume", resumable=True)
    return None


def in_its_place(beside: Path) -> Path:
    """The name that a file or a folder will have which is written beside its place."""
    return Path(*(re.sub(r"^\.tmp-(?:old-)?(.+)-[0-9a-f]{8}$", r"\1", part) for part in beside.parts))


def no_space(where: Path | str, needed: int | None, free: int | None) -> StorageFailed:
    """The end of a run whose disk is full; `needed` and `free` are bytes."""
    sizes = []
    if needed is not None:
        sizes.append(f"{megabytes(needed)} needed")
    if free is not None:
        quota = needed is not None and free > needed + BLOCKS
        sizes.append(f"{megabytes(free)} free" + (", so a quota or the disk's own table is full" if quota else ""))
    listed = f" ({', '.join(sizes)})" if sizes else ""
    return StorageFailed(
        f"no space left while writing {where}{listed}; make room, then go on with --resume", resumable=True
    )


def megabytes(size: int) -> str:
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= least:
            return f"{size / least:.1f} {unit}"
    return f"{size} bytes"


def error_number(problem: BaseException) -> int | None:
    """The system's number of an error, be it Python's own or in the words of a library that met it."""
    if isinstance(problem, OSError):
        return problem.errno
    said = str(problem)
    if "No space left on device" in said:
        return errno.ENOSPC
    found = _NUMBER.search(said)
    return int(found[1]) if found else None


def _names_in(problem: BaseException) -> list[Path]:
    """The files of an error, what was written before what was read."""
    names = (getattr(problem, "filename2", None), getattr(problem, "filename", None))
    return [Path(os.fsdecode(name)).absolute() for name in names if isinstance(name, (str, bytes))]
