"""The tuned weights of a search for lambda: fine-tuned at the lambda that was found, and beside it for comparison.

    lambda, a tenth and ten times of it  ->  weights/<factor>.safetensors  ->  held-out samples of each, and of the
                                                                               pretrained model from the same noise

What over-optimisation looks like is thus seen in samples of real weights, not in weights of samples alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from genbo.cli.errors import Diverged
from genbo.cli.report.tuned_weights import Finetuned, Promised, Weights
from genbo.cli.run.chunk_cache import ChunkCache
from genbo.cli.run.tensors import read_tensors, words_in, write_tensors
from genbo.cli.stages.context import Context, judges_said

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.lower.finetune import Finetune
    from genbo.bilevel.problem import Problem
    from genbo.bilevel.regularization.bank import Bank
    from genbo.bilevel.regularization.search import Round
    from genbo.bilevel.training.finetuning import Training
    from genbo.cli.report.held_out_side import Side
    from genbo.diffusion.process import Process
    from genbo.diffusion.seed import Batch

Document = dict[str, Any]
OFTEN = 50  # steps of a training after which its state is kept


# -- the stage -----------------------------------------------------------------------------------------------


def tuned_weights(context: Context, last: Round, kept: ChunkCache) -> Weights:
    """Fine-tunes at each factor of the best lambda, and draws samples of held-out and of the tuning prompts of all."""
    from genbo.cli.plan.counts import PAIRS
    from genbo.diffusion.seed import batch_of

    a, job, best = context.assembled, context.job, last.optimum
    assert best is not None and job.finetune is not None
    pairs = min(job.evaluate.samples, PAIRS)
    batch = batch_of(a.held_out, pairs, a.seed.child("weights"))
    tuned = a.prompts[: max(1, pairs // 2)]  # two samples of each at least, which an interval wants
    own = batch_of(tuned, pairs, a.seed.child("weights-on-tuned")) if job.held_out_is_fresh_prompts else None
    judge = judge_of_weights(context, batch_of(a.held_out, pairs, a.seed.child("reference")), kept)
    factors = (1.0, *sorted(job.finetune.also))
    processes = {factor: trained(context, last, best.lam * factor, factor, kept) for factor in factors}

    def sides(process: Process, name: str) -> tuple[Side, Side | None]:
        held_out = side_of(context, process, name, judge, batch, kept)
        if own is None:
            return held_out, None
        return held_out, side_of(context, process, f"{name}-on-tuned", a.judge, own, kept)

    held_out, on_tuned = sides(a.problem.process, "start")
    laws = [Finetuned(None, None, held_out, None, on_tuned)]
    for factor, process in processes.items():
        held_out, on_tuned = sides(process, "tuned" if factor == 1 else f"weights-{factor:g}")
        kl, promised = path_kl(context, process, factor, batch, kept), promised_at(last, best.lam * factor, len(tuned))
        laws.append(Finetuned(factor, best.lam * factor, held_out, kl, on_tuned, promised))
    return Weights(
        processes[1.0],
        tuple(laws),
        batch.prompts,
        tuple(weight for weight, _ in a.problem.rewards),
        tuple(weight for weight, _ in a.lower_rewards),
        job.held_out_is_fresh_prompts,
        (*a.judge_names, *(name for name, _ in a.weight_judges)),
        () if own is None else own.prompts,
    )


def promised_at(last: Round, lam: float, prompts: int) -> Promised | None:
    """What the law at lambda gains on the first tuning prompts, by the search's samples; None where it drew none."""
    from genbo.bilevel.lower.reweight import Reweight
    from genbo.bilevel.measured import Measured

    if not last.banks:
        return None
    bank = bank_at(last.banks, lam)
    law, before = (Reweight().solve(bank, at) for at in (lam, math.inf))
    r1, r2 = (
        Measured(gain.value[:prompts], gain.influence[:prompts]) for gain in (law.r1 - before.r1, law.r2 - before.r2)
    )
    return Promised(r1, r2, law.kl.value[:prompts].mean().item(), law.fit.verdict)


def judge_of_weights(context: Context, batch: Batch, kept: ChunkCache) -> Problem:
    """The problem with its judges, those among them that look at all samples together; `data: pretrained` is drawn."""
    from genbo.bilevel.scoring import OfSets

    a, data = context.assembled, context.job.data
    found = [judge for _, judge in a.weight_judges]
    if data is not None and data.of_model:
        images = reference(context, batch, kept)
        found = [judge if isinstance(judge, OfSets) else judge.against(images) for judge in found]
    return replace(a.judge, judges=(*a.judge.judges, *found))


def reference(context: Context, batch: Batch, kept: ChunkCache) -> Tensor:
    """Samples of the pretrained model, images in bytes, on noise that no other sample has."""
    import torch

    from genbo.cli.report.held_out_side import is_picture
    from genbo.diffusion.sample import sample

    process = context.assembled.problem.process

    def drawn(chunk: Batch) -> Tensor:
        with torch.no_grad():
            images = process.model.decode(sample(process, chunk)).float().cpu()
        return (images * 255).round().to(torch.uint8) if is_picture(images) else images

    def one(chunk: Batch) -> Mapping[str, Tensor]:
        return {"images": torch.cat(list(process.over(chunk, drawn)))}

    images: Tensor = kept("reference", list(batch.chunks(process.batch)), one)["images"]
    return images


def bank_at(banks: Sequence[Bank], lam: float) -> Bank:
    """The bank whose samples know lambda best."""
    from genbo.bilevel.lower.reweight import Reweight
    from genbo.bilevel.regularization.tilted import VERDICTS

    def quality(bank: Bank) -> tuple[int, float]:
        fit = Reweight().solve(bank, lam).fit
        return VERDICTS.index(fit.verdict), -fit.ess

    return min(banks, key=quality)


def trained(context: Context, last: Round, lam: float, factor: float, kept: ChunkCache) -> Process:
    """The process with weights tuned at lambda, found again where an earlier process has trained them."""
    from genbo.bilevel.training.finetuning import NotFinite
    from genbo.diffusion.adapt import restore, tensors

    a, folder = context.assembled, context.run.path / "weights"
    folder.mkdir(exist_ok=True)
    place, words = folder / f"{factor:g}.safetensors", {"job": context.run.digest, "lam": lam}
    done = read_tensors(place, {**words, "done": True})
    if done is not None:
        kept.add(words_in(place))
        assert context.job.finetune is not None
        process: Process = context.job.finetune.options.adapted(a.problem.process, a.seed.child("finetune"))
        restore(process.model, done)  # type: ignore[arg-type]
        return process
    begun = read_tensors(place, {**words, "done": False})
    if begun is not None:
        kept.add(words_in(place))
    meter, spent, began = a.problem.process.meter, a.problem.process.meter.as_dict(), time.monotonic()
    training = training_at(context, last, lam, begun)
    before: Document = words_in(place) if begun is not None else {"cost": {}, "elapsed_s": 0.0}

    def words_now(done: bool) -> Document:
        cost = {key: value - spent[key] + before["cost"].get(key, 0) for key, value in meter.as_dict().items()}
        elapsed_s = before["elapsed_s"] + time.monotonic() - began
        return {**words, "done": done, "cost": cost, "elapsed_s": elapsed_s}

    try:
        for moment in training:
            context.screen.drawing(f"fine-tuning at lambda = {lam:.3g}", moment.step, moment.steps, None)
            if moment.step % OFTEN == 0:
                write_tensors(place, training.state(), words_now(False))
            context.stop_if_asked()
    except NotFinite as problem:
        raise Diverged(str(problem).replace("lower.lr", "finetune.lr")) from problem
    write_tensors(place, tensors(training.model), words_now(True))
    now = words_now(True)
    kept.elapsed_s += now["elapsed_s"] - before["elapsed_s"]
    return replace(a.problem.process, model=training.model)  # drawn by the job's own sampler


def training_at(context: Context, last: Round, lam: float, begun: Mapping[str, Any] | None) -> Training:
    """The training before it is run."""
    a = context.assembled
    assert context.job.finetune is not None
    options: Finetune = context.job.finetune.options
    seed = a.seed.child("finetune")
    if options.method != "weighted":
        return options.by_reward(a.problem.process, a.prompts, a.lower_rewards, lam, seed, state=begun)
    bank = bank_at(last.banks, lam)
    return options.tilted(a.problem.process, a.prompts, bank, lam, seed, state=begun)


def side_of(context: Context, process: Process, name: str, judge: Problem, batch: Batch, kept: ChunkCache) -> Side:
    """Held-out samples of these weights, with the rewards of both levels and the judges."""
    from genbo.cli.stages.holdout import evaluate_side

    a = context.assembled
    problem = replace(judge, process=process, rewards=(*a.problem.rewards, *a.lower_rewards))
    folder, phi = context.run.path / "evaluation", a.problem.first()
    side = evaluate_side(folder, name, problem, phi, batch, context.run.digest, kept.between, judges_said(context))
    kept.elapsed_s += side.elapsed_s
    return side


def path_kl(context: Context, process: Process, factor: float, batch: Batch, kept: ChunkCache) -> tuple[float, float]:
    """Mean KL of the memoryless paths from those of the pretrained model, and its standard error."""
    import torch

    from genbo.bilevel.training.memoryless import memoryless, sample_with_path_kl
    from genbo.cli.plan.counts import PATHS

    base, tuned = memoryless(context.assembled.problem.process), memoryless(process)
    few = type(batch)(batch.prompts[:PATHS], batch.seeds[:PATHS])

    def part(chunk: Batch) -> Tensor:
        with torch.no_grad():
            return sample_with_path_kl(tuned, base, chunk)[1].cpu()

    def one(chunk: Batch) -> Mapping[str, Tensor]:
        return {"kl": torch.cat(list(base.over(chunk, part)))}

    kl = kept(f"kl-{factor:g}", list(few.chunks(base.batch)), one)["kl"]
    return kl.mean().item(), kl.std().item() / math.sqrt(len(kl))
