"""What the path says of several numbers together: an ellipse or a valley of two, and of more the weakest direction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from genbo.cli.report import chart
from genbo.cli.report.records_report import RunReport


@dataclass(frozen=True)
class Valley:
    """Shown where a finished run has tuned two numbers or more."""

    order: ClassVar[int] = 10

    def view(self, report: RunReport) -> Mapping[str, object] | None:
        """The chart, or None."""
        answer = report.answer
        if answer is None or len(answer.labels) < 2 or report.status != "done":
            return None
        labels = answer.labels
        if len(labels) == 2:
            walked = [_numbers(step.phi.values())[-2:] for step in report.steps]
            x, y = _numbers(value.tuned for value in report.phi.values())[-2:]
            path = [(a, b) for a, b in walked if a is not None and b is not None]
            assert x is not None and y is not None
            lines = {"valley": answer.valley, "ellipse": answer.ellipse}
            drawn = chart.plane(path, (x, y), **lines, axes=labels, name=f"{labels[0]} and {labels[1]}")
        elif answer.undetermined:
            drawn = chart.loadings(answer.undetermined[0], name="a direction that is not determined")
        else:
            return None
        return {"valley": drawn} if drawn else None


def _numbers(values: Iterable[float | list[float] | None]) -> list[float | None]:
    """One after the other."""
    return [x for value in values for x in (value if isinstance(value, list) else [value])]
