"""The stages of a search for lambda: banks of samples, the curve over lambda, and both lambdas on held-out samples.

    runs/x/ banks/ {round-0, shifts-1, round-1, ...}.safetensors      evaluation/ {held-out...}.safetensors

Banks are all the state there is. A run that is gone on with reads them again and says the same rounds.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from genbo.cli.errors import Diverged, UserMistake
from genbo.cli.run.chunk_cache import Kept
from genbo.cli.run.faults import fault
from genbo.cli.run.journal import Mark
from genbo.cli.run.json_files import strict
from genbo.cli.stages.context import Work, time_left
from genbo.cli.stages.finetuning import tuned_weights
from genbo.cli.stages.finish import conclude, counted

if TYPE_CHECKING:
    from genbo.bilevel.regularization.bank import Bank
    from genbo.bilevel.regularization.bank_sampler import Sampled
    from genbo.bilevel.regularization.context import LawSolver
    from genbo.bilevel.regularization.search import Round
    from genbo.bilevel.regularization.tilted import Law, SolveLaw
    from genbo.cli.report.lambda_summary import Pair, Pretrained, Searched
    from genbo.cli.report.summary import Tuned

Document = dict[str, Any]


def whole(work: Work) -> Generator[Document, None, Document]:
    """All stages in order; each finds what an earlier process has left of it. Gives a round when it is safe."""
    from genbo.cli.plan.throughput import record_speed
    from genbo.cli.report.lambda_summary import Searched, label

    banks = kept_in(work, "banks")
    last = yield from searched(work, banks)
    a = work.assembled
    upper, lower = label(a.reward_names), label(a.lower_names)
    reason = no_answer(last)
    beside = () if reason else bank_beside(work, last, banks)
    before = pretrained_of(work, last, beside)
    found = partial(Searched, last, before, upper, lower, work.job.lower.kind, a.lower.traits.meaning)  # type: ignore[union-attr]
    if reason is not None:
        end(work, first(work), found(None), [banks], "diverged", reason)
        raise Diverged(reason)
    evaluation = kept_in(work, "evaluation")
    tuned = tuned_of(last)
    pair, opinions = held_out(work, last, evaluation)
    weights = tuned_weights(work, last, evaluation) if work.job.finetune else None
    search = replace(found(pair), weights=weights, tilt=tilt_beside(work, last, beside), judges=opinions)
    document = end(work, tuned, search, [banks, evaluation], "done", None)
    record_speed(work.job, document["cost"].get("image_forwards", 0), document["cost"]["elapsed_s"])
    work.run.status("done", document["headline"], last_step=work.run.last_step, resumable=False)
    return document


def kept_in(work: Work, folder: str) -> Kept:
    """Where samples of a stage are kept."""
    meter = work.assembled.problem.process.meter

    def between(name: str, done: int, chunks: int) -> None:
        work.screen.drawing(f"{folder}: {name}", done, chunks, time_left(work, meter.as_dict(), kept.elapsed_s))
        work.stop_if_asked()

    kept = Kept(work.run.path / folder, {"job": work.run.digest}, meter, between)
    return kept


# -- the search ----------------------------------------------------------------------------------------------


def searched(work: Work, kept: Kept) -> Generator[Document, None, Round]:
    """The last round; a line of the journal for each."""
    from genbo.cli.report.lambda_summary import label, record_of

    run, a = work.run, work.assembled
    run.journal.restore(Mark())  # rounds are read again from their banks, and said again
    work.screen.begin([])
    work.stop_if_asked()
    for number, now in enumerate(rounds(work, kept)):
        fault("step.computed")
        u = [] if now.optimum is None else a.strength.coordinates(_tensor(now.optimum.lam)).tolist()
        record = record_of(number, now, u, a.problem.process.meter.as_dict(), kept.elapsed_s, label(a.reward_names))
        run.journal.append(strict(record))
        run.last_step = number + 1
        run.status("running", f"round {run.last_step}: {now.reason}", last_step=run.last_step, resumable=True)
        left = time_left(work, a.problem.process.meter.as_dict(), kept.elapsed_s)
        work.screen.step(strict(record), left)
        if now.after in ("bridge", "more"):
            work.screen.note(now.reason)
        yield run.journal.last
        work.stop_if_asked()
    return now


def rounds(work: Work, kept: Kept) -> Iterator[Round]:
    """Of the lower solver that the job names."""
    from genbo.bilevel.regularization.search import SearchBudget, search, walk

    a, job = work.assembled, work.job
    if a.lower.traits.on_paper:
        yield on_paper(work)
        return
    if not a.lower.traits.free:
        solve, banks = solver_of(work, kept)
        yield from walk(solve, a.slope, a.strength, a.optimizer, job.budget.steps, banks)
        return
    budget = SearchBudget(a.lower.drawing.samples, job.budget.steps, a.lower.drawing.precision)
    yield from search(source_of(work, kept, a.prompts, "search"), a.lower, a.slope, a.strength.bounds, budget)


def solver_of(work: Work, kept: Kept) -> tuple[SolveLaw, tuple[Bank, ...]]:
    """A lower solver that calls the network at every lambda, and the bank that it learns from, if it does."""
    from genbo.bilevel.regularization.context import LawContext

    a = work.assembled
    source, drawing = source_of(work, kept, a.prompts, "search"), a.lower.drawing
    banks = () if drawing.bank == "none" else (source.draw(0, drawing.samples, None),)
    return a.lower.begin(LawContext(source, banks, a.seed.child("finetune"))), banks


def bank_beside(work: Work, last: Round, kept: Kept) -> tuple[Bank, ...]:
    """Samples of the pretrained model, where the lower level does not end in the tilt and so is compared with it."""
    a = work.assembled
    if a.lower.traits.estimator != "difference" or last.optimum is None:
        return ()
    return (source_of(work, kept, a.prompts, "tilt").draw(0, a.lower.drawing.samples, None),)


def tilt_beside(work: Work, last: Round, plain: Sequence[Bank]) -> Law | None:
    """Where the lower level does not end in the tilt: the tilt of the same E[r2], if one within the bounds has it."""
    from genbo.bilevel.lower.reweight import Reweight
    from genbo.bilevel.regularization.curve import matched

    a, best = work.assembled, last.optimum
    if not plain or best is None:
        return None
    solve = partial(Reweight().solve, plain[0])
    here = min(last.curve, key=lambda point: abs(point.lam - best.lam)).law
    lam = matched(solve, lambda law: law.r2, here.r2.mean, a.strength.bounds)
    return None if lam is None else solve(lam)


def on_paper(work: Work) -> Round:
    """The one round of a world whose laws are known."""
    from genbo.bilevel.regularization.curve import optimum, trace
    from genbo.bilevel.regularization.search import Round

    a = work.assembled
    solve = exact(work, a.prompts)
    try:
        curve = trace(solve, a.slope, a.strength.bounds)
    except ValueError as problem:
        raise UserMistake(f"tune.regularization.bounds: {problem}") from problem
    best = optimum(solve, a.slope, curve)
    return Round((), curve, best, "done", best.reason)


def exact(work: Work, prompts: tuple[str, ...]) -> SolveLaw:
    from genbo.bilevel.regularization.context import ExactWorld, LawContext

    job = work.job
    assert job.lower is not None
    upper, lower = ([(r.weight, r.options) for r in rewards] for rewards in (job.reward, job.lower.reward))
    solver: LawSolver = work.assembled.lower
    return solver.begin(LawContext(exact=ExactWorld(job.model.options, prompts, upper, lower)))


def source_of(work: Work, kept: Kept, prompts: tuple[str, ...], role: str) -> Sampled:
    """Samples of the pretrained model for these prompts."""
    from genbo.bilevel.regularization.bank_sampler import Sampled

    a, job = work.assembled, work.job
    assert job.lower is not None
    parts = [job.model.options, *(r.options for r in job.lower.reward)]
    return Sampled(
        process=a.problem.process,
        prompts=prompts,
        upper=a.problem.rewards,
        lower=a.lower_rewards,
        seed=a.seed.child(role),
        shiftable=a.lower.drawing.bank == "shifted",
        gradients=all(getattr(part, "differentiable", True) for part in parts),
        samples_too=True,
        keep=kept,
    )


# -- what came of it -----------------------------------------------------------------------------------------


def no_answer(last: Round) -> str | None:
    """Why nothing can be concluded, where that is so."""
    best = last.optimum
    if best is None:
        return last.reason
    return last.reason if best.kind == "out_of_reach" and best.verdict == "refuse" else None


def pretrained_of(work: Work, last: Round, plain: Sequence[Bank]) -> Pretrained:
    """Both rewards without any tuning: on paper, or of samples of the pretrained model, if any were drawn."""
    from genbo.bilevel.regularization.search import is_shifted
    from genbo.cli.report.lambda_summary import Pretrained

    if work.assembled.lower.traits.on_paper:
        law = exact(work, work.assembled.prompts)(math.inf)
        return Pretrained(law.r1.mean, law.r2.mean)
    banks = [bank for bank in (*plain, *last.banks) if not is_shifted(bank)]
    if not banks:
        return Pretrained(reason="this lower level draws no samples of the pretrained model for the tuning prompts")
    return Pretrained(banks[-1].r1.mean().item(), banks[-1].r2.mean().item())


def first(work: Work) -> Tuned:
    from genbo.cli.report.summary import Tuned

    return Tuned(work.assembled.problem.first(), [None], "start")


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


def held_out(work: Work, last: Round, kept: Kept) -> tuple[Pair, Mapping[str, Pair | None]]:
    """Both lambdas on samples that the search never saw: plain ones, and shifted ones where the search had those.

    Then the same by each judge, None where one gives no number.
    """
    from genbo.bilevel.regularization.context import LawContext
    from genbo.bilevel.regularization.rounds import pilot_samples
    from genbo.bilevel.regularization.search import is_shifted
    from genbo.cli.plan.counts import held_out_bank
    from genbo.cli.report.lambda_summary import Pair

    a, job = work.assembled, work.job
    start, best = a.strength.start, last.optimum
    assert best is not None
    fresh = job.held_out_is_fresh_prompts
    if a.lower.traits.on_paper:
        solve = exact(work, a.held_out)
        return Pair(solve(start), solve(best.lam), True, a.held_out, 0, fresh), {}
    prompts, samples = held_out_bank(job)
    source = source_of(work, kept, prompts, "evaluate")
    if not a.lower.traits.free:
        before, after = (at_lambda(work, source, last, lam) for lam in (start, best.lam))
        return Pair(before, after, True, prompts, len(prompts) * a.lower.drawing.samples, fresh), {}
    banks: list[Bank] = [source.draw(0, samples, None)]
    if any(map(is_shifted, last.banks)):
        for lam in (best.lam, start):
            if a.lower.begin(LawContext(banks=banks))(lam).fit.verdict != "reliable":
                shifts = source.shifts(len(banks), pilot_samples(samples), lam)
                banks.append(source.draw(len(banks), samples, shifts))
    keep_shown(work, source, banks, best.lam)
    by_judges = {
        name: pair_of(work, told, prompts, best.lam) if all(bank.r1.isfinite().all() for bank in told) else None
        for name, told in judged_banks(work, banks, prompts, kept).items()
    }
    return pair_of(work, banks, prompts, best.lam), by_judges


def pair_of(work: Work, banks: Sequence[Bank], prompts: tuple[str, ...], lam: float) -> Pair:
    """The start's lambda and this one by the samples that know both, or else each by those that know it best."""
    from genbo.bilevel.regularization.context import LawContext
    from genbo.bilevel.regularization.tilted import VERDICTS
    from genbo.cli.report.lambda_summary import Pair

    a = work.assembled
    start, fresh = a.strength.start, work.job.held_out_is_fresh_prompts
    solver: LawSolver = a.lower
    both = [[solver.begin(LawContext(banks=[bank]))(at) for at in (start, lam)] for bank in banks]
    before, tuned = min(both, key=lambda laws: max(VERDICTS.index(law.fit.verdict) for law in laws))
    shared = Pair(before, tuned, True, prompts, len(prompts) * banks[0].samples, fresh)
    if shared.speaks:
        return shared
    apart = solver.begin(LawContext(banks=banks))
    return replace(shared, start=apart(start), tuned=apart(lam), shared=False)


def judged_banks(
    work: Work, banks: Sequence[Bank], prompts: tuple[str, ...], kept: Kept
) -> dict[str, tuple[Bank, ...]]:
    """The same samples for each judge, with what it says of them in the upper reward's place."""
    import torch

    from genbo.cli.stages.context import judges_said

    process, judges = work.assembled.problem.process, work.assembled.judge.judges
    if not judges:
        return {}
    own = Kept(kept.folder, {**kept.words, "judges": judges_said(work)}, kept.meter, kept.between)

    def scored(bank: Bank, rows: range) -> dict[str, torch.Tensor]:
        assert bank.x is not None
        of_prompt = tuple(prompts[row // bank.samples] for row in rows)
        x = bank.x.flatten(0, 1)[rows.start : rows.stop].to(process.model.device, process.model.dtype)
        with torch.no_grad():
            images = process.model.decode(x)
            said = [judge(images, of_prompt).double().cpu() for judge in judges]
        process.meter.reward_images += len(images) * len(judges)
        return {"judges": torch.stack(said, dim=1)}

    found: list[torch.Tensor] = []  # (C, n, J) each
    for number, bank in enumerate(banks):
        total = bank.r1.numel()
        chunks = [range(at, min(total, at + process.batch)) for at in range(0, total, process.batch)]
        rows = own(f"judges-{number}", chunks, partial(scored, bank))["judges"]
        found.append(rows.unflatten(0, (-1, bank.samples)))
    kept.elapsed_s += own.elapsed_s
    return {
        name: tuple(replace(bank, r1=said[..., j]) for bank, said in zip(banks, found, strict=True))
        for j, name in enumerate(work.assembled.judge_names)
    }


def at_lambda(work: Work, source: Sampled, last: Round, lam: float) -> Law:
    """The law at lambda on held-out prompts, where it takes the network to know it."""
    from genbo.bilevel.regularization.context import LawContext

    a = work.assembled
    learned_from = replace(source, prompts=a.prompts)
    solver: LawSolver = a.lower
    return solver.begin(LawContext(learned_from, last.banks, a.seed.child("finetune"), on=source))(lam)


def keep_shown(work: Work, source: Sampled, banks: list[Bank], lam: float) -> None:
    """Samples to look at, of a world without images: of the pretrained model, and drawn anew by their weights."""
    from genbo.bilevel.regularization.context import LawContext
    from genbo.cli.report.held_out_side import POINTS, is_picture
    from genbo.cli.run.tensors import write_tensors

    x = banks[0].x
    assert x is not None
    if is_picture(source.process.model.decode(x[0, :1].to(source.process.model.device, source.process.model.dtype))):
        return
    import torch

    generator = source.seed.child("shown").generator()
    bank = max(banks, key=lambda b: work.assembled.lower.begin(LawContext(banks=[b]))(lam).fit.ess)
    assert bank.x is not None
    each = max(1, POINTS // len(source.prompts))
    weights = (bank.r2 / lam + bank.log_ratio).softmax(1)
    chosen = torch.multinomial(weights, each, replacement=True, generator=generator)
    rows = torch.stack([bank.x[c, chosen[c]] for c in range(len(chosen))])
    for name, points in (("start", x[:, :each]), ("tuned", rows)):
        shown = points.flatten(0, 1).flatten(1).contiguous()
        words = {"job": work.run.digest, "prompts": list(source.prompts)}
        write_tensors(work.run.path / "evaluation" / f"{name}.safetensors", {"shown": shown}, words)


def end(work: Work, tuned: Tuned, search: Searched, stages: list[Kept], status: str, reason: str | None) -> Document:
    """The report."""
    spent = counted(work.assembled.problem.process.meter.as_dict(), *(stage.cost for stage in stages))
    cost: dict[str, float] = dict(spent)
    cost["elapsed_s"] = sum(stage.elapsed_s for stage in stages)
    return conclude(work, tuned, None, cost, status, reason, search)
