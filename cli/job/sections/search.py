"""`search`: candidates are measured one after the other, by a searcher, in place of steps along a gradient."""

from __future__ import annotations

from typing import Any

from genbo.cli.job import forms
from genbo.cli.job.kind import Kind
from genbo.cli.job.reader import Reader
from genbo.cli.job.section import Entry, Level, Section


class SearchSection(Section[Kind]):
    key = "search"
    optional = True

    def read(self, reader: Reader) -> Kind | None:
        node = reader.at("search")
        if node is None or node.value is None:
            return None
        return reader.kind(node, "searchers", "a searcher")

    def described(self) -> Entry:
        return forms.room("searchers") | None, None

    def written(self, value: Kind | None, level: Level) -> Any:
        return None if value is None else value.document("searchers")


SEARCH = SearchSection()
