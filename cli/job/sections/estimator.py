"""`estimator`: how samples become a gradient."""

from __future__ import annotations

from typing import Any

from genbo.cli.job import forms
from genbo.cli.job.kind import Kind
from genbo.cli.job.reader import Reader
from genbo.cli.job.section import Entry, Level, Section


class EstimatorSection(Section[Kind]):
    key = "estimator"

    def read(self, reader: Reader) -> Kind | None:
        return reader.kind(reader.at_or("estimator", "auto"), "estimators", "an estimator")

    def described(self) -> Entry:
        return forms.room("estimators"), "auto"

    def written(self, value: Kind, level: Level) -> Any:
        return value.document("estimators")


ESTIMATOR = EstimatorSection()
