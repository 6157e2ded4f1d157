"""How far to trust a verdict: sentences about held-out samples and judges, whatever the method was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from genbo.cli.job import catalog
from genbo.cli.job.captions import NAMED
from genbo.cli.report import number_format
from genbo.cli.report.records import ComparedRow, HeldOutRow, Level, Remark
from genbo.cli.report.words import change, overlap, quoted, shape_in_words
from genbo.diffusion.kinds import declared
from genbo.rewards._traits import RewardTraits

if TYPE_CHECKING:
    from genbo.cli.report.records_report import RunReport

FEW_PROMPTS = 10


def remark(level: Level, text: str) -> Remark:
    return Remark(level=level, text=text)


def nothing_tuned(job: Mapping[str, Any]) -> bool:
    """Whether a resolved job has no steps, so that its start is evaluated and nothing else."""
    return bool(job.get("budget", {}).get("steps") == 0)


# -- held-out samples ------------------------------------------------------------------------------------------


def about_held_out(report: RunReport) -> list[Remark]:
    """What the verdict is based on, and what its interval does not show."""
    held_out = report.held_out
    if held_out is None:
        return []
    found = [_seen(report, held_out)]
    if held_out.left_out:
        found.append(remark("note", f"{overlap(held_out.left_out)}."))
    if (held_out.prompts if held_out.fresh_prompts else _counted(held_out)) < FEW_PROMPTS:
        found.append(remark("note", f"The interval counts {_few(held_out)}."))
    if nothing_tuned(report.job):
        return found
    moved = [value.start != value.tuned for value in report.phi.values()]
    if not any([*moved, *(record.start != record.tuned for record in report.choices.values())]):
        searched = any(step.objective is not None for step in report.steps)
        text = "Nothing moved: start and tuned are the same values. " + (
            "No candidate did better than the start; raise budget.steps or budget.samples."
            if searched
            else "The last step is not taken; raise budget.steps."
        )
        found.append(remark("warning", text))
    elif held_out.verdict == "no measurable difference":
        text = "The interval includes zero: if there is a difference, this many samples do not show it."
        found.append(remark("note", text))
    return [*found, *about_shape(held_out)]


def _seen(report: RunReport, held_out: HeldOutRow) -> Remark:
    """What tuning has not seen of what the verdict is based on."""
    if held_out.fresh_prompts:
        seen = f"{number_format.plural(held_out.prompts, 'prompt')} and seeds that tuning never saw"
        return remark("good", f"The verdict is based on {seen} ({held_out.samples} pairs).")
    if "prompts" in report.job:
        text = "The verdict is based on fresh seeds of the tuning prompts; set evaluate.prompts to test other prompts."
        return remark("note", text)
    kinds = [reward["kind"] for reward in report.job.get("reward", [])]
    of_sets = (declared(RewardTraits, catalog.options_of("rewards", kind)).of_sets for kind in kinds)
    of_data = bool(report.job.get("data")) and any(of_sets)
    seen = ", and distances to data on test images" if of_data else ""
    return remark("good", f"The verdict is based on fresh seeds{seen} that tuning never saw.")


def _counted(held_out: HeldOutRow) -> int:
    """What the interval counts; reports without the number counted prompts."""
    return held_out.prompts if held_out.counted is None else held_out.counted


def _few(held_out: HeldOutRow) -> str:
    few = number_format.plural(held_out.prompts, "prompt")
    if _counted(held_out) != held_out.prompts or held_out.prompts == 1:
        few = f"{number_format.plural(_counted(held_out), 'sample')} of {few}"
    return f"{few} only, so it may not hold for prompts unlike these"


def about_shape(row: ComparedRow, by: str = "") -> list[Remark]:
    """What the mean hides: that few prompts carry it, and that some were ruined."""
    if not row.is_shaped:
        return []
    found = [] if by else [_spread(row)]
    for ruined in row.ruined[:NAMED]:
        which = f"The prompt {quoted(ruined.prompt)} is clearly worse{by}, whatever the mean is"
        figure = number_format.change(ruined.difference, ruined.interval)
        found.append(remark("warning", f"{which}: {figure} ({ruined.samples} samples)."))
    if (more := len(row.ruined) - NAMED) > 0:
        found.append(remark("warning", f"{number_format.plural(more, 'more prompt')} got clearly worse{by}."))
    return found


def _spread(row: ComparedRow) -> Remark:
    few = row.verdict == "better" and (row.lost or 0) >= (row.gained or 0)
    yet = "The mean rose, but no more prompts gained than lost: " if few else ""
    text = f"{yet}{shape_in_words(row)}."
    if row.samples == row.prompts:
        text += " One sample a prompt cannot show which prompts got worse; raise evaluate.samples to see them."
    return remark("warning" if few else "note", text)


# -- judges ----------------------------------------------------------------------------------------------------


def about_judges(report: RunReport) -> list[Remark]:
    """What each judge found on the same images, and what that means for the verdict."""
    verdict = report.verdict
    if verdict is None:
        return []
    return [text for name, row in report.judges.items() for text in _about_judge(name, row, verdict)]


def _about_judge(name: str, row: ComparedRow, verdict: str) -> list[Remark]:
    if row.verdict is None:
        return [remark("warning", f"{name} gives no verdict: {row.reason}.")]
    figure = change(row)
    if row.is_shaped:
        figure += f", {row.gained} prompts gained and {row.lost} lost"
    level, text = _MEANINGS[verdict, row.verdict]
    found = remark(level, f"{name} judges the same images, and tuning never saw it: {figure}. {text}")
    return [found, *about_shape(row, f" by {name}")]


_BETTER, _SAME, _WORSE = "better", "no measurable difference", "worse"
_MEANINGS: dict[tuple[str, str], tuple[Level, str]] = {  # of a judge's verdict beside that of the tuned reward
    (_BETTER, _BETTER): ("good", "It confirms the gain."),
    (_BETTER, _SAME): (
        "warning",
        "It does not confirm the gain, which may be limited to the tuned reward. Look at the images, or raise "
        "evaluate.samples.",
    ),
    (_BETTER, _WORSE): (
        "warning",
        "It contradicts the gain: the reward rose at the cost of what this judge measures. Look at the images.",
    ),
    (_SAME, _SAME): ("note", "It finds no measurable difference either."),
    (_SAME, _BETTER): ("note", "It finds a gain that the tuned reward does not show."),
    (_SAME, _WORSE): ("warning", "It finds a loss that the tuned reward does not show. Look at the images."),
    (_WORSE, _WORSE): ("note", "It confirms the loss."),
    (_WORSE, _BETTER): ("note", "It contradicts the loss."),
    (_WORSE, _SAME): ("note", "It does not confirm the loss."),
}
