"""`optimizer`: how the gradient is followed."""

from __future__ import annotations

from typing import Any

from genbo.bilevel.protocols import Optimizer
from genbo.cli.job import forms
from genbo.cli.job.kind import Kind
from genbo.cli.job.reader import Reader
from genbo.cli.job.section import Entry, Level, Section
from genbo.cli.job.sections.lower import LOWER


class OptimizerSection(Section[Kind[Optimizer]]):
    key = "optimizer"

    def read(self, reader: Reader) -> Kind[Optimizer] | None:
        lower = LOWER.of(reader)
        usual = "bisection" if lower and lower.options.traits.walks else "adam"
        return reader.kind(reader.at_or("optimizer", usual), "optimizers", "an optimizer")

    def described(self) -> Entry:
        return forms.room("optimizers"), "adam"

    def written(self, value: Kind[Optimizer], level: Level) -> Any:
        return None if level.free else value.document("optimizers")


OPTIMIZER = OptimizerSection()
