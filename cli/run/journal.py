"""The journal `steps.jsonl`: one JSON object a line, a line a step."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genbo.cli.run.atomic import sized, write_atomic
from genbo.cli.run.faults import fault
from genbo.cli.run.json_files import to_json

Document = dict[str, Any]


def intact_lines(data: bytes) -> list[bytes]:
    """The lines that were written whole, each a JSON object, up to the first that was not."""
    lines = []
    for line in data.splitlines(keepends=True):
        try:
            whole = line.endswith(b"\n") and isinstance(json.loads(line), dict)
        except (ValueError, RecursionError):
            whole = False
        if not whole:
            break
        lines.append(line)
    return lines


def read_journal(path: Path) -> list[Document]:
    """Every whole record; an empty list where there is no journal yet."""
    data = path.read_bytes() if path.is_file() else b""
    return [json.loads(line) for line in intact_lines(data)]


@dataclass(frozen=True)
class Mark:
    """How far a journal had come: its lines, and the hash of them all."""

    lines: int = 0
    length: int = 0  # bytes
    sha256: str = hashlib.sha256().hexdigest()

    @classmethod
    def of(cls, lines: Sequence[bytes]) -> Mark:
        data = b"".join(lines)
        return cls(len(lines), len(data), hashlib.sha256(data).hexdigest())


class Journal:
    """One JSON object a line, appended and synced. Opening it cuts a torn last line off.

    What a step does here does not grow with the steps before it: the hash goes on from where it was, and only `records`
    reads every line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = intact_lines(path.read_bytes()) if path.is_file() and not path.is_symlink() else []
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o666)
        self._cut()

    def _cut(self) -> None:
        """Cuts the file to the lines that are kept, and counts and hashes these."""
        data = b"".join(self.lines)
        self._bytes, self._hash = len(data), hashlib.sha256(data)
        if os.fstat(self._descriptor).st_size != len(data):
            os.ftruncate(self._descriptor, len(data))
            os.fsync(self._descriptor)

    def append(self, record: Mapping[str, object]) -> None:
        line = to_json(record, indent=None)
        fault("journal.before")
        half = len(line) // 2
        with sized(self.path, len(line)):
            self._write(line[:half])
            fault("journal.torn")
            self._write(line[half:])
            os.fsync(self._descriptor)
        self.lines.append(line)
        self._bytes += len(line)
        self._hash.update(line)
        fault("journal.after")

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]

    @property
    def mark(self) -> Mark:
        return Mark(len(self.lines), self._bytes, self._hash.hexdigest())

    def restore(self, mark: Mark) -> bool:
        """Cuts the journal back to a mark; False, and nothing is changed, where its lines are not those of the mark."""
        if Mark.of(self.lines[: mark.lines]) != mark:
            return False
        del self.lines[mark.lines :]
        self._cut()
        return True

    def replace(self, data: bytes) -> None:
        """Puts other lines in the place of all."""
        os.close(self._descriptor)
        write_atomic(self.path, data)
        self.__init__(self.path)  # type: ignore[misc]

    @property
    def last(self) -> Document:
        """The record that was appended last, as it reads back; IndexError where there is none."""
        return dict(json.loads(self.lines[-1]))

    @property
    def records(self) -> list[Document]:
        return [json.loads(line) for line in self.lines]

    def close(self) -> None:
        os.close(self._descriptor)
