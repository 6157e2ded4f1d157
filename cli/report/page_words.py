"""What the page calls things, by the method that tuned: steps or rounds, the start or the pretrained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from genbo.cli.report import number_format, weights_words
from genbo.cli.report.worst_prompts import whose

if TYPE_CHECKING:
    from genbo.cli.report.records import HeldOutRow
    from genbo.cli.report.records_report import RunReport


@dataclass(frozen=True)
class PageWords:
    """Nouns and titles of the page."""

    unit: str  # of the journal
    before: str  # the side that tuned samples are compared with
    pairs_title: str
    pairs: str  # which side of a pair is which
    points_title: str
    points: str  # how points were drawn
    left: str  # title of the points before
    table_title: str
    table_note: str
    has_path: bool  # whether the steps are a path with a chart for each value


ASCENT = PageWords(
    unit="step",
    before="start",
    pairs_title="Start and tuned, from the same noise",
    pairs="Left of each pair: the start values. Right: the tuned values.",
    points_title="Start and tuned, from the same noise",
    points="Both sides use the same prompts and the same noise.",
    left="Start",
    table_title="Every reward, on the held-out images",
    table_note="Higher is better in every row: distances have a minus sign.",
    has_path=True,
)
SEARCH = PageWords(
    unit="round",
    before="pretrained",
    pairs_title="Pretrained and tuned weights, from the same noise",
    pairs="Left of each pair: the pretrained model. Right: the tuned weights.",
    points_title="Pretrained and tuned samples",
    points="Right: resampled with the tuned model's weights.",
    left="Pretrained",
    table_title="Every number, on the held-out samples",
    table_note="",
    has_path=False,
)


def words_for(report: RunReport) -> PageWords:
    return ASCENT if report.search is None else SEARCH


def lead(report: RunReport) -> str:
    """What the headline means, for someone who reads one line more."""
    held_out = report.held_out
    if held_out is None:
        return "There was no held-out evaluation, so nothing can be concluded about the images."
    if report.search is None:
        return _lead_of_ascent(held_out)
    return weights_words.lead(report) or _lead_of_search(held_out, report.search.lower)


def _lead_of_ascent(held_out: HeldOutRow) -> str:
    what = "prompts and seeds" if held_out.fresh_prompts else "seeds"
    pairs = f"{number_format.count(held_out.samples)} pairs"
    if (prompts := [row.prompt for row in held_out.by_prompt]) != [""]:
        pairs += f" from {number_format.plural(len(prompts), 'prompt')}"
    return (
        f"Start and tuned were drawn from the same noise, with {what} that tuning never saw: {pairs}. "
        f"The brackets are the 95 % interval of the {_what(held_out)}."
    )


def _what(held_out: HeldOutRow) -> str:
    if held_out.objective is None:
        return "mean difference"
    return f"difference in the reward{whose(held_out.objective)}, each side by its own worst prompts"


def _lead_of_search(held_out: HeldOutRow, lower: str) -> str:
    what = f"λ is the weight of the KL term when a model is tuned for {lower}."
    if not held_out.samples:
        return f"{what} Both laws have a closed form here."
    fresh = "prompts and seeds" if held_out.fresh_prompts else "seeds"
    prompts = number_format.plural(held_out.prompts, "prompt")
    samples = f"{number_format.count(held_out.samples)} samples of {prompts}"
    return (
        f"{what} Both λ were compared with {fresh} that the search never saw: {samples}, weighted as the tuned model "
        "would draw them. The brackets are the 95 % interval of the difference."
    )
