"""A comparison of two sides as a row of `report.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from genbo.cli.report.records import ComparedRow, PromptGain, RuinedPrompt, WorstPrompt

if TYPE_CHECKING:
    from genbo.bilevel.verdict import Comparison


def row_of(compared: Comparison) -> ComparedRow:
    """Every key of the row but `reason`, which only a judge without a verdict has."""
    shape = compared.shape
    worst, difference = shape.worst
    return ComparedRow(
        verdict=compared.verdict,
        start=compared.start,
        tuned=compared.tuned,
        difference=compared.difference,
        interval=compared.interval,
        samples=compared.samples,
        prompts=compared.prompts,
        counted=compared.groups,
        gained=shape.gained,
        lost=shape.lost,
        unchanged=shape.unchanged,
        median=shape.median,
        worst=WorstPrompt(prompt=worst, difference=difference),
        ruined=[RuinedPrompt(**vars(prompt)) for prompt in shape.ruined],
    )


def unjudged(reason: str = "its score of a held-out image is not a finite number") -> ComparedRow:
    """The row of a judge without a verdict."""
    return ComparedRow(verdict=None, reason=reason, start=None, tuned=None, difference=None, interval=(None, None))


def by_prompt(prompts: Sequence[str], gains: Sequence[float]) -> list[PromptGain]:
    """The mean gain of each prompt's samples, from the greatest loss to the greatest gain."""
    groups: dict[str, list[float]] = {}
    for prompt, gain in zip(prompts, gains, strict=True):
        groups.setdefault(prompt, []).append(gain)
    means = [PromptGain(prompt=p, difference=sum(g) / len(g), samples=len(g)) for p, g in groups.items()]
    return sorted(means, key=lambda row: row.difference)
