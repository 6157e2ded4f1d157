"""The paper's table of the KL strength: bilevel, searches, a weighted sum, guided sampling and fixed lambda.

    make paper-lambda                                   the bundled model, three seeds
    make paper-lambda QUICK=1                           the same in a minute or two, one seed: a smoke test
    make paper-lambda MODEL=path/to/stable-diffusion    your own model, with a CLIP of open_clip (CLIP=folder)

Each method finds its lambda for tuning by r2 (lower level) so that r1, the CLIP score, is highest (upper level):

| method       | lambda                                                                     | a trial costs            |
|--------------|----------------------------------------------------------------------------|--------------------------|
| bilevel      | read from the curve over a bank of samples, as `genbo tune` does           | (no trials)              |
| grid         | five values even in log lambda, ends included, as in the paper             | a fine-tune, and samples |
| random, gp   | 6 trials                                                                   | a fine-tune, and samples |
| weighted sum | fixed; r1 + r2 is tuned for, each in units of its spread                   | (no trials)              |
| guided       | fixed; nothing is trained, samples climb r2 / lambda (differentiable part) | (no trials)              |
| fixed        | the geometric middle of the bounds                                         | (no trials)              |

Everybody fine-tunes with the same steps, learning rate and initial weights, on the same bank of pretrained samples,
which every method that uses it pays for. Trials see the tuning prompts with one set of noise; the table is of held-out
prompts. Frechet distances are to other samples of the pretrained model for the same prompts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.paper_table import COST, Cell, Cells, Searching, Table, best, machine, spent, together
from genbo.bilevel.lower.finetune import Finetune
from genbo.bilevel.lower.guided import Guided, climbed
from genbo.bilevel.regularization.bank import Bank
from genbo.bilevel.regularization.bank_sampler import Sampled
from genbo.bilevel.regularization.search import SearchBudget, search
from genbo.bilevel.scoring import total
from genbo.bilevel.trials import Candidate, Space
from genbo.cli.job.job import read_job
from genbo.cli.report import number_format
from genbo.cli.run.tensors import read_tensors, write_tensors
from genbo.cli.stages.build import Assembled, assemble
from genbo.diffusion.process import Process
from genbo.diffusion.sample import sample
from genbo.diffusion.seed import Batch, Seed, batch_of
from genbo.rewards.fid import Fid
from genbo.rewards.inception_score import InceptionScore

SPACE = Space(("lambda",))
MOST = 0.3  # the longest move of a guided step, as in lower: {kind: guided}
METHODS = {
    "pretrained": "pretrained",
    "fixed": "fixed λ",
    "grid": "grid",
    "random": "random",
    "gp": "Bayesian",
    "tpe": "TPE",
    "weighted_sum": "weighted sum",
    "guided": "guided sampling",
    "bilevel": "bilevel",
}
COLUMNS = {
    "lam": "λ",
    "fid": "FID ↓",
    "r1": "CLIP (r1) ↑",
    "inception": "inception score ↑",
    "r2": "reward (r2) ↑",
    **COST,
}
EMOJI_PROMPTS = ("key", "noto honey pot", "hole", "flat hammer", "shaved ice", "3d firefighter")
PROMPTS = ["a red bicycle in the rain", "a bowl of oranges", "an old lighthouse", "a cat asleep on a sofa"]
HELD_OUT = [
    *("a wooden boat on a lake", "a glass of milk", "a snowy street at night", "a dog with a blue ball"),
    *("a plate of pasta", "a tractor in a field", "a stone bridge", "a vase of tulips"),
]
CLIP = "ViT-B-32/laion2b_s34b_b79k"  # architecture and tag of open_clip's, or a folder


@dataclass(frozen=True)
class Sizes:
    """`bank` and `each` are samples a prompt, `grid` and `calls` trials; the rest counts what the names say."""

    seeds: int = 3
    sampler_steps: int = 6
    bank: int = 96
    each: int = 6
    grid: int = 5
    calls: int = 6
    finetune_steps: int = 20
    finetune_rows: int = 16
    finetune_lr: float = 1e-3
    held_out_prompts: int = 24
    held_out: int = 96
    reference: int = 192


QUICK = Sizes(1, 4, bank=12, each=2, grid=2, calls=3, finetune_steps=2, held_out_prompts=6, held_out=12, reference=12)


# -- the job -----------------------------------------------------------------------------------------------------------


def job_of(asked: argparse.Namespace, sizes: Sizes) -> Assembled:
    """The example's model and rewards, or the user's model with compressibility as r2 and a CLIP as r1."""
    sampler = f"model.sampler={{kind: dpmpp, steps: {sizes.sampler_steps}}}"
    if not asked.model:
        few = f"prompts=[{', '.join(EMOJI_PROMPTS)}]"  # as every trial is a fine-tune
        return assemble(read_job("examples/regularization.yaml", [sampler, few, *asked.set]))
    name, _, tag = asked.clip.partition("/")
    folder = Path(asked.clip).is_dir()
    clip = {"pretrained": asked.clip} if folder else {"model": name, "pretrained": tag}
    job = {
        "version": 1,
        "model": {"pretrained": asked.model, "sampler": {"kind": "dpmpp", "steps": 20}, "guidance": 7.5},
        "prompts": PROMPTS,
        "tune": {"regularization": {"start": 1.0, "bounds": [0.05, 50]}},
        "reward": {"kind": "clip", **clip},
        "lower": {"kind": "reweight", "reward": {"kind": "compressibility"}, "bridge": False},
        "finetune": "none",
        "evaluate": {"prompts": HELD_OUT},
        "output": "runs/paper-lambda-job",
    }
    return assemble(read_job(job, asked.set))


def features_of(asked: argparse.Namespace) -> dict[str, str]:
    """The network that the Frechet distance and the inception score look through; on the stand-in not the reward's."""
    if not asked.model:
        return {"features": "emoji-judge"}
    name, _, tag = asked.clip.partition("/")
    return {"features": asked.clip} if Path(asked.clip).is_dir() else {"features": f"clip:{name}", "weights": tag}


# -- what is measured --------------------------------------------------------------------------------------------------


class Bench:
    """The model with both rewards, the held-out prompts and the reference of the distances."""

    def __init__(self, a: Assembled, sizes: Sizes, look: dict[str, str], folder: Path) -> None:
        self.a, self.sizes, self.folder, self.look = a, sizes, folder, look
        self.process, self.device = a.problem.process, a.problem.process.model.device
        own = list(dict.fromkeys(a.held_out))
        self.held_out = own[:: max(1, len(own) // sizes.held_out_prompts)][: sizes.held_out_prompts]
        self.inception = InceptionScore(**look, classes=self.held_out).open(self.device)
        self.low, self.high = a.strength.bounds

    def lam(self, share: float) -> float:
        """A share of the range of log lambda -> lambda."""
        return self.low * (self.high / self.low) ** share

    @property
    def fixed(self) -> float:
        return self.lam(0.5)

    @cached_property
    def fid(self) -> Any:
        """The distance to samples of the pretrained model, drawn once and kept."""
        file = self.folder / "reference.safetensors"
        kept = read_tensors(file, {})
        if kept is None:
            images = self.images(self.process, self.sizes.reference, Seed(0).child("reference"), self.held_out)
            kept = {"images": (images * 255).round().to(torch.uint8).contiguous()}
            write_tensors(file, kept, {})
        return Fid(**self.look).open(self.device).against(kept["images"], self.folder / "features")

    def images(self, process: Process, samples: int, seed: Seed, prompts: Sequence[str]) -> Tensor:
        """(N, C, H, W) on the CPU."""
        return torch.cat(list(process.over(batch_of(prompts, samples, seed), lambda chunk: drawn(process, chunk))))

    def score(self, process: Process, seed: int) -> float:
        """The mean of r1 on the tuning prompts, on noise that all trials of a seed share."""
        prompts = self.a.prompts
        batch = batch_of(prompts, self.sizes.each * len(prompts), Seed(seed).child("trial"))

        def one(chunk: Batch) -> Tensor:
            with torch.no_grad():
                return total(self.a.problem.rewards, drawn(process, chunk).to(self.device), chunk.prompts).cpu()

        return float(torch.cat(list(process.over(batch, one))).mean())

    def metrics(self, process: Process, seed: int) -> Cell:
        """On held-out prompts and noise, the same for all methods of a seed."""
        batch = batch_of(self.held_out, self.sizes.held_out, Seed(seed).child("held-out"))
        with spent(process.meter) as cost, torch.no_grad():
            images = torch.cat(list(process.over(batch, lambda chunk: drawn(process, chunk))))
        parts = [(images[at].to(self.device), batch.part(at).prompts) for at in _slices(len(images), process.batch)]
        with torch.no_grad():
            both = [
                torch.cat([total(rewards, x, prompts).cpu() for x, prompts in parts]).mean().item()
                for rewards in (self.a.problem.rewards, self.a.lower_rewards)
            ]
            sets = [
                reward.rows(torch.cat([reward.features(x) for x, _ in parts])).mean().item()
                for reward in (self.fid, self.inception)
            ]
        told = {"r1": both[0], "r2": both[1], "fid": -sets[0], "inception": sets[1]}
        return {**told, "seconds_per_image": cost["seconds"] / len(images)}


def drawn(process: Process, batch: Batch) -> Tensor:
    with torch.no_grad():
        return process.model.decode(sample(process, batch)).float().cpu()


def _slices(number: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, number)) for at in range(0, number, size)]


# -- methods -----------------------------------------------------------------------------------------------------------


class OneSeed:
    """All methods of one seed."""

    def __init__(self, bench: Bench, cells: Cells, seed: int) -> None:
        self.bench, self.cells, self.seed = bench, cells, seed
        a, process = bench.a, bench.process
        self.source = Sampled(
            process, a.prompts, a.problem.rewards, a.lower_rewards, Seed(seed).child("search"), False, samples_too=True
        )

    @cached_property
    def bank(self) -> Bank:
        """Samples of the pretrained model with both rewards, kept in a file."""
        file = self.bench.folder / f"bank-{self.seed}.safetensors"
        kept = read_tensors(file, {})
        if kept is None:
            with spent(self.bench.process.meter) as cost:
                new = self.source.draw(0, self.bench.sizes.bank, None)
            assert new.x is not None
            kept = {"r1": new.r1, "r2": new.r2, "x": new.x.contiguous()}
            self.cells.once("shared", lambda: cost, what="bank", seed=self.seed)
            write_tensors(file, kept, {})
        return Bank(kept["r1"], kept["r2"], torch.zeros_like(kept["r1"]), kept["x"])

    @property
    def bank_cost(self) -> Cell:
        """Of drawing the bank, which every method pays that uses it."""
        return self.cells.of("shared", what="bank", seed=self.seed)[0]

    def trained(self, lam: float, bank: Bank | None = None) -> Process:
        """The lower level at lambda: weights fine-tuned towards the tilt."""
        sizes, bench = self.bench.sizes, self.bench
        options = Finetune(steps=sizes.finetune_steps, batch=sizes.finetune_rows, lr=sizes.finetune_lr)
        seed = Seed(self.seed).child("finetune")
        return options.tilted(bench.process, bench.a.prompts, bank or self.bank, lam, seed).run()

    def row(self, method: str) -> Cell:
        ways = {"pretrained": self.pretrained, "fixed": self.fixed, "weighted_sum": self.weighted_sum}
        ways |= {"guided": self.guided, "bilevel": self.bilevel}
        run = ways.get(method) or (lambda: self.searched(method))
        return self.cells.once("row", run, method=method, seed=self.seed)

    def pretrained(self) -> Cell:
        return {**self.bench.metrics(self.bench.process, self.seed), **together([])}

    def fixed(self) -> Cell:
        return self._finetuned(self.bench.fixed, self.bank)

    def weighted_sum(self) -> Cell:
        bank = self.bank
        weight = (_spread(bank.r2) / _spread(bank.r1)).item()
        return {"weight": weight, **self._finetuned(self.bench.fixed, replace(bank, r2=bank.r2 + weight * bank.r1))}

    def _finetuned(self, lam: float, bank: Bank) -> Cell:
        with spent(self.bench.process.meter) as cost:
            process = self.trained(lam, bank)
        return {"lam": lam, **self.bench.metrics(process, self.seed), **together([self.bank_cost, cost])}

    def guided(self) -> Cell:
        """What has no gradient cannot be climbed, and is left out of r2."""
        bench = self.bench
        lower = [(weight, reward) for weight, reward in bench.a.lower_rewards if reward.differentiable]
        if not lower:
            return {"lam": bench.fixed, **bench.metrics(bench.process, self.seed), **together([])}
        steered = Guided(most=MOST).steered(bench.process, climbed([], lower), bench.fixed)
        return {"lam": bench.fixed, **bench.metrics(steered, self.seed), **together([])}

    def bilevel(self) -> Cell:
        """As `genbo tune` does it: the optimum of the curve over lambda, then one fine-tune there."""
        bench, a, bank = self.bench, self.bench.a, self.bank
        with spent(bench.process.meter) as cost:
            budget = SearchBudget(bank.samples, 1, a.lower.drawing.precision)
            (last,) = search(self.source, a.lower, a.slope, a.strength.bounds, budget, (bank,))
            found = last.optimum
            if found is None:
                raise SystemExit(f"the search for lambda ended without an answer: {last.reason}")
            process = self.trained(found.lam)
        told = {"lam": found.lam, "kind_of_optimum": found.kind, "interval": found.interval, "verdict": found.verdict}
        return {**told, **bench.metrics(process, self.seed), **together([self.bank_cost, cost])}

    def searched(self, method: str) -> Cell:
        bench, sizes, bank = self.bench, self.bench.sizes, self.bank

        def trial(candidate: Candidate) -> float:
            return bench.score(self.trained(bench.lam(candidate.shares[0]), bank), self.seed)

        calls = sizes.grid if method == "grid" else sizes.calls
        trials = Searching(self.cells, self.seed, method, SPACE, calls, bench.process.meter, trial).trials()
        lam = bench.lam(best(trials).shares[0])
        told = bench.metrics(self.trained(lam), self.seed)  # the same weights as in its trial
        return {"lam": lam, "calls": len(trials), **told, **together([self.bank_cost, *trials])}


def _spread(r: Tensor) -> Tensor:
    """Within a prompt."""
    return (r - r.mean(1, keepdim=True)).square().mean().sqrt()


# -- the command -------------------------------------------------------------------------------------------------------


def table_of(sizes: Sizes, cells: Cells, model: str) -> Table:
    seeds = number_format.plural(sizes.seeds, "seed")
    note = (
        f"{model}; {seeds}, ± half the 95 % interval (Student's, over seeds). Fine-tunes of {sizes.finetune_steps} "
        f"steps of {sizes.finetune_rows} rows on a bank of {sizes.bank} samples a prompt; {sizes.held_out} held-out "
        f"samples of {sizes.held_out_prompts} prompts. FID: to {sizes.reference} other samples of the pretrained "
        "model, whose own row shows how much of it is chance. Seconds are those of finding λ and tuning the weights, "
        "and mean nothing where other programs ran beside; network rows count a backward row twice. Guided sampling "
        f"trains nothing and pays for each image. Measured on {machine(cells)}."
    )
    title = "KL strength: bilevel against search"
    return Table(title, note, METHODS, COLUMNS, against="bilevel", gap="r1")


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    sizes = QUICK if asked.quick else replace(Sizes(), seeds=asked.seeds)
    asked.out.mkdir(parents=True, exist_ok=True)
    model = asked.model or "emoji"
    cells = Cells(asked.out, {**asdict(sizes), "model": model, "set": asked.set})
    table = table_of(sizes, cells, f"Model `{Path(model).name}`")
    bench = Bench(job_of(asked, sizes), sizes, features_of(asked), asked.out)
    for seed in range(sizes.seeds):
        one = OneSeed(bench, cells, seed)
        for method in asked.methods:
            one.row(method)
            table.write(asked.out, cells)
    print(table.write(asked.out, cells))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and few samples: a smoke test")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="", help="a diffusers folder of your own; the bundled emoji without")
    parser.add_argument("--clip", default=CLIP, help="with --model: architecture/tag of open_clip's, or a folder")
    parser.add_argument("--set", action="append", default=[], help="a change of the job, as in genbo tune")
    usual = [method for method in METHODS if method != "tpe"]
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=usual)
    parser.add_argument("--out", type=Path, default=Path("runs/paper-lambda"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
