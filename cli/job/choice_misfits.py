"""Why a job cannot choose what it says: choices that nothing can follow, and values that do not suit the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from genbo.bilevel.protocols import of_rule
from genbo.cli.job import catalog
from genbo.cli.job.choices import PREDICTION, Chosen
from genbo.cli.job.resolved import Job
from genbo.cli.job.yaml_nodes import Node

Misfit = tuple[Node, str, str | None]
Check = Callable[[Job, Node], Iterator[Misfit]]
MOST = 500  # combinations, each of which is checked


def chosen(job: Job, root: Node, checks: Sequence[Check]) -> Iterator[Misfit]:
    """Every reason, with what to do instead; `checks` are those that each variant must pass as the job itself does."""
    if not job.choices:
        return
    if reason := _no_search(job):
        for name in job.choices:
            yield root.find(["tune", name]), reason, None
        return
    if job.tuning.combinations > MOST:
        message = f"the choices have {job.tuning.combinations} combinations, more than {MOST}; shorten the lists"
        yield root.find(["tune"]), message, None
        return
    found = list(_sizes(job, root)) + list(_options(job, root))
    yield from found or _variants(job, root, checks)


def _no_search(job: Job) -> str | None:
    """Why nothing can follow a choice here."""
    if job.tilts:
        return "lambda is searched for alone; choose this in a job of its own, first"
    if job.search is None:
        return "a gradient cannot follow a choice; add search: tpe, or delete this"
    return None


def _sizes(job: Job, root: Node) -> Iterator[Misfit]:
    """Whatever is chosen, phi must have the same numbers."""
    choice = job.choices.get("sampler.steps")
    weight = job.model.guidance.options.weight
    if choice is None:
        return
    at = root.find(["tune", "sampler.steps"])
    if isinstance(weight, list):
        message = "model.guidance.weight has a number for each step, so the steps cannot be chosen; give one number"
        yield at, f"{message}, or delete this", None
    for key, tunable in job.tune.items():
        steps = [int(value) for value in choice.values]
        if len({tunable.size(count) for count in steps}) > 1:
            message = (
                f"tune.{key} has a number for each step, so the steps cannot be chosen; give it one number or knots"
            )
            yield at, f"{message}, or delete this", None
            continue
        for count in steps:
            for sentence in tunable.mistakes(count):
                yield at, f"with {count} steps, tune.{key}: {sentence.partition(': ')[2] or sentence}", None


def _options(job: Job, root: Node) -> Iterator[Misfit]:
    """An option of the guidance rule that is tuned must be one of every rule that may be chosen."""
    choice = job.choices.get("guidance.kind")
    for key, tunable in job.tune.items() if choice is not None else ():
        if tunable.rule_option is None:
            continue
        for kind in map(str, choice.values if choice is not None else ()):
            hint = catalog.hints_of(catalog.options_of("guidance", kind)).get(tunable.rule_option)
            remedy = f"take {kind} out of tune.guidance.kind, or delete this"
            if hint is None:
                message = f"the guidance rule {kind} has no option {tunable.rule_option!r}; {remedy}"
                yield root.find(["tune", key]), message, None
            elif not _inside(of_rule(tunable).bounds, catalog.limits(hint)):
                words = catalog.words(hint).removeprefix("number ")
                message = f"{tunable.rule_option} of the guidance rule {kind} must be {words}; set bounds inside that"
                yield root.find(["tune", key]), message, None


def _inside(bounds: tuple[float, float], limits: tuple[float | None, float | None]) -> bool:
    low, high = limits
    return (low is None or bounds[0] >= low) and (high is None or bounds[1] <= high)


def _variants(job: Job, root: Node, checks: Sequence[Check]) -> Iterator[Misfit]:
    """What is wrong with a combination and not with the job itself, once, at the choices that differ from the start."""
    known = {message for check in checks for _, message, _ in check(job, root)}
    starts = job.tuning.starts()
    for values in job.tuning.every():
        for check in checks:
            for _, message, _ in check(job.variant(values), root):
                if message not in known:
                    known.add(message)
                    differ = [name for name in values if values[name] != starts[name]]
                    yield root.find(["tune", differ[-1]]), f"with {_spoken(values, differ)}: {message}", None


def _spoken(values: Chosen, names: Sequence[str]) -> str:
    return " and ".join(f"{name} {catalog.spoken(values[name])}" for name in names)


def predictions_in(job: Job) -> int:
    """How many networks are trained: one for each prediction that may be chosen."""
    choice = job.choices.get(PREDICTION)
    return 1 if choice is None else len(choice.values)
