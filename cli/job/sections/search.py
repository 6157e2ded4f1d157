"""`search`: candidates are measured one after the other, by a searcher, in place of steps along a gradient."""

from __future__ import annotations

from typing import Any

from genbo.bilevel.candidate_value import CandidateValue
from genbo.bilevel.trials import Pruner, Searcher
from genbo.cli.job import forms
from genbo.cli.job.kind import Kind
from genbo.cli.job.reader import Reader, without
from genbo.cli.job.section import Entry, Level, Section
from genbo.cli.job.validation import shown
from genbo.cli.job.yaml_nodes import Node

OWN = ("common", "pruner")  # keys beside the searcher's options
NO_PRUNER = "none"


class SearchJob(Kind[Searcher]):
    """A searcher; `common` draws all candidates from the same prompts and seeds, `pruner` stops the bad ones early."""

    common: bool = True
    pruner: Kind[Pruner] | None = None

    @property
    def value(self) -> CandidateValue:
        """What a candidate is measured by."""
        return CandidateValue(self.common)

    def rungs(self, samples: int) -> tuple[int, ...]:
        """The numbers of samples at which a candidate is looked at; the last is all of them."""
        return (samples,) if self.pruner is None else self.pruner.options.rungs(samples)


class SearchSection(Section[SearchJob]):
    key = "search"
    optional = True

    def read(self, reader: Reader) -> SearchJob | None:
        """`gp`, or `{kind: gp, common: true, pruner: none, <options>}`."""
        node = reader.at("search")
        if node is None or node.value is None:
            return None
        bare, common = without(node, "common")
        bare, pruner = without(bare, "pruner")
        kind = reader.kind(bare, "searchers", "a searcher", also=OWN)
        if common is not None and not isinstance(common.value, bool):
            reader.note(common, f"must be true or false, not {shown(common)}; true shares the noise")
            return None
        found = _pruner(reader, pruner)
        if kind is None or found is False:
            return None
        return SearchJob.model_construct(
            **kind.__dict__, common=common is None or common.value, pruner=found if found is not True else None
        )

    def described(self) -> Entry:
        pruner = forms.room("pruners") | forms.word(NO_PRUNER) | None
        return forms.room("searchers", common=(bool, True), pruner=(pruner, None)) | None, None

    def written(self, value: SearchJob | None, level: Level) -> Any:
        if value is None:
            return None
        pruner = {} if value.pruner is None else {"pruner": value.pruner.document("pruners")}
        return {**value.document("searchers"), "common": value.common, **pruner}


def _pruner(reader: Reader, node: Node | None) -> Kind[Pruner] | bool:
    """The pruner; True where there is none, False where it has a mistake, which is noted."""
    if node is None or node.value in (None, NO_PRUNER):
        return True
    return reader.kind(node, "pruners", "a pruner") or False


SEARCH = SearchSection()
