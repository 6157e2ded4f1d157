"""Held-out samples of a search for lambda: the start and the best one on samples the search never saw, and judges.

runs/x/ evaluation/ {round-0, shifts-1, ..., judges-0, start, tuned}.safetensors
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from genbo.cli.run.chunk_cache import ChunkCache
from genbo.cli.stages.context import Context
from genbo.cli.stages.laws import exact, source_of
from genbo.cli.stages.steering import steered_at, steered_law

if TYPE_CHECKING:
    import torch

    from genbo.bilevel.regularization.bank import Bank
    from genbo.bilevel.regularization.bank_sampler import Sampled
    from genbo.bilevel.regularization.context import LawSolver
    from genbo.bilevel.regularization.search import Round
    from genbo.bilevel.regularization.tilted import Law
    from genbo.cli.report.lambda_pair import Pair
    from genbo.cli.report.steering import SteeredLaw


@dataclass(frozen=True)
class HeldOutLaws:
    """Both lambdas on held-out samples, the same by each judge (None where one gives no number), and the samples.

    The first of the banks holds samples of the pretrained model itself. There are none where each law has its own.
    """

    pair: Pair
    judges: Mapping[str, Pair | None] = field(default_factory=dict)
    banks: tuple[Bank, ...] = ()
    keeps: tuple[Pair | None, ...] = ()  # the same by each constraint's reward
    steering: SteeredLaw | None = None


def held_out(context: Context, last: Round, kept: ChunkCache) -> HeldOutLaws:
    """Both lambdas on samples that the search never saw: plain ones, and shifted ones where the search had those."""
    from genbo.bilevel.regularization.constrained import in_place_of_r1
    from genbo.bilevel.regularization.context import LawContext
    from genbo.bilevel.regularization.rounds import pilot_samples
    from genbo.bilevel.regularization.search import is_shifted
    from genbo.cli.plan.counts import held_out_bank
    from genbo.cli.report.lambda_pair import Pair

    a, job = context.assembled, context.job
    start, best = a.strength.start, last.optimum
    assert best is not None
    fresh = job.held_out_is_fresh_prompts
    if a.lower.traits.on_paper:
        solve = exact(context, a.held_out)
        solvers = [exact(context, a.held_out, [(1.0, keep.options)]) for keep in job.keep]
        pair, *keeps = (Pair(of(start), of(best.lam), True, a.held_out, 0, fresh) for of in (solve, *solvers))
        return HeldOutLaws(pair, keeps=tuple(keeps))
    prompts, samples = held_out_bank(job)
    source = source_of(context, kept, prompts, "evaluate")
    if not a.lower.traits.free:
        before, process = at_lambda(context, source, last, start), steered_at(context, last)
        tuned = partial(at_lambda, context, source, last, best.lam)
        steered = None if process is None else steered_law(context, process, tuned, kept)
        after = tuned() if steered is None else steered.steered
        drawn = len(prompts) * a.lower.drawing.samples
        return HeldOutLaws(Pair(before, after, True, prompts, drawn, fresh), steering=steered)
    banks: list[Bank] = [source.draw(0, samples, None)]
    if any(map(is_shifted, last.banks)):
        for lam in (best.lam, start):
            if a.lower.begin(LawContext(banks=banks))(lam).fit.verdict != "reliable":
                shifts = source.shifts(len(banks), pilot_samples(samples), lam)
                banks.append(source.draw(len(banks), samples, shifts))
    keep_shown(context, source, banks, best.lam)
    by_judges = {
        name: pair_of(context, judged, prompts, best.lam) if all(bank.r1.isfinite().all() for bank in judged) else None
        for name, judged in judged_banks(context, banks, prompts, kept).items()
    }
    kept_rewards = [[in_place_of_r1(bank, k) for bank in banks] for k in range(len(job.keep))]
    pairs = tuple(
        pair_of(context, own, prompts, best.lam) if all(bank.r1.isfinite().all() for bank in own) else None
        for own in kept_rewards
    )
    return HeldOutLaws(pair_of(context, banks, prompts, best.lam), by_judges, tuple(banks), pairs)


def pair_of(context: Context, banks: Sequence[Bank], prompts: tuple[str, ...], lam: float) -> Pair:
    """The start's lambda and this one by the samples that know both, or else each by those that know it best."""
    from genbo.bilevel.regularization.context import LawContext
    from genbo.bilevel.regularization.tilted import VERDICTS
    from genbo.cli.report.lambda_pair import Pair

    a = context.assembled
    start, fresh = a.strength.start, context.job.held_out_is_fresh_prompts
    solver: LawSolver = a.lower
    both = [[solver.begin(LawContext(banks=[bank]))(at) for at in (start, lam)] for bank in banks]
    before, tuned = min(both, key=lambda laws: max(VERDICTS.index(law.fit.verdict) for law in laws))
    shared = Pair(before, tuned, True, prompts, len(prompts) * banks[0].samples, fresh)
    if shared.has_enough_samples:
        return shared
    apart = solver.begin(LawContext(banks=banks))
    return replace(shared, start=apart(start), tuned=apart(lam), shared=False)


def judged_banks(
    context: Context, banks: Sequence[Bank], prompts: tuple[str, ...], kept: ChunkCache
) -> dict[str, tuple[Bank, ...]]:
    """The same samples for each judge, with what it says of them in the upper reward's place."""
    import torch

    from genbo.cli.stages.context import judges_said

    process, judges = context.assembled.problem.process, context.assembled.judge.judges
    if not judges:
        return {}
    own = ChunkCache(kept.folder, {**kept.words, "judges": judges_said(context)}, kept.meter, kept.between)

    def scored(bank: Bank, rows: range) -> dict[str, torch.Tensor]:
        assert bank.x is not None
        of_prompt = tuple(prompts[row // bank.samples] for row in rows)
        x = bank.x.flatten(0, 1)[rows.start : rows.stop].to(process.model.device, process.model.dtype)
        with torch.no_grad():
            images = process.model.decode(x)
            opinions = [judge(images, of_prompt).double().cpu() for judge in judges]
        process.meter.reward_images += len(images) * len(judges)
        return {"judges": torch.stack(opinions, dim=1)}

    found: list[torch.Tensor] = []  # (C, n, J) each
    for number, bank in enumerate(banks):
        total = bank.r1.numel()
        chunks = [range(at, min(total, at + process.batch)) for at in range(0, total, process.batch)]
        rows = own(f"judges-{number}", chunks, partial(scored, bank))["judges"]
        found.append(rows.unflatten(0, (-1, bank.samples)))
    kept.elapsed_s += own.elapsed_s
    return {
        name: tuple(replace(bank, r1=opinions[..., j]) for bank, opinions in zip(banks, found, strict=True))
        for j, name in enumerate(context.assembled.judge_names)
    }


def at_lambda(context: Context, source: Sampled, last: Round, lam: float) -> Law:
    """The law at lambda on held-out prompts, where it takes the network to know it."""
    from genbo.bilevel.regularization.context import LawContext

    a = context.assembled
    learned_from = replace(source, prompts=a.prompts)
    solver: LawSolver = a.lower
    return solver.begin(LawContext(learned_from, last.banks, a.seed.child("finetune"), on=source))(lam)


def keep_shown(context: Context, source: Sampled, banks: list[Bank], lam: float) -> None:
    """Samples to look at, of a world without images: of the pretrained model, and drawn anew by their weights."""
    from genbo.bilevel.regularization.context import LawContext
    from genbo.bilevel.regularization.resample import resampled
    from genbo.cli.report.held_out_side import POINTS, is_picture
    from genbo.cli.run.tensors import write_tensors

    x = banks[0].x
    assert x is not None
    if is_picture(source.process.model.decode(x[0, :1].to(source.process.model.device, source.process.model.dtype))):
        return
    bank = max(banks, key=lambda b: context.assembled.lower.begin(LawContext(banks=[b]))(lam).fit.ess)
    each = max(1, POINTS // len(source.prompts))
    rows = resampled(bank, lam, each, source.seed.child("shown").generator())
    for name, points in (("start", x[:, :each]), ("tuned", rows)):
        shown = points.flatten(0, 1).flatten(1).contiguous()
        words = {"job": context.run.digest, "prompts": list(source.prompts)}
        write_tensors(context.run.path / "evaluation" / f"{name}.safetensors", {"shown": shown}, words)
