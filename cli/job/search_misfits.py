"""Why a job cannot search as it says: what a search does without, and what its searcher needs."""

from __future__ import annotations

from collections.abc import Iterator

from genbo.bilevel.trials import Candidate, Space
from genbo.cli.job.resolved import Job
from genbo.cli.job.yaml_nodes import Node
from genbo.diffusion.kinds import declared
from genbo.rewards._traits import RewardTraits

Misfit = tuple[Node, str, str | None]


def searched(job: Job, root: Node) -> Iterator[Misfit]:
    """Every reason, with what to do instead."""
    if job.budget.work is not None and (job.search is None or job.tilts):
        message = "limits a search whose candidates differ in cost; set steps, and delete this"
        yield root.find(["budget", "work"]), message, "budget.work"
    if job.search is None:
        return
    yield from _without_gradient(job, root)
    lower = job.lower.options if job.lower else None
    if job.trains and job.training is not None and job.training.coupled:
        message = "every candidate would need a network of its own; set lower.conditioning: log_snr, or delete this"
        yield root.find(["search"]), message, None
    if job.tilts and lower is not None and not (lower.traits.free and lower.drawing.samples):
        message = "measures lambda by reweighting samples; take lower: {kind: reweight}, or delete this"
        yield root.find(["search"]), message, None
    if job.tilts and job.keep:
        yield root.find(["keep"]), "a search over lambda keeps no level; delete this, or delete search", None
    if reason := job.search.options.why_not(space_of(job), job.budget.steps):
        yield root.find(["search"]), reason, None
    elif reason := _twice(job):
        yield root.find(["budget", "steps"]), reason, "budget.steps"
    yield from _pruned(job, root)


def space_of(job: Job) -> Space:
    """What a searcher will search, as far as it is known before anything is loaded."""
    choices = {name: choice.words for name, choice in job.choices.items()}
    return Space(tuple(map(str, range(job.parameters))), choices, Candidate())


def _twice(job: Job) -> str | None:
    """Where choices alone are searched, there are only so many candidates."""
    assert job.search is not None
    count = job.tuning.combinations
    if job.parameters or not job.search.common or job.budget.steps <= count:
        return None
    message = f"the choices have {count} combinations, so {job.budget.steps} candidates measure some twice"
    return f"{message} on the same samples; set it to {count}"


def _pruned(job: Job, root: Node) -> Iterator[Misfit]:
    """Why candidates cannot be stopped early."""
    assert job.search is not None
    pruner = job.search.pruner
    if pruner is None:
        return
    node = root.find(["search", "pruner"])
    sets = [r.kind for r in (*job.reward, *job.keep) if declared(RewardTraits, r.options).of_sets]
    if job.tilts:
        yield node, "candidates of a search over lambda share one bank, so none is stopped early; delete this", None
    elif sets:
        message = f"{sets[0]} scores all samples together, and few of them are another set; delete this"
        yield node, f"{message}, or take another reward", None
    elif reason := pruner.options.why_not(job.budget.samples):
        yield node, reason, None


def _without_gradient(job: Job, root: Node) -> Iterator[Misfit]:
    """Keys that mean nothing beside a search."""
    written = root.value
    assert isinstance(written, dict)
    if job.estimator.kind != "auto" and not job.tilts:
        message = f"a search needs no gradient; delete estimator: {job.estimator.kind}, or delete search"
        yield root.find(["estimator"]), message, None
    if "optimizer" in written and not job.tilts:
        yield root.find(["optimizer"]), "a search follows no gradient, so no optimizer is used; delete this", None
    if job.budget.pool is not None:
        message = "all candidates of a search share budget.samples samples; delete this"
        yield root.find(["budget", "pool"]), message, None
    if job.budget.precision is not None:
        message = "a search over lambda ends after budget.steps candidates; delete this, or delete search"
        yield root.find(["budget", "precision"]), message, None
