"""The tuned weights of a search for lambda: fine-tuned at the lambda that was found, and beside it for comparison.

    lambda, a tenth and ten times of it  ->  weights/<factor>.safetensors  ->  held-out samples of each, and of the
                                                                               pretrained model from the same noise

What over-optimisation looks like is thus seen in samples of real weights, not in weights of samples alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from genbo.cli.errors import Diverged
from genbo.cli.report import number_format
from genbo.cli.run.chunk_cache import Kept
from genbo.cli.run.folder import read_tensors, words_in, write_tensors
from genbo.cli.stages.context import Work, judges_said

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.lower.finetune import Finetune
    from genbo.bilevel.regularization.bank import Bank
    from genbo.bilevel.regularization.search import Round
    from genbo.bilevel.training.finetuning import Training
    from genbo.bilevel.verdict import Comparison
    from genbo.cli.report.records import Remark
    from genbo.cli.report.records_search import WeightsRow
    from genbo.cli.stages.holdout import Side
    from genbo.diffusion.process import Process
    from genbo.diffusion.seed import Batch

Document = dict[str, Any]
OFTEN = 50  # steps of a training after which its state is kept


@dataclass(frozen=True)
class Law:
    """Samples of one set of weights: (rewards of both levels, N) on the held-out noise, and the KL of its paths."""

    factor: float | None  # of the lambda that was found; None is the pretrained model
    lam: float | None
    side: Side
    kl: tuple[float, float] | None  # and its standard error


@dataclass(frozen=True)
class Weights:
    """What came of fine-tuning: the pretrained model first, then one for each factor, 1 among them."""

    tuned: Process
    laws: tuple[Law, ...]
    prompts: tuple[str, ...]
    upper: tuple[float, ...]  # the weights of the upper rewards; the rows that follow are the lower ones
    lower: tuple[float, ...]
    fresh_prompts: bool
    judges: tuple[str, ...] = ()  # names; their rows stand behind those of both levels

    def at(self, factor: float | None) -> Law:
        return next(law for law in self.laws if law.factor == factor)

    def scores(self, law: Law, level: str) -> Any:
        """(N,), the weighted rewards of a level, or what a judge says, by its name."""
        import torch

        rows = law.side.scores.double()
        split, end = len(self.upper), len(self.upper) + len(self.lower)
        if level in self.judges:
            return rows[end + self.judges.index(level)]
        weights, rows = (self.upper, rows[:split]) if level == "r1" else (self.lower, rows[split:end])
        return torch.tensor(weights, dtype=torch.float64) @ rows

    def compared(self, factor: float | None, other: float | None, level: str) -> Comparison:
        """`factor` after `other`."""
        from genbo.bilevel.verdict import compare

        before, after = (self.scores(self.at(f), level) for f in (other, factor))
        return compare(before, after, self.prompts, fresh_prompts=self.fresh_prompts)

    def document(self) -> list[WeightsRow]:
        """The key `weights` of `report.json`: a row a law, against the pretrained model."""
        from genbo.cli.report.comparison import row_of
        from genbo.cli.report.records_search import WeightsRow

        rows = []
        for law in self.laws:
            row: Document = {"factor": law.factor, "lam": law.lam, "kl": None, "kl_se": None}
            if law.kl is not None:
                row |= {"kl": law.kl[0], "kl_se": law.kl[1]}
            for level in ("r1", "r2"):
                row[level] = self.scores(law, level).mean().item()
                row[f"{level}_gain"] = None if law.factor is None else row_of(self.compared(law.factor, None, level))
            if self.judges and law.factor is not None:
                row["judges"] = {name: row_of(self.compared(law.factor, None, name)) for name in self.judges}
            rows.append(WeightsRow(**row))
        return rows

    def remarks(self, upper: str, lower: str) -> Iterator[Remark]:
        """Sentences: what the tuned weights did, and whether less KL is over-optimised as the curve says."""
        from genbo.cli.report.trust import remark

        names = {"r1": upper, "r2": lower}
        opinions = {name: name for name in self.judges}
        if 1.0 in [law.factor for law in self.laws]:
            gains = [f"{name} {_change(self.compared(1.0, None, level))}" for level, name in (names | opinions).items()]
            yield remark("note", f"The weights tuned at lambda against the pretrained model: {' and '.join(gains)}.")
        for law in self.laws:
            if law.factor is None or law.factor == 1:
                continue
            both = {level: self.compared(law.factor, 1.0, level) for level in names}
            gains = [f"{names[level]} {_change(found)}" for level, found in both.items()]
            said = f"Weights tuned at {law.factor:g} lambda against lambda: {' and '.join(gains)}"
            yield remark("note", f"{said}{_meaning(law.factor, both)}.")


def _change(found: Comparison) -> str:
    return number_format.change(found.difference, found.interval)


def _meaning(factor: float, both: Mapping[str, Comparison]) -> str:
    """In words, where the samples show it."""
    r1, r2 = both["r1"].verdict, both["r2"].verdict
    none = "no measurable difference"
    if factor < 1 and r2 == "better" and r1 == "worse":
        return ": over-optimised"
    if factor > 1 and r2 == "worse" and r1 == "worse":
        return ": held back too much"
    return ": no measurable difference in either" if r1 == r2 == none else ""


# -- the stage -----------------------------------------------------------------------------------------------


def tuned_weights(work: Work, last: Round, kept: Kept) -> Weights:
    """Fine-tunes at each factor of the best lambda, and draws held-out samples of all."""
    from genbo.cli.plan.counts import PAIRS
    from genbo.diffusion.seed import batch_of

    a, job, best = work.assembled, work.job, last.optimum
    assert best is not None and job.finetune is not None
    batch = batch_of(a.held_out, min(job.evaluate.samples, PAIRS), a.seed.child("weights"))
    factors = (1.0, *sorted(job.finetune.also))
    processes = {factor: trained(work, last, best.lam * factor, factor, kept) for factor in factors}
    laws = [Law(None, None, side_of(work, a.problem.process, "start", batch, kept), None)]
    for factor, process in processes.items():
        name = "tuned" if factor == 1 else f"weights-{factor:g}"
        side = side_of(work, process, name, batch, kept)
        laws.append(Law(factor, best.lam * factor, side, path_kl(work, process, factor, batch, kept)))
    return Weights(
        processes[1.0],
        tuple(laws),
        batch.prompts,
        tuple(weight for weight, _ in a.problem.rewards),
        tuple(weight for weight, _ in a.lower_rewards),
        job.held_out_is_fresh_prompts,
        a.judge_names,
    )


def bank_at(banks: Sequence[Bank], lam: float) -> Bank:
    """The bank whose samples know lambda best."""
    from genbo.bilevel.lower.reweight import Reweight
    from genbo.bilevel.regularization.tilted import VERDICTS

    def quality(bank: Bank) -> tuple[int, float]:
        fit = Reweight().solve(bank, lam).fit
        return VERDICTS.index(fit.verdict), -fit.ess

    return min(banks, key=quality)


def trained(work: Work, last: Round, lam: float, factor: float, kept: Kept) -> Process:
    """The process with weights tuned at lambda, found again where an earlier process has trained them."""
    from genbo.bilevel.training.finetuning import NotFinite
    from genbo.diffusion.adapt import restore, tensors

    a, folder = work.assembled, work.run.path / "weights"
    folder.mkdir(exist_ok=True)
    place, words = folder / f"{factor:g}.safetensors", {"job": work.run.digest, "lam": lam}
    done = read_tensors(place, {**words, "done": True})
    if done is not None:
        kept.add(words_in(place))
        assert work.job.finetune is not None
        process: Process = work.job.finetune.options.adapted(a.problem.process, a.seed.child("finetune"))
        restore(process.model, done)  # type: ignore[arg-type]
        return process
    begun = read_tensors(place, {**words, "done": False})
    if begun is not None:
        kept.add(words_in(place))
    training = training_at(work, last, lam, begun)
    meter, spent, began = a.problem.process.meter, a.problem.process.meter.as_dict(), time.monotonic()
    before: Document = words_in(place) if begun is not None else {"cost": {}, "elapsed_s": 0.0}

    def said(done: bool) -> Document:
        cost = {key: value - spent[key] + before["cost"].get(key, 0) for key, value in meter.as_dict().items()}
        elapsed_s = before["elapsed_s"] + time.monotonic() - began
        return {**words, "done": done, "cost": cost, "elapsed_s": elapsed_s}

    try:
        for moment in training:
            work.screen.drawing(f"fine-tuning at lambda = {lam:.3g}", moment.step, moment.steps, None)
            if moment.step % OFTEN == 0:
                write_tensors(place, training.state(), said(False))
            work.stop_if_asked()
    except NotFinite as problem:
        raise Diverged(str(problem).replace("lower.lr", "finetune.lr")) from problem
    write_tensors(place, tensors(training.model), said(True))
    now = said(True)
    kept.elapsed_s += now["elapsed_s"] - before["elapsed_s"]
    return training.process


def training_at(work: Work, last: Round, lam: float, begun: Mapping[str, Any] | None) -> Training:
    """The training before it is run."""
    a = work.assembled
    assert work.job.finetune is not None
    options: Finetune = work.job.finetune.options
    seed = a.seed.child("finetune")
    if options.method == "gradient":
        return options.gradient(a.problem.process, a.prompts, a.lower_rewards, lam, seed, state=begun)
    bank = bank_at(last.banks, lam)
    return options.tilted(a.problem.process, a.prompts, bank, lam, seed, state=begun)


def side_of(work: Work, process: Process, name: str, batch: Batch, kept: Kept) -> Side:
    """Held-out samples of these weights, with the rewards of both levels and the judges."""
    from genbo.cli.stages.holdout import evaluate_side

    a = work.assembled
    problem = replace(a.judge, process=process, rewards=(*a.problem.rewards, *a.lower_rewards))
    folder, phi = work.run.path / "evaluation", a.problem.first()
    side = evaluate_side(folder, name, problem, phi, batch, work.run.digest, kept.between, judges_said(work))
    kept.elapsed_s += side.elapsed_s
    return side


def path_kl(work: Work, process: Process, factor: float, batch: Batch, kept: Kept) -> tuple[float, float]:
    """Mean KL of the paths from those of the pretrained model, under DDIM with eta = 1, and its standard error."""
    import torch

    from genbo.bilevel.lower.finetune import noisy
    from genbo.cli.plan.counts import PATHS
    from genbo.diffusion.path_kl import sample_with_kl

    base, tuned = noisy(work.assembled.problem.process), noisy(process)
    few = type(batch)(batch.prompts[:PATHS], batch.seeds[:PATHS])

    def part(chunk: Batch) -> Tensor:
        with torch.no_grad():
            return sample_with_kl(tuned, base, chunk)[1].cpu()

    def one(chunk: Batch) -> Mapping[str, Tensor]:
        return {"kl": torch.cat(list(base.over(chunk, part)))}

    kl = kept(f"kl-{factor:g}", list(few.chunks(base.batch)), one)["kl"]
    return kl.mean().item(), kl.std().item() / math.sqrt(len(kl))
