"""Where laws at a lambda come from: samples of the pretrained model, or the closed form of a toy model."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from genbo.cli.run.chunk_cache import ChunkCache
from genbo.cli.stages.context import Context

if TYPE_CHECKING:
    from genbo.bilevel.regularization.bank_sampler import Sampled
    from genbo.bilevel.regularization.tilted import Solve


def exact(context: Context, prompts: tuple[str, ...]) -> Solve:
    from genbo.bilevel.lower.closed_form import cumulant_of

    job = context.job
    assert job.lower is not None
    upper, lower = ([(r.weight, r.options) for r in rewards] for rewards in (job.reward, job.lower.reward))
    return partial(context.assembled.lower.solve, cumulant_of(job.model.options, prompts, upper, lower))


def source_of(context: Context, kept: ChunkCache, prompts: tuple[str, ...], role: str) -> Sampled:
    """Samples of the pretrained model for these prompts."""
    from genbo.bilevel.regularization.bank_sampler import Sampled

    a, job = context.assembled, context.job
    assert job.lower is not None
    parts = [job.model.options, *(r.options for r in job.lower.reward)]
    return Sampled(
        process=a.problem.process,
        prompts=prompts,
        upper=a.problem.rewards,
        lower=a.lower_rewards,
        seed=a.seed.child(role),
        shiftable=getattr(a.lower, "bridge", False),
        gradients=all(getattr(part, "differentiable", True) for part in parts),
        samples_too=True,
        keep=kept,
    )
