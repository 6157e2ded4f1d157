"""The stages of a search for lambda: banks of samples, the curve over lambda, and both lambdas on held-out samples.

    runs/x/ banks/ {round-0, shifts-1, round-1, ...}.safetensors      evaluation/ {held-out...}.safetensors

Banks are all the state there is. A run that is gone on with reads them again and says the same rounds.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from genbo.cli.errors import Diverged, UserMistake
from genbo.cli.run.chunk_cache import ChunkCache
from genbo.cli.run.faults import fault
from genbo.cli.run.journal import Mark
from genbo.cli.run.json_files import strict
from genbo.cli.stages.context import Context, time_left
from genbo.cli.stages.finetuning import tuned_weights
from genbo.cli.stages.finish import conclude, counted
from genbo.cli.stages.lambda_holdout import held_out
from genbo.cli.stages.lambda_trials import tried
from genbo.cli.stages.lambda_untrained import untrained
from genbo.cli.stages.laws import exact, source_of
from genbo.cli.stages.steering import steered_at

if TYPE_CHECKING:
    from genbo.bilevel.regularization.bank import Bank
    from genbo.bilevel.regularization.search import Round
    from genbo.bilevel.regularization.tilted import Law, SolveLaw
    from genbo.cli.report.lambda_summary import Pretrained, Searched
    from genbo.cli.report.summary import Tuned
    from genbo.diffusion.process import Process

Document = dict[str, Any]
SHOWN_AS = {"banks": "sample bank", "evaluation": "held-out samples"}


def whole(context: Context) -> Generator[Document, None, Document]:
    """All stages in order; each finds what an earlier process has left of it. Gives a round when it is safe."""
    from genbo.cli.plan.throughput import record_speed
    from genbo.cli.report.lambda_keep import KeptLaws
    from genbo.cli.report.lambda_rows import label
    from genbo.cli.report.lambda_summary import Searched

    banks = kept_in(context, "banks")
    last = yield from searched(context, banks)
    a = context.assembled
    upper, lower = label(a.reward_names), label(a.lower_names)
    reason = no_answer(last)
    beside = () if reason else bank_beside(context, last, banks)
    before = pretrained_of(context, last, beside)
    found = partial(Searched, last, before, upper, lower, context.job.lower.kind, a.lower.traits.meaning)  # type: ignore[union-attr]
    if reason is not None:
        end(context, first(context), found(None), [banks], "diverged", reason)
        raise Diverged(reason)
    evaluation = kept_in(context, "evaluation")
    tuned = tuned_of(last)
    laws = held_out(context, last, evaluation)
    weights = tuned_weights(context, last, evaluation) if context.job.finetune else None
    search = replace(
        found(laws.pair),
        weights=weights,
        tilt=tilt_beside(context, last, beside),
        judges=laws.judges,
        untrained=untrained(context, last, plain_of(last, beside), laws),
        keeps=tuple(map(KeptLaws, context.assembled.problem.constraints, laws.keeps)),
        steering=laws.steering,
    )
    document = end(context, tuned, search, [banks, evaluation], "done", None, steered_at(context, last))
    record_speed(context.job, document["cost"].get("image_forwards", 0), document["cost"]["elapsed_s"])
    context.run.status("done", document["headline"], last_step=context.run.last_step, resumable=False)
    return document


def kept_in(context: Context, folder: str) -> ChunkCache:
    """Where samples of a stage are kept."""
    meter = context.assembled.problem.process.meter

    def between(name: str, done: int, chunks: int) -> None:
        context.screen.drawing(
            f"{SHOWN_AS[folder]} {name}", done, chunks, time_left(context, meter.as_dict(), kept.elapsed_s)
        )
        context.stop_if_asked()

    kept = ChunkCache(context.run.path / folder, {"job": context.run.digest}, meter, between)
    return kept


# -- the search ----------------------------------------------------------------------------------------------


def searched(context: Context, kept: ChunkCache) -> Generator[Document, None, Round]:
    """The last round; a line of the journal for each."""
    from genbo.cli.report.lambda_rows import label, record_of

    run, a = context.run, context.assembled
    run.journal.restore(Mark())  # rounds are read again from their banks, and written again
    context.screen.begin([])
    context.stop_if_asked()
    for number, now in enumerate(rounds(context, kept)):
        fault("step.computed")
        u = [] if now.optimum is None else a.strength.coordinates(_tensor(now.optimum.lam)).tolist()
        record = record_of(number, now, u, a.problem.process.meter.as_dict(), kept.elapsed_s, label(a.reward_names))
        run.journal.append(strict(record))
        run.last_step = number + 1
        run.status("running", f"round {run.last_step}: {now.reason}", last_step=run.last_step, resumable=True)
        left = time_left(context, a.problem.process.meter.as_dict(), kept.elapsed_s)
        context.screen.step(strict(record), left)
        if now.after in ("bridge", "more"):
            context.screen.note(now.reason)
        yield run.journal.last
        context.stop_if_asked()
    return now


def rounds(context: Context, kept: ChunkCache) -> Iterator[Round]:
    """Of the lower solver that the job names."""
    from genbo.bilevel.regularization.search import Keep, SearchBudget, search, walk
    from genbo.cli.plan.lambda_counts import looks_of

    a, job = context.assembled, context.job
    if a.lower.traits.on_paper:
        yield on_paper(context)
        return
    if job.search is not None:
        yield from tried(context, kept)
        return
    if not a.lower.traits.free:
        solve, banks = solver_of(context, kept)
        yield from walk(solve, a.slope, a.strength, a.optimizer, job.budget.steps, banks)
        return
    samples, most = looks_of(job)
    budget = SearchBudget(samples, most, a.lower.drawing.precision, job.budget.ratio)
    source, keep = source_of(context, kept, a.prompts, "search"), Keep(a.problem.constraints, a.strength.start)
    yield from search(source, a.lower, a.slope, a.strength.bounds, budget, keep=keep)


def solver_of(context: Context, kept: ChunkCache) -> tuple[SolveLaw, tuple[Bank, ...]]:
    """A lower solver that calls the network at every lambda, and the bank that it learns from, if it does."""
    from genbo.bilevel.regularization.context import LawContext

    a = context.assembled
    source, drawing = source_of(context, kept, a.prompts, "search"), a.lower.drawing
    banks = () if drawing.bank == "none" else (source.draw(0, drawing.samples, None),)
    return a.lower.begin(LawContext(source, banks, a.seed.child("finetune"))), banks


def bank_beside(context: Context, last: Round, kept: ChunkCache) -> tuple[Bank, ...]:
    """Samples of the pretrained model, where the lower level does not end in the tilt and so is compared with it."""
    a = context.assembled
    if a.lower.traits.estimator != "difference" or last.optimum is None:
        return ()
    return (source_of(context, kept, a.prompts, "tilt").draw(0, a.lower.drawing.samples, None),)


def tilt_beside(context: Context, last: Round, plain: Sequence[Bank]) -> Law | None:
    """Where the lower level does not end in the tilt: the tilt of the same E[r2], if one within the bounds has it."""
    from genbo.bilevel.lower.reweight import Reweight
    from genbo.bilevel.regularization.curve import matched

    a, best = context.assembled, last.optimum
    if not plain or best is None:
        return None
    solve = partial(Reweight().solve, plain[0])
    here = min(last.curve, key=lambda point: abs(point.lam - best.lam)).law
    lam = matched(solve, lambda law: law.r2, here.r2.mean, a.strength.bounds)
    return None if lam is None else solve(lam)


def on_paper(context: Context) -> Round:
    """The one round of a world whose laws are known."""
    from genbo.bilevel.regularization.constrained import Gap, constrained
    from genbo.bilevel.regularization.curve import optimum, trace
    from genbo.bilevel.regularization.search import Round

    a = context.assembled
    solve = exact(context, a.prompts)
    try:
        curve = trace(solve, a.slope, a.strength.bounds)
    except ValueError as problem:
        raise UserMistake(f"tune.regularization.bounds: {problem}") from problem
    gaps = []
    for keep in context.job.keep:
        start, of = (
            a.strength.start if keep.relative_to_start else None,
            exact(context, a.prompts, [(1.0, keep.options)]),
        )
        gaps.append(Gap(keep.name, keep.at_least, start, (of,)))
    best = constrained(optimum(solve, a.slope, curve), solve, curve, gaps)
    return Round((), curve, best, "done", best.reason)


# -- what came of it -----------------------------------------------------------------------------------------


def no_answer(last: Round) -> str | None:
    """Why nothing can be concluded, where that is so."""
    best = last.optimum
    if best is None:
        return last.reason
    silent = best.kind in ("out_of_reach", "infeasible") and best.verdict == "refuse"
    return last.reason if silent else None


def pretrained_of(context: Context, last: Round, plain: Sequence[Bank]) -> Pretrained:
    """Both rewards without any tuning: on paper, or of samples of the pretrained model, if any were drawn."""
    from genbo.cli.report.lambda_summary import Pretrained

    if context.assembled.lower.traits.on_paper:
        law = exact(context, context.assembled.prompts)(math.inf)
        return Pretrained(law.r1.mean, law.r2.mean)
    bank = plain_of(last, plain)
    if bank is None:
        return Pretrained(reason="this lower level draws no samples of the pretrained model for the tuning prompts")
    return Pretrained(bank.r1.mean().item(), bank.r2.mean().item())


def plain_of(last: Round, beside: Sequence[Bank]) -> Bank | None:
    """The largest bank of the pretrained model's own samples, if any were drawn."""
    from genbo.bilevel.regularization.search import is_shifted

    banks = [bank for bank in (*beside, *last.banks) if not is_shifted(bank)]
    return banks[-1] if banks else None


def first(context: Context) -> Tuned:
    from genbo.cli.report.summary import at_start

    return at_start(context.assembled.problem)


def tuned_of(last: Round) -> Tuned:
    from genbo.cli.report.summary import Tuned

    best = last.optimum
    assert best is not None
    exact = not last.banks and best.log_se is not None and math.isinf(last.curve[0].law.fit.samples)
    se = 0.0 if exact else None if best.log_se is None else best.lam * best.log_se
    return Tuned(_tensor(best.lam), [se], "curve")


def _tensor(number: float) -> Any:
    import torch

    return torch.tensor([number], dtype=torch.float64)


def end(
    context: Context,
    tuned: Tuned,
    search: Searched,
    stages: list[ChunkCache],
    status: str,
    reason: str | None,
    process: Process | None = None,
) -> Document:
    """The report; `process` is what draws tuned samples, where the search leaves one."""
    spent = counted(context.assembled.problem.process.meter.as_dict(), *(stage.cost for stage in stages))
    cost: dict[str, float] = dict(spent)
    cost["elapsed_s"] = sum(stage.elapsed_s for stage in stages)
    return conclude(context, tuned, None, cost, status, reason, search, process)
