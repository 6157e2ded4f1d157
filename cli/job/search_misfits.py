"""Why a job cannot search as it says: what a search does without, and what its searcher needs."""

from __future__ import annotations

from collections.abc import Iterator

from genbo.bilevel.trials import Candidate, Space
from genbo.cli.job.resolved import Job
from genbo.cli.job.yaml_nodes import Node

Misfit = tuple[Node, str, str | None]


def searched(job: Job, root: Node) -> Iterator[Misfit]:
    """Every reason, with what to do instead."""
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
    space = Space(tuple(map(str, range(job.parameters))), first=Candidate())
    if reason := job.search.options.why_not(space, job.budget.steps):
        yield root.find(["search"]), reason, None


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
