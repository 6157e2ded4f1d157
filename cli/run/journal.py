"""The journal `steps.jsonl`: one JSON object a line, a line a step."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genbo.cli.run.atomic import sized, write_atomic
from genbo.cli.run.faults import fault
from genbo.cli.run.json_files import to_json

if TYPE_CHECKING:
    pass

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


class Journal:
    """One JSON object a line, appended and synced. Opening it cuts a torn last line off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = intact_lines(path.read_bytes()) if path.is_file() and not path.is_symlink() else []
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o666)
        length = sum(map(len, self.lines))
        if os.fstat(self._descriptor).st_size != length:
            os.ftruncate(self._descriptor, length)
            os.fsync(self._descriptor)

    def append(self, record: Mapping[str, Any]) -> None:
        line = to_json(record, indent=None)
        fault("journal.before")
        half = len(line) // 2
        with sized(self.path, len(line)):
            self._write(line[:half])
            fault("journal.torn")
            self._write(line[half:])
            os.fsync(self._descriptor)
        self.lines.append(line)
        fault("journal.after")

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]

    def restore(self, data: bytes) -> None:
        """Puts the journal back to what a checkpoint saw."""
        if data == b"".join(self.lines):
            return
        os.close(self._descriptor)
        write_atomic(self.path, data)
        self.__init__(self.path)  # type: ignore[misc]

    @property
    def data(self) -> bytes:
        return b"".join(self.lines)

    @property
    def records(self) -> list[Document]:
        return [json.loads(line) for line in self.lines]

    def close(self) -> None:
        os.close(self._descriptor)
