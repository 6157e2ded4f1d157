"""The protocol of the files in `sections/`: parts of `report.html` that are found there, and listed nowhere.

A section is two files: `name.py`, whose class `Name` says what there is to show, and `name.html.j2`, which shows it.
They come after the curves and the path and before "How far to trust it".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

from genbo.cli.report.records_report import RunReport


class ReportSection(Protocol):
    """A file in `sections/`: a frozen dataclass without options.

    Attributes:
        order: A section with a smaller number comes first; those of genbo have 10, 20, and so on.
    """

    order: ClassVar[int]

    def view(self, report: RunReport) -> Mapping[str, object] | None:
        """What the template reads beside `d`, the report, `words`, its labels, and `pairs_of` (see `html.sections`).

        None where nothing is to be shown.

        Every string is escaped by the template; charts are `Markup`, from `chart.py`.
        """
