"""How far to trust the path of a climb: its gradients, its two parts of them, its answer, its bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from genbo.cli.report import number_format, root_words
from genbo.cli.report.records import Remark, StepRecord
from genbo.cli.report.trust import remark
from genbo.cli.report.words import BOUNDS, noise_ratio, title

if TYPE_CHECKING:
    from genbo.bilevel.training.penalty import Hypergradient
    from genbo.cli.report.records_report import RunReport

CLEAR = 2.0  # standard errors from zero: a gradient this far is clear of the noise
NEAR = 0.01  # of the range: nearer than this is "at the bound"
ENOUGH = 6  # gradients, from which number on the last third is looked at


def about_path(report: RunReport) -> list[Remark]:
    if any(step.objective is not None for step in report.steps):
        return [*_about_candidates(report), *_about_bounds(report)]
    return [
        *_about_steps(report),
        *_about_race(report),
        *about_parts(report),
        *root_words.remarks(report),
        *_about_bounds(report),
    ]


# -- candidates of a search ------------------------------------------------------------------------------------


def _about_candidates(report: RunReport) -> list[Remark]:
    """How many were measured, when the best was, and what a best of many noisy values is not."""
    tried = [step for step in report.steps if step.objective is not None and step.status == "ok"]
    found = []
    if tried:
        at = max(range(len(tried)), key=lambda k: (tried[k].samples or 0, tried[k].objective or 0.0))
        best = number_format.with_error(tried[at].value, tried[at].value_se)
        text = f"{number_format.plural(len(tried), 'candidate')} measured; the best was number {at + 1}, with {best}."
        found.append(remark("note", f"{text} A best of many noisy values is too good: rely on the verdict."))
        if len(tried) >= ENOUGH and at >= len(tried) * 2 // 3:
            found.append(remark("note", "The best candidate came late: more budget.steps may find a better one."))
    if failed := len(report.steps) - len(tried):
        text = f"{number_format.plural(failed, 'candidate')} of {len(report.steps)} gave numbers that are not finite."
        found.append(remark("warning", text))
    return found


# -- gradients -------------------------------------------------------------------------------------------------


def _about_steps(report: RunReport) -> list[Remark]:
    ratios = _ratios(report.steps)
    return [*_first_gradients(ratios), *_without_gradient(report.steps), *_last_gradients(ratios, report)]


def _ratios(steps: Sequence[StepRecord]) -> list[float]:
    """Of each usable step, how many standard errors its gradient is from zero."""
    found = (noise_ratio(step.grad, step.grad_se) for step in steps if step.status == "ok")
    return [ratio for ratio in found if ratio is not None]


def _first_gradients(ratios: Sequence[float]) -> list[Remark]:
    """The middle one of the first third."""
    if not ratios:
        return []
    third = max(1, len(ratios) // 3)
    first = sorted(ratios[:third])[third // 2]
    figure = f"{number_format.number(first, 1)} standard errors from zero"
    if first >= CLEAR:
        return [remark("good", f"The first gradients were {figure}: the direction was clear.")]
    return [remark("warning", f"The first gradients were only {figure}. Raise budget.samples for a clearer direction.")]


def _without_gradient(steps: Sequence[StepRecord]) -> list[Remark]:
    found = []
    if flat := sum(step.status == "flat" for step in steps):
        text = f"{number_format.plural(flat, 'gradient')} of {len(steps)} were exactly zero: the reward is flat there."
        found.append(remark("warning", text))
    if broken := sum(step.status == "non_finite" for step in steps):
        text = (
            f"{number_format.plural(broken, 'step')} of {len(steps)} had numbers that were not finite; nothing moved."
        )
        found.append(remark("warning", text))
    return found


def _last_gradients(ratios: Sequence[float], report: RunReport) -> list[Remark]:
    """The middle one of the last third, where no sentence about the answer says more, and zero is to be reached."""
    kinds = {kind for value in report.phi.values() for kind in value.kinds}
    may_tie = report.held_out is not None and report.held_out.objective is not None
    if len(ratios) < ENOUGH or kinds & {"unsettled", *BOUNDS} or may_tie:
        return []
    third = len(ratios) // 3
    last = sorted(ratios[-third:])[third // 2]
    figure = f"{number_format.number(last, 1)} standard errors"
    if last < CLEAR + 1:
        return [remark("good", f"The last gradients are within {figure} of zero: the path has settled.")]
    return [remark("note", f"The last gradients are still {figure} from zero: more budget.steps may gain more.")]


def _about_race(report: RunReport) -> list[Remark]:
    """Candidates that were compared at the end; a race that was not needed is no news."""
    if report.race is None or not report.race.raced:
        return []
    return [remark("note", f"{report.race.text[0].upper()}{report.race.text[1:]}.")]


# -- a network in training -------------------------------------------------------------------------------------


def about_parts(report: RunReport) -> list[Remark]:
    """Of a network in training: whether the sampler's part of the gradient and the network's have the same sign."""
    if "noise_schedule" not in report.phi:
        return []
    steps = [step for step in report.steps if step.indirect]
    if not steps:
        text = "One network is trained for all schedules, so retraining adds nothing to the gradient."
        return [remark("good", text)]
    pairs = [
        (d, i)
        for step in steps
        for d, i in zip(step.direct or (), step.indirect or (), strict=True)
        if d is not None and i is not None
    ]
    return [_about_signs(pairs), *_about_gamma(steps)]


def _about_signs(pairs: Sequence[tuple[float, float]]) -> Remark:
    """Of the direct and the indirect part of each derivative."""
    both = _hypergradient(pairs)
    opposed, turned = int(both.opposed.sum()), int(both.overturned.sum())
    if not opposed:
        return remark("good", "The direct and the indirect part of the gradient had the same sign at every step.")
    text = f"In {opposed} of {len(pairs)} derivatives retraining the network counteracts the sampler's part"
    more = f", and in {turned} the sampler's part alone has the wrong sign" if turned else ""
    return remark("warning", f"{text}{more}. Do not rely on the direct part alone here.")


def _hypergradient(pairs: Sequence[tuple[float, float]]) -> Hypergradient:
    import torch

    from genbo.bilevel.training.penalty import Hypergradient

    return Hypergradient(*torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2).T)


def _about_gamma(steps: Sequence[StepRecord]) -> list[Remark]:
    """Whether the lower level was solved: gradients at gamma and 2 gamma agree where it was."""
    from genbo.bilevel.training.penalty import TRUSTED

    apart = [step.apart for step in steps if step.apart is not None]
    loose = sum(x > TRUSTED for x in apart)
    if loose:
        text = f"At {loose} of {len(apart)} steps the gradients at gamma and 2 gamma differ by more than {TRUSTED:.0%}"
        return [remark("warning", f"{text}: the lower level was not solved there, so raise z_steps or gamma.")]
    if not apart:
        return []
    return [remark("good", f"The gradients at gamma and 2 gamma agreed to {TRUSTED:.0%} at every step.")]


# -- bounds ----------------------------------------------------------------------------------------------------


def _about_bounds(report: RunReport) -> list[Remark]:
    """Numbers that are at a bound without being pushed against it."""
    found = []
    for name, value in report.phi.items():
        numbers = value.tuned if isinstance(value.tuned, list) else [value.tuned]
        if value.bounds is None or set(value.kinds) & set(BOUNDS):
            continue
        span = value.bounds[1] - value.bounds[0]
        for bound, edge in zip(("lower", "upper"), value.bounds, strict=True):
            at = sum(abs(x - edge) < NEAR * span for x in numbers)
            if at:
                part = "" if len(numbers) == 1 else f" at {at} of {len(numbers)} values"
                text = f"{title(name)} ends at its {bound} bound {edge:g}{part}: wider bounds may give a better value."
                found.append(remark("warning", text))
    return found
