"""Steering that a guided lower level leaves: its rewards beside the law's, and what an image of it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from genbo.cli.report.records_report import RunReport


@dataclass(frozen=True)
class Steered:
    """Shown where samples were steered at the best lambda."""

    order: ClassVar[int] = 15

    def view(self, report: RunReport) -> Mapping[str, object] | None:
        """The record, the names of both rewards, and the share with its error in per cent."""
        found = report.search.steering if report.search is not None else None
        if report.search is None or found is None:
            return None
        share = None if found.share is None else 100 * found.share
        error = None if found.share_se is None else 100 * found.share_se
        return {"s": found, "upper": report.search.upper, "lower": report.search.lower, "share": share, "error": error}
