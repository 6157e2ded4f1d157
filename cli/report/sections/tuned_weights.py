"""What the law promised and what fine-tuned weights reach of it, on the prompts tuned for and on held-out ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from genbo.cli.report import number_format, weights_words
from genbo.cli.report.records import ComparedRow
from genbo.cli.report.records_report import RunReport
from genbo.cli.report.records_weights import PromisedRecord, ReachedRecord, WeightsRow
from genbo.cli.report.words import change


@dataclass(frozen=True)
class Line:
    """A row of the table, in words; a dash where nothing is known."""

    name: str
    r2: str
    share: str
    r1: str
    rate: str
    kl: str
    judges: tuple[str, ...]


@dataclass(frozen=True)
class TunedWeights:
    """Shown where weights were tuned at lambda."""

    order: ClassVar[int] = 17

    def view(self, report: RunReport) -> Mapping[str, object] | None:
        """The table a strength, why KLs differ, and the names of the judges that looked at all of them."""
        at, search = weights_words.at_lambda(report), report.search
        if at is None or search is None:
            return None
        rows = [row for row in search.weights or [] if row.factor is not None]
        seen = [reached for row in rows for reached in (row.on_tuned, row.on_held_out) if reached is not None]
        judges = list(dict.fromkeys(name for reached in seen for name in reached.judges))
        return {
            "groups": [lines_of(row, judges) for row in rows],
            "judges": judges,
            "about_kl": weights_words.about_kl(at),
            "both": at.on_held_out is not None,
        }


def lines_of(row: WeightsRow, judges: list[str]) -> list[Line]:
    """The law's line, and one for each kind of prompts."""
    at = "λ" if row.factor == 1 else f"{row.factor:g} λ"
    kl = number_format.with_error(row.kl, row.kl_se)
    lines = [_law(row.promised, at, len(judges))] if row.promised else []
    if row.on_tuned is not None:
        lines.append(_reached(row.on_tuned, f"weights at {at}, tuning prompts", "—" if row.on_held_out else kl, judges))
    if row.on_held_out is not None:
        lines.append(_reached(row.on_held_out, f"weights at {at}, held-out prompts", kl, judges))
    return lines


def _law(law: PromisedRecord, at: str, judges: int) -> Line:
    doubt = (
        ""
        if law.verdict == "reliable"
        else " (doubtful samples)"
        if law.verdict == "doubtful"
        else " (too few samples)"
    )
    r1, r2 = (_gain(value, se) for value, se in ((law.r1, law.r1_se), (law.r2, law.r2_se)))
    return Line(f"the law at {at}{doubt}", r2, "—", r1, "—", number_format.number(law.kl), ("—",) * judges)


def _gain(value: float | None, se: float | None) -> str:
    if value is None or se is None:
        return "—"
    return number_format.change(value, (value - 1.96 * se, value + 1.96 * se))


def _reached(found: ReachedRecord, name: str, kl: str, judges: list[str]) -> Line:
    rate = "—" if found.r1_per_r2 is None else number_format.change(found.r1_per_r2, found.r1_per_r2_interval)
    share = weights_words.percent(found.share, found.share_interval)
    opinions = tuple(_opinion(found.judges.get(judge)) for judge in judges)
    return Line(name, change(found.r2), share, change(found.r1), rate, kl, opinions)


def _opinion(row: ComparedRow | None) -> str:
    return "—" if row is None or row.difference is None else change(row)
