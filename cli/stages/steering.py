"""What a guided lower level leaves: a steered process, which is exported, and its law beside the one that it is for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from genbo.bilevel.lower.guided import Guided
from genbo.cli.run.chunk_cache import ChunkCache
from genbo.cli.stages.context import Context
from genbo.cli.stages.laws import source_of

if TYPE_CHECKING:
    from genbo.bilevel.regularization.search import Round
    from genbo.bilevel.regularization.tilted import Law
    from genbo.cli.report.steering import SteeredLaw
    from genbo.diffusion.process import Process


def steered_at(context: Context, last: Round) -> Process | None:
    """What draws the guided law at the best lambda; None where another lower level was searched."""
    from genbo.diffusion.steer import Climbed

    a, job, best = context.assembled, context.job, last.optimum
    if not isinstance(a.lower, Guided) or best is None:
        return None
    assert job.lower is not None
    pairs = zip(job.lower.reward, a.lower_rewards, strict=True)
    rewards = [Climbed(weight, reward, written.options) for written, (weight, reward) in pairs]
    return a.lower.steered(a.problem.process, rewards, best.lam)


def steered_law(context: Context, process: Process, law: Callable[[], Law], kept: ChunkCache) -> SteeredLaw:
    """`law` draws the steered one on held-out prompts; beside it as many samples of the pretrained model."""
    import math

    from genbo.bilevel.lower.reweight import Reweight
    from genbo.cli.plan.counts import held_out_bank
    from genbo.cli.report.steering import SteeredLaw
    from genbo.diffusion.kinds import kind_of
    from genbo.diffusion.process import image_cost

    a, (prompts, _) = context.assembled, held_out_bank(context.job)
    began = kept.elapsed_s
    steered = law()
    drawn = kept.elapsed_s
    bank = source_of(context, kept, prompts, "beside").draw(0, a.lower.drawing.samples, None)
    images = bank.r2.numel()
    solve = Reweight("jackknife").solve
    assert process.steer is not None
    return SteeredLaw(
        rule=kind_of(process.steer.rule),
        strength=float(process.steer.strength[0, 0]),
        steered=steered,
        pretrained=solve(bank, math.inf),
        law=Reweight().solve(bank, steered.lam),
        cost=image_cost(process),
        seconds=(drawn - began) / images,
        plain_seconds=(kept.elapsed_s - drawn) / images,
    )
