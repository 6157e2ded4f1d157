"""`objective`: over the prompts, the mean reward of all of them, or of the worst."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Gt, Le
from pydantic import BaseModel

from genbo.bilevel.objective import MEAN, Objective
from genbo.cli.job import catalog
from genbo.cli.job.reader import Reader
from genbo.cli.job.section import Entry, Level, Section
from genbo.cli.job.validation import shown

NAMED = {"mean": MEAN, "worst": Objective(share=0.0)}
WRITE = "write mean, worst, or {cvar: 0.2} for the worst 20 % of the prompts"


class Cvar(BaseModel):
    """`cvar` is the share of the prompts with the lowest rewards, whose mean is maximised."""

    model_config = catalog.STRICT

    cvar: Annotated[float, Gt(0), Le(1)]


class ObjectiveSection(Section[Objective]):
    key = "objective"

    def read(self, reader: Reader) -> Objective | None:
        node = reader.at_or("objective", "mean")
        if isinstance(node.value, str) and node.value in NAMED:
            return NAMED[node.value]
        if not isinstance(node.value, dict) or not node.value:
            reader.note(node, f"unknown objective {shown(node)}; {WRITE}")
            return None
        found = reader.validated(Cvar, node)
        return None if found is None else Objective(share=found.cvar)

    def described(self) -> Entry:
        return Literal["mean", "worst"] | Cvar, "mean"

    def written(self, value: Objective, level: Level) -> Any:
        """None for the mean: jobs that were written before there was a choice keep their document and their digest."""
        if value.is_mean:
            return None
        return {"cvar": value.share} if value.share else "worst"


OBJECTIVE = ObjectiveSection()
