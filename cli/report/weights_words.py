"""Sentences about fine-tuned weights: the headline of their job, and why the KL of paths is not that of a law."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genbo.cli.report import number_format
from genbo.cli.report.words import change, opinions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from genbo.cli.report.records import ComparedRow
    from genbo.cli.report.records_report import RunReport
    from genbo.cli.report.records_weights import ReachedRecord, WeightsRow

WHY_KL = (
    "The KL of the paths counts every change of a prediction on the way, also what was learned by chance from few "
    "samples. It is an upper bound on the KL of what is drawn; the two are equal where the weights draw the law exactly"
)
AS_THE_LAW = 1.5  # times the law's KL: up to here nothing needs to be explained


def at_lambda(report: RunReport) -> WeightsRow | None:
    """The row of the weights tuned at the lambda that was found; None where none were tuned."""
    rows = (report.search and report.search.weights) or []
    return next((row for row in rows if row.factor == 1 and (row.on_held_out or row.on_tuned)), None)


def gain_of(report: RunReport) -> ComparedRow | None:
    """What the weights at lambda gained in the lower reward, on held-out prompts where there are any."""
    row = at_lambda(report)
    return None if row is None else _seen(row).r2


def _seen(row: WeightsRow) -> ReachedRecord:
    reached = row.on_held_out or row.on_tuned
    assert reached is not None
    return reached


def headline(report: RunReport) -> str | None:
    """What the weights gained on held-out samples, and the share of the law's gain on the tuning prompts."""
    row, search = at_lambda(report), report.search
    if row is None or search is None:
        return None
    seen = _seen(row)
    gains = f"{search.lower} {change(seen.r2)} and {search.upper} {change(seen.r1)}"
    on = f"{number_format.count(seen.r2.samples)} held-out samples"
    verdict = opinions(seen.r2.verdict, search.lower, seen.judges)
    text = f"The weights tuned there: {gains} on {on}: {verdict}."
    return f"{text} {part}" if (part := share(row, search.lower)) else text


def share(row: WeightsRow, lower: str) -> str:
    """`On the tuning prompts they reach 81 % [74 %, 88 %] of the law's gain in aesthetic.`, or nothing."""
    found = row.on_tuned
    if found is None or found.share is None:
        return ""
    return (
        f"On the tuning prompts they reach {percent(found.share, found.share_interval)} of the law's gain in {lower}."
    )


def percent(value: float | None, interval: Sequence[float | None] | None = None) -> str:
    """`81 % [74 %, 88 %]`, with spaces that do not break; a dash for None."""
    if value is None:
        return "—"
    ends = [_percent(end) for end in interval or () if end is not None]
    return f"{_percent(value)} [{', '.join(ends)}]" if len(ends) == 2 else _percent(value)


def _percent(value: float) -> str:
    return f"{100 * value:.0f}\u00a0%".replace("-", number_format.MINUS)


def about_lambda(report: RunReport) -> str:
    """What the verdict is, where the headline is about weights."""
    held_out, search = report.held_out, report.search
    if held_out is None or search is None or at_lambda(report) is None:
        return ""
    gain = f"{search.upper} {change(held_out)}, {held_out.verdict or 'no verdict'}"
    return f"The verdict compares lambda with its start, by weighted samples: {gain}."


def lead(report: RunReport) -> str | None:
    """What the headline means, for someone who reads one line more."""
    row, search = at_lambda(report), report.search
    if row is None or search is None:
        return None
    seen = _seen(row)
    prompts = number_format.plural(seen.r2.prompts, "prompt")
    fresh = f"{prompts} that the weights were not tuned for" if row.on_held_out else f"fresh seeds of {prompts}"
    return (
        f"λ is the weight of the KL term when a model is tuned for {search.lower}. The tuned weights and the "
        f"pretrained model drew from the same noise: {number_format.count(seen.r2.samples)} pairs, {fresh}. "
        "The brackets are 95 % intervals."
    )


def about_kl(row: WeightsRow) -> str:
    """The KL of the paths beside the law's, and why they differ where they do."""
    if row.kl is None or row.promised is None or not row.promised.kl:
        return ""
    paths, law = number_format.with_error(row.kl, row.kl_se), number_format.number(row.promised.kl)
    times = row.kl / row.promised.kl
    ratio = f", {times:,.0f} times as much" if times >= 10 else f", {times:.1f} times as much"
    text = f"At λ the paths' KL is {paths} nats and the law's is {law}{ratio}."
    return f"{text} {WHY_KL}." if times > AS_THE_LAW else text
