"""The search that `estimator: auto` takes where it is ahead of gradients, in a job that leaves open how to tune.

It has the work of the gradients that the job would have followed: its candidates divide the same number of samplings.
The job that is written down names the search and its own budget, so it is read back as it is.
"""

from __future__ import annotations

from genbo.bilevel.trials import usual_trials
from genbo.cli.job import catalog
from genbo.cli.job.resolved import Job
from genbo.cli.job.sections.search import SearchJob
from genbo.cli.job.yaml_nodes import Node

WAYS = ("search", "optimizer")  # where one of these is written, the job says how to tune


def with_search(job: Job, root: Node) -> Job:
    """The job with the search that auto takes, or the same job."""
    if any(root.child(key) is not None for key in WAYS) or not job.budget.steps:
        return job
    if job.budget.pool is not None or job.budget.denoiser_calls is not None:  # they count steps along a gradient
        return job
    found = job.auto_search
    if found is None:
        return job
    kind, _ = found
    trials = usual_trials(job.parameters)
    search = SearchJob.model_construct(kind=kind, options=catalog.options_of("searchers", kind)(), common=True)
    budget = job.budget.model_copy(update={"steps": trials, "samples": job.work_of_samples // trials})
    return job.model_copy(update={"search": search, "budget": budget})
