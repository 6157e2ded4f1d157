"""`version`: that of the grammar in which the job is written."""

from __future__ import annotations

from typing import Any, Literal

from genbo.cli.job.reader import Reader
from genbo.cli.job.section import Entry, Level, Section
from genbo.cli.job.validation import shown


class VersionSection(Section[Literal[1]]):
    key = "version"
    missing = "missing; write version: 1"

    def read(self, reader: Reader) -> Literal[1] | None:
        node = reader.at("version")
        if node is not None and (node.value != 1 or isinstance(node.value, bool)):
            reader.note(node, f"this genbo reads version 1, not {shown(node)}; write version: 1, or update genbo")
            return None
        return 1

    def described(self) -> Entry:
        return Literal[1], ...

    def written(self, value: Literal[1], level: Level) -> Any:
        return value


VERSION = VersionSection()
