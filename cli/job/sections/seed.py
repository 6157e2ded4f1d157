"""`seed`: the root of all that is random."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, Lt

from genbo.cli.job.reader import Reader
from genbo.cli.job.section import Entry, Level, Section
from genbo.cli.job.validation import shown

LIMIT = 2**63


class SeedSection(Section[int]):
    key = "seed"

    def read(self, reader: Reader) -> int | None:
        node = reader.at_or("seed", 0)
        value = node.value
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LIMIT:
            return value
        reader.note(node, f"must be a whole number from 0 to 2^63 - 1, not {shown(node)}; 0 is usual")
        return None

    def described(self) -> Entry:
        return Annotated[int, Ge(0), Lt(LIMIT)], 0

    def written(self, value: int, level: Level) -> Any:
        return value


SEED = SeedSection()
