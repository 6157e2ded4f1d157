"""Tuned weights against the law that they are tuned for, and against reward gradients and policy gradients.

    python -m benchmarks.lambda_weights run --seed 0 --out runs/lambda-weights     one seed; seeds may run side by side
    python -m benchmarks.lambda_weights table --out runs/lambda-weights            the table of all seeds

The bundled emoji model on its 64 tuning prompts, r2 = aesthetic (or `--reward both`, with compressibility) and
r1 = clip. One bank of samples gives lambda* and the law there: its gain in r2, its change of r1, its KL. Then weights:

    adjoint   adjoint matching at lambda*, a tenth and ten times of it
    weighted  the denoising loss over the bank, its samples weighted
    gradient  the same problem as adjoint matching, by gradients through every step
    draft     gradients of r2 through the last steps of the sampler (DRaFT-K), without a KL; stopped early
    policy    policy gradients with the KL to the pretrained model (DPOK), at lambda* and a tenth of it

All but the three of adjoint matching stop where they have done as much network work as adjoint matching at lambda*. The
last two are looked at on their way as well: r1 is compared at the r2 that adjoint matching reaches. Everything is
measured on fresh seeds of the tuning prompts and on 128 held-out prompts, each sample against the pretrained model's of
the same seed. What is finished is kept: the same command goes on where an earlier one stopped.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.lambda_baselines import LastSteps, Policy
from benchmarks.lambda_weights_table import METHODS, Scores, table
from benchmarks.paper_table import Cell, spent
from genbo.bilevel.lower._measured_law import noisy
from genbo.bilevel.lower.finetune import Finetune
from genbo.bilevel.lower.reweight import Reweight
from genbo.bilevel.regularization.bank import Bank
from genbo.bilevel.regularization.bank_sampler import Sampled
from genbo.bilevel.regularization.curve import matched, optimum, trace
from genbo.bilevel.scoring import Weighted, total
from genbo.bilevel.training.finetuning import Training
from genbo.bilevel.training.memoryless import memoryless, sample_with_path_kl
from genbo.cli.job.job import read_job
from genbo.cli.run.tensors import read_tensors, write_tensors
from genbo.cli.stages.build import Assembled, assemble
from genbo.diffusion.path_kl import sample_with_kl
from genbo.diffusion.process import Process
from genbo.diffusion.sample import sample
from genbo.diffusion.seed import Batch, Seed, batch_of

REWARDS = {
    "aesthetic": "{kind: aesthetic, pretrained: emoji-style}",
    "both": "[{kind: aesthetic, pretrained: emoji-style}, {kind: compressibility, weight: 2}]",
}
LOOKS = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0)  # shares of the work at which a baseline is looked at
KL_OF_THE_PAPER_CASE = 0.33  # where no lambda is best


@dataclass(frozen=True)
class Sizes:
    """`bank`, `tuned` and `held_out` are samples a prompt; `steps` those of adjoint matching, of `rows` paths each."""

    bank: int = 64
    prompts: int = 64
    held_out_prompts: int = 128
    tuned: int = 16
    held_out: int = 8
    paths: int = 256
    fine: int = 20
    steps: int = 60
    rows: int = 64
    path_steps: int = 10
    lr: float = 1e-3
    rank: int = 16
    last: int = 2
    clip: float = 4.0


QUICK = Sizes(4, prompts=2, held_out_prompts=2, tuned=2, held_out=1, paths=2, fine=4, steps=2, rows=2, path_steps=4)


# -- what is measured --------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """The model, both rewards, the bank and lambda*, which are the same for all seeds, and the means to measure."""

    a: Assembled
    sizes: Sizes
    seed: int
    folder: Path
    kept: dict[str, Cell] = field(default_factory=dict)

    @property
    def process(self) -> Process:
        return self.a.problem.process

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.a.prompts[: self.sizes.prompts]

    @property
    def held_out(self) -> tuple[str, ...]:
        return self.a.held_out[: self.sizes.held_out_prompts]

    @cached_property
    def bank(self) -> Bank:
        file, words = self.folder / "bank.safetensors", {"samples": self.sizes.bank, "prompts": len(self.prompts)}
        found = read_tensors(file, words)
        if found is None:
            own = (self.process, self.prompts, self.a.problem.rewards, self.a.lower_rewards)
            new = Sampled(*own, Seed(0).child("bank"), samples_too=True).draw(0, self.sizes.bank, None)
            assert new.x is not None
            found = {"r1": new.r1, "r2": new.r2, "x": new.x.contiguous()}
            write_tensors(file, found, words)
        return Bank(found["r1"], found["r2"], torch.zeros_like(found["r1"]), found["x"])

    @cached_property
    def lam(self) -> tuple[float, str]:
        """The best lambda of the bank where there is one inside the bounds, or that of the usual KL; and which."""
        lower, bounds = Reweight(), self.a.strength.bounds

        def solve(lam: float, gamma: float | None = None) -> Any:
            return lower.solve(self.bank, lam, gamma)

        best = optimum(solve, self.a.slope, trace(solve, self.a.slope, bounds))
        if best.kind == "interior":
            return best.lam, "interior"
        same = matched(solve, lambda law: law.kl, KL_OF_THE_PAPER_CASE, bounds)
        return (best.lam, best.kind) if same is None else (same, f"KL {KL_OF_THE_PAPER_CASE}; the curve: {best.kind}")

    def law(self, factor: float) -> Cell:
        lam, bank = self.lam[0] * factor, self.bank
        law = Reweight().solve(bank, lam)
        gains = {name: (r.mean - getattr(bank, name).mean().item()) for name, r in (("r1", law.r1), ("r2", law.r2))}
        return {"lam": lam, **gains, "kl": law.kl.mean, "r2_se": law.r2.se, "verdict": law.fit.verdict}

    # -- samples ---------------------------------------------------------------------------------------------------

    def scores(self, process: Process, *, held_out: bool = True) -> Scores:
        s, seed = self.sizes, Seed(self.seed).child("measured")
        r1, r2 = self._scored(process, self.batch(self.prompts, s.tuned, seed.child("tuned")))
        none = torch.zeros(0, dtype=torch.float64)
        h1, h2 = (
            self._scored(process, self.batch(self.held_out, s.held_out, seed.child("held")))
            if held_out
            else (none,) * 2
        )
        return Scores(r1, r2, h1, h2)

    @staticmethod
    def batch(prompts: Sequence[str], each: int, seed: Seed) -> Batch:
        rows = [(c, n) for c in range(len(prompts)) for n in range(each)]
        return Batch(tuple(prompts[c] for c, _ in rows), tuple(seed.child(c, n).value for c, n in rows))

    def _scored(self, process: Process, batch: Batch) -> tuple[Tensor, Tensor]:
        def one(chunk: Batch) -> Tensor:
            with torch.no_grad():
                images = process.model.decode(sample(process, chunk))
                both = (self.a.problem.rewards, self.a.lower_rewards)
                return torch.stack([total(rewards, images, chunk.prompts).double().cpu() for rewards in both])

        r1, r2 = torch.cat(list(process.over(batch, one)), dim=1)
        return r1, r2

    def path_kl(self, process: Process) -> Cell:
        """Of memoryless paths in continuous time, and of the chain of DDIM with eta = 1 in the sampler's own steps."""
        few = batch_of(self.prompts, self.sizes.paths, Seed(self.seed).child("paths"))
        fine = memoryless(self.process, self.sizes.fine)
        pairs: Mapping[str, tuple[Any, Process, Process]] = {
            "kl": (sample_with_path_kl, replace(fine, model=process.model), fine),
            "kl_ddim": (sample_with_kl, noisy(process), noisy(self.process)),
        }
        told: Cell = {}
        for name, (follow, own, base) in pairs.items():

            def one(chunk: Batch, follow: Any = follow, own: Process = own, base: Process = base) -> Tensor:
                with torch.no_grad():
                    kl: Tensor = follow(own, base, chunk)[1].cpu()
                    return kl

            kl = torch.cat(list(base.over(few, one)))
            told |= {name: kl.mean().item(), f"{name}_se": kl.std().item() / math.sqrt(len(kl))}
        return told

    # -- methods ---------------------------------------------------------------------------------------------------

    def training(self, method: str, factor: float) -> Training:
        s, lam, seed = self.sizes, self.lam[0] * factor, Seed(self.seed).child("training")
        options = Finetune(steps=s.steps, batch=s.rows, lr=s.lr, rank=s.rank, path_steps=s.path_steps, clip=s.clip)
        if method == "weighted":
            return options.tilted(self.process, self.prompts, self.bank, lam, seed)
        reward = self.climbed
        if method in ("adjoint", "gradient"):
            return replace(options, method=method).by_reward(self.process, self.prompts, reward, lam, seed)
        if method == "draft":
            loss: Any = LastSteps(self.prompts, reward, s.last, s.rows, seed)
            return options._training(self.process, loss, seed, None, None)
        base = memoryless(self.process)
        usual = dict(zip(self.prompts, self.bank.r2.mean(1).tolist(), strict=True))
        loss = Policy(base, self.prompts, self.a.lower_rewards, usual, lam, s.rows, seed)
        return options._training(base, loss, seed, None, None)

    @property
    def climbed(self) -> Weighted:
        """r2, where it has a gradient."""
        return self.a.lower_rewards

    def own(self, training: Training) -> Process:
        """What is trained, under the job's own sampler."""
        return replace(self.process, model=training.model)

    def run(self, name: str) -> Cell:
        method, _, factor = name.partition("-")
        if name.startswith("adjoint"):
            return self._finished(name, method, float(factor or 1), None)
        return self._finished(name, method, float(factor or 1), self.done("adjoint")["work"])

    def _finished(self, name: str, method: str, factor: float, work: int | None) -> Cell:
        """Trains, as far as the work allows, and measures; a baseline is looked at on its way."""
        training, looks, losses = self.training(method, factor), [], []
        with spent(self.process.meter) as first:
            training, losses = self._sized(method, factor, training, work, losses)
        seconds, rows, peak = first["seconds"], first["work"], first["peak_gib"]
        marks = [round(share * training.pace.steps) for share in LOOKS] if method in ("draft", "policy") else []
        steps: Iterator[Any] = iter(training)
        while training.step < training.pace.steps:
            until = next((m for m in marks if m > training.step), training.pace.steps)
            with spent(self.process.meter) as cost:
                while training.step < until:
                    losses.append(next(steps).loss)
            seconds, rows, peak = seconds + cost["seconds"], rows + cost["work"], max(peak, cost["peak_gib"])
            if marks:
                looks.append({"step": training.step, "work": rows})
                self.keep(f"{name}@{len(looks)}", self.scores(self.own(training), held_out=False))
        process = self.own(training)
        self.keep(name, self.scores(process))
        told = {"method": name, "lam": self.lam[0] * factor, "factor": factor, "seconds": seconds, "work": rows}
        return {
            **told,
            "peak_gib": peak,
            "steps": training.step,
            "looks": looks,
            "losses": losses,
            **self.path_kl(process),
        }

    def _sized(
        self, method: str, factor: float, training: Training, work: int | None, losses: list[float]
    ) -> tuple[Training, list[float]]:
        """With as many steps as make this work, told by the cost of the first."""
        if work is None:
            return training, losses
        with spent(self.process.meter) as cost:
            next(iter(training))
        steps = max(1, round(work / cost["work"]))
        training = self.training(method, factor)
        training.pace = replace(training.pace, steps=steps)
        return training, losses

    # -- keeping ---------------------------------------------------------------------------------------------------

    def keep(self, name: str, scores: Scores) -> None:
        write_tensors(self.folder / f"seed-{self.seed}" / f"{name}.safetensors", scores.tensors(), {})

    def kept_scores(self, name: str) -> Scores:
        found = read_tensors(self.folder / f"seed-{self.seed}" / f"{name}.safetensors", {})
        assert found is not None
        return Scores(**found)

    def done(self, name: str, make: Callable[[], Cell] | None = None) -> Cell:
        file = self.folder / f"seed-{self.seed}" / f"{name}.json"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            cell = make() if make else self.run(name)
            file.write_text(json.dumps(cell))
        found: Cell = json.loads(file.read_text())
        return found


def run(asked: argparse.Namespace, sizes: Sizes) -> None:
    given = ["prompts=emoji-tuning", f"lower.reward={REWARDS[asked.reward]}", *asked.set]
    folder = asked.out / asked.reward
    bench = Bench(assemble(read_job("examples/regularization.yaml", given)), sizes, asked.seed, folder)
    (folder / f"seed-{asked.seed}").mkdir(parents=True, exist_ok=True)
    lam, kind = bench.lam
    bench.done("about", lambda: {"lam": lam, "kind": kind, "sizes": asdict(sizes), **_laws(bench)})
    bench.done("start", lambda: bench.keep("start", bench.scores(bench.process)) or {})
    for method in asked.methods:
        cell = bench.done(method)
        print(
            asked.seed, method, json.dumps({k: v for k, v in cell.items() if k not in ("losses", "looks")}), flush=True
        )
    print(table(asked.out))


def _laws(bench: Bench) -> Cell:
    return {"laws": {f"{factor:g}": bench.law(factor) for factor in (1.0, 0.1, 10.0)}}


# -- the command -------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    if asked.what == "table":
        print(table(asked.out))
        return
    sizes = QUICK if asked.quick else Sizes()
    given = {name: getattr(asked, name) for name in SETTABLE if getattr(asked, name) is not None}
    run(asked, replace(sizes, **given))


SETTABLE = ("steps", "rows", "path_steps", "lr", "rank", "last", "clip")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reward", choices=REWARDS, default="aesthetic")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS[:-2])
    parser.add_argument("--quick", action="store_true", help="a few samples: a smoke test")
    parser.add_argument("--set", action="append", default=[], help="a change of the job, as in genbo tune")
    parser.add_argument("--out", type=Path, default=Path("runs/lambda-weights"))
    for name in SETTABLE:
        parser.add_argument(f"--{name.replace('_', '-')}", type=float if name in ("lr", "clip") else int, default=None)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
