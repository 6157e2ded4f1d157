"""`output`: the run folder, relative to the current folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen

from genbo.cli.job.reader import Reader
from genbo.cli.job.section import Entry, Level, Section
from genbo.cli.job.validation import shown


class OutputSection(Section[str]):
    key = "output"

    def read(self, reader: Reader) -> str | None:
        node = reader.at("output")
        if node is None:
            tune = reader.at("tune")
            keys = list(tune.value) if tune is not None and isinstance(tune.value, dict) else []
            return f"runs/{keys[0] if keys else 'tune'}"
        path = node.value
        if not isinstance(path, str) or not path.strip():
            reader.note(node, f"must be a folder, not {shown(node) or 'empty'}; write one like runs/guidance")
        elif not set(path).isdisjoint(map(chr, range(32))):
            reader.note(node, "a folder's name cannot hold control characters; write one like runs/guidance")
        elif (file := file_on(Path(path).expanduser())) is not None:
            reader.note(node, f"{file} is a file, and a run needs a folder; choose another name")
        else:
            return os.path.expanduser(path)
        return None

    def described(self) -> Entry:
        return Annotated[str, MinLen(1)], "runs/tune"

    def written(self, value: str, level: Level) -> Any:
        return value


def file_on(path: Path) -> Path | None:
    """The path or the nearest existing folder above it, where that is no folder."""
    for part in (path, *path.parents):
        try:
            if part.exists():
                return None if part.is_dir() else part
        except OSError:
            return None
    return None


OUTPUT = OutputSection()
