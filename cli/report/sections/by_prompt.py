"""Which held-out prompts gained and which lost, in one chart that is sorted by the difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from genbo.cli.report import chart
from genbo.cli.report.records_report import RunReport

FEWEST = 3  # prompts that are worth a chart
WIDE_PX, NARROW_PX = 900, 440  # on a phone the wide one would be too small to read


@dataclass(frozen=True)
class ByPrompt:
    """Shown where there are at least `FEWEST` held-out prompts."""

    order: ClassVar[int] = 20

    def view(self, report: RunReport) -> Mapping[str, object] | None:
        """The chart twice, for a wide page and for a phone."""
        if report.held_out is None or len(report.held_out.by_prompt) < FEWEST:
            return None
        rows = [(row.prompt, row.difference) for row in report.held_out.by_prompt]
        named = "mean difference of every held-out prompt"
        wide, narrow = (chart.prompts(rows, name=named, width=width) for width in (WIDE_PX, NARROW_PX))
        return {"wide": wide, "narrow": narrow}
