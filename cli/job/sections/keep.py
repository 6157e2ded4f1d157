"""`keep`: what must not fall below a level while the reward rises."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field

from genbo.cli.job import forms
from genbo.cli.job.kind import Kind
from genbo.cli.job.reader import Part, Reader, named, without
from genbo.cli.job.section import Entry, Level, Section
from genbo.cli.job.validation import shown
from genbo.cli.job.yaml_nodes import Node, below
from genbo.rewards._traits import RewardOptions

NUMBER = r"[0-9.]+(?:[eE][-+]?[0-9]+)?"
LEVEL = re.compile(rf"start(?:\s*([-+])\s*({NUMBER}))?")
PATTERN = r"^\s*start(\s*[-+]\s*[0-9.]+([eE][-+]?[0-9]+)?)?\s*$"  # the same for the schema, which has no groups


class KeepJob(Kind[RewardOptions]):
    """What must stay at or above a level: `at_least`, or the start's own level plus `at_least`."""

    name: str
    at_least: float
    relative_to_start: bool

    def level(self) -> float | str:
        """`at_least` as a job writes it: a number, `start`, or `start - 0.1`."""
        if not self.relative_to_start:
            return self.at_least
        if not self.at_least:
            return "start"
        return f"start {'-' if self.at_least < 0 else '+'} {abs(self.at_least)!r}"


class KeepSection(Section[tuple[KeepJob, ...]]):
    key = "keep"

    def read(self, reader: Reader) -> tuple[KeepJob, ...] | None:
        node = reader.at("keep")
        written = node is not None and node.value is not None
        found = reader.many(node, lambda one: _keep(reader, one)) if node is not None and written else []
        if found is None:
            return None
        constraints = tuple(KeepJob.model_construct(**keep) for keep in named(found))
        reader.names += [constraint.name for constraint in constraints]
        return constraints

    def described(self) -> Entry:
        keep = forms.room("rewards", at_least=(float | Annotated[str, Field(pattern=PATTERN)], ...))
        return forms.one_or_many(keep) | None, None

    def written(self, value: tuple[KeepJob, ...], level: Level) -> Any:
        return None if level.tilts and not value else [{**k.document("rewards"), "at_least": k.level()} for k in value]


def level_of(value: object) -> tuple[float, bool] | None:
    """`0.3`, `start`, `start - 0.1` -> (number, whether it is relative to the start)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value), False
    match = LEVEL.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return None
    try:
        offset = float(match[2] or 0)
    except ValueError:
        return None
    return (-offset if match[1] == "-" else offset, True) if offset < float("inf") else None


def _keep(reader: Reader, node: Node) -> Part | None:
    bare, level = without(node, "at_least")
    kind = reader.kind(bare, "rewards", "a constraint", also=("at_least",))
    if level is None:
        if isinstance(node.value, (dict, str)):
            message = "missing; write at_least: start, start - 0.1 or a number"
            reader.note(node, message, where=below(node.where, "at_least"))
        return None
    parsed = level_of(level.value)
    if parsed is None:
        reader.note(level, f"must be a number, start, or start - 0.1, not {shown(level)}")
        return None
    return {**kind.__dict__, "at_least": parsed[0], "relative_to_start": parsed[1]} if kind else None


KEEP = KeepSection()
