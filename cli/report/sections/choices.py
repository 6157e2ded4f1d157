"""What a search chose: for each value of a choice the best candidate that had it, and how many samples were spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from genbo.cli.report.choices import spoken_name
from genbo.cli.report.records_report import RunReport


@dataclass(frozen=True)
class Choices:
    """Shown where there are choices, or where a pruner stopped candidates."""

    order: ClassVar[int] = 30

    def view(self, report: RunReport) -> Mapping[str, object] | None:
        """The choices by their names in words, and the rungs."""
        if not report.choices and not report.rungs:
            return None
        return {"choices": {spoken_name(name): record for name, record in report.choices.items()}}
