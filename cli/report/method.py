"""What a way of tuning gives to the report of its run: a protocol that a climb and a search for lambda follow."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from genbo.cli.report.records import ComparedRow, HeldOutRow, KeptRow, Remark, RewardRow
from genbo.cli.report.records_report import RunReport
from genbo.cli.report.records_search import SearchRecord


class Compared(NamedTuple):
    """Start against tuned: the keys `held_out`, `rewards` and `keep`; nothing where there was no evaluation."""

    held_out: HeldOutRow | None
    rewards: dict[str, RewardRow]
    keep: dict[str, KeptRow]


class Method(Protocol):
    """A method's own record of its run."""

    def compared(self) -> Compared:
        """Start against tuned on held-out samples."""

    def opinions(self) -> dict[str, ComparedRow]:
        """The key `judges`: a row for each judge, by its name."""

    def document(self) -> SearchRecord | None:
        """The key `search`, of a method that has a curve to show."""

    def headline(self, report: RunReport) -> str:
        """The verdict in one plain sentence with its figures; the report is complete but for its sentences."""

    def trust(self, report: RunReport) -> list[Remark]:
        """How far to trust it: what supports it (good), what is against it (warning), what to know (note)."""
