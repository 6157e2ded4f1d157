"""`estimator`: how samples become a gradient."""

from __future__ import annotations

from typing import Any

from genbo.cli.job import catalog, forms
from genbo.cli.job.kind import Kind
from genbo.cli.job.reader import Reader
from genbo.cli.job.section import Entry, Level, Section
from genbo.cli.job.sections.search import SEARCH


class EstimatorSection(Section[Kind]):
    key = "estimator"

    def read(self, reader: Reader) -> Kind | None:
        """`auto` beside a search is the value itself, which is all that a search needs."""
        found = reader.kind(reader.at_or("estimator", "auto"), "estimators", "an estimator")
        if found is None or found.kind != "auto" or SEARCH.of(reader) is None:
            return found
        return Kind.model_construct(kind="value", options=catalog.options_of("estimators", "value")())

    def described(self) -> Entry:
        return forms.room("estimators"), "auto"

    def written(self, value: Kind, level: Level) -> Any:
        return value.document("estimators")


ESTIMATOR = EstimatorSection()
