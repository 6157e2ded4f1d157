"""Where laws at a lambda come from: samples of the pretrained model, or the closed form of a toy model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from genbo.cli.run.chunk_cache import ChunkCache
from genbo.cli.stages.context import Context
from genbo.diffusion.kinds import declared
from genbo.rewards._traits import RewardTraits

if TYPE_CHECKING:
    from genbo.bilevel.regularization.bank_sampler import Sampled
    from genbo.bilevel.regularization.context import LawSolver
    from genbo.bilevel.regularization.tilted import SolveLaw


def exact(context: Context, prompts: tuple[str, ...], upper: Sequence[tuple[float, Any]] | None = None) -> SolveLaw:
    """On paper; `upper` has the options of another reward for the upper one's place."""
    from genbo.bilevel.regularization.context import ExactWorld, LawContext

    job = context.job
    assert job.lower is not None
    own, lower = ([(r.weight, r.options) for r in rewards] for rewards in (job.reward, job.lower.reward))
    solver: LawSolver = context.assembled.lower
    return solver.begin(LawContext(exact=ExactWorld(job.model.options, prompts, upper or own, lower)))


def source_of(context: Context, kept: ChunkCache, prompts: tuple[str, ...], role: str) -> Sampled:
    """Samples of the pretrained model for these prompts."""
    from genbo.bilevel.regularization.bank_sampler import Sampled

    a, job = context.assembled, context.job
    assert job.lower is not None
    below = (declared(RewardTraits, r.options) for r in job.lower.reward)
    return Sampled(
        process=a.problem.process,
        prompts=prompts,
        upper=a.problem.rewards,
        lower=a.lower_rewards,
        seed=a.seed.child(role),
        shiftable=a.lower.drawing.bank == "shifted",
        gradients=job.model.traits.differentiable and all(reward.differentiable for reward in below),
        samples_too=True,
        keep=kept,
        kept=tuple(constraint.reward for constraint in a.problem.constraints),
    )
