"""`search`: candidates are measured one after the other, by a searcher, in place of steps along a gradient."""

from __future__ import annotations

from typing import Any

from genbo.bilevel.candidate_value import CandidateValue
from genbo.bilevel.trials import Searcher
from genbo.cli.job import forms
from genbo.cli.job.kind import Kind
from genbo.cli.job.reader import Reader, without
from genbo.cli.job.section import Entry, Level, Section
from genbo.cli.job.validation import shown


class SearchJob(Kind[Searcher]):
    """A searcher; `common` draws all candidates from the same prompts and seeds."""

    common: bool = True

    @property
    def value(self) -> CandidateValue:
        """What a candidate is measured by."""
        return CandidateValue(self.common)


class SearchSection(Section[SearchJob]):
    key = "search"
    optional = True

    def read(self, reader: Reader) -> SearchJob | None:
        """`gp`, or `{kind: gp, common: true, <options>}`."""
        node = reader.at("search")
        if node is None or node.value is None:
            return None
        bare, common = without(node, "common")
        kind = reader.kind(bare, "searchers", "a searcher", also=("common",))
        if common is not None and not isinstance(common.value, bool):
            reader.note(common, f"must be true or false, not {shown(common)}; true shares the noise")
            return None
        if kind is None:
            return None
        return SearchJob.model_construct(**kind.__dict__, common=common is None or common.value)

    def described(self) -> Entry:
        return forms.room("searchers", common=(bool, True)) | None, None

    def written(self, value: SearchJob | None, level: Level) -> Any:
        return None if value is None else {**value.document("searchers"), "common": value.common}


SEARCH = SearchSection()
