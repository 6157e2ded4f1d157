"""The paper's table of the noise schedule: bilevel, searches and the fixed default, each network trained from scratch.

    make paper-schedule                      scikit-learn's digits, three seeds
    make paper-schedule QUICK=1              the same in a minute or two, one seed: a smoke test
    make paper-schedule DATA=path FEATURES=fashion-features     your own images, through a network that suits them

`start`, `end` and `tau` of the cosine are found for sampling in a few steps of DDIM; the curve is not normalised, as in
the paper. (The paper's fourth, epsilon, is `start` and `end` by another name: `schedules/cosine.py`.)

| method     | schedule                                                     | a trial costs          |
|------------|--------------------------------------------------------------|------------------------|
| bilevel    | `genbo tune`: one network for every schedule, then gradients | (no trials)            |
| grid       | 12 points: as many as a grid of three numbers has below 15   | a network from scratch |
| random, gp | 15 trials, as the paper's Bayesian baseline                  | a network from scratch |
| fixed      | the default cosine                                           | (no trials)            |

A trial is scored by KID to the validation images, as the job steers. The table is of networks trained from scratch
under each schedule, with one budget, the same initial weights and minibatches in a seed, against the test images. The
paper's weighted sum, guided sampling and CLIP score are about prompts; a schedule for digits has none.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import genbo
from benchmarks.paper_table import COST, Cell, Cells, Searching, Table, best, machine, spent, together
from genbo.bilevel.lower.denoising import Denoising
from genbo.bilevel.training.network_trainer import NetworkContext, NetworkTrainer
from genbo.bilevel.trials import Candidate, Space
from genbo.bilevel.tunables.noise_schedule import NoiseSchedule
from genbo.cli.report import number_format
from genbo.diffusion.data import Data
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.unet import Unet
from genbo.diffusion.process import Meter, process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Seed, batch_of
from genbo.rewards.fid import Fid
from genbo.rewards.inception_score import InceptionScore
from genbo.rewards.kid import Kid

JOB = "examples/noise-schedule-digits.yaml"
NAMES = ["start", "end", "tau"]
METHODS = {
    "fixed": "fixed: the default cosine",
    "grid": "grid",
    "random": "random",
    "gp": "Bayesian",
    "tpe": "TPE",
    "bilevel": "bilevel",
}
COLUMNS = {
    **{name: name for name in NAMES},
    "fid": "FID ↓",
    "inception": "inception score ↑",
    "reward": "reward (−KID) ↑",
    **COST,
}


@dataclass(frozen=True)
class Sizes:
    """`train` steps for every network from scratch, and for the one that serves all schedules in `genbo tune`."""

    seeds: int = 3
    calls: int = 15
    train: int = 150
    batch: int = 64
    channels: tuple[int, ...] = (16, 32)
    sampler_steps: int = 6
    tune_steps: int = 12
    samples: int = 128
    held_out: int = 512


QUICK = Sizes(seeds=1, calls=12, train=4, batch=16, channels=(8, 8), tune_steps=2, samples=32, held_out=32)


class Bench:
    """Networks from scratch on one data set, and how good their samples are."""

    def __init__(self, asked: argparse.Namespace, sizes: Sizes) -> None:
        self.sizes, self.path, self.features, self.out = sizes, asked.data, asked.features, asked.out
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.data = Data(asked.data).open()
        self.meter = Meter()
        self.tunable = NoiseSchedule(parameters=NAMES, normalised=False)

    @cached_property
    def steering(self) -> Any:
        return Kid(self.features).open(self.device).against(self.data.validation.pixels)

    @cached_property
    def judging(self) -> dict[str, Any]:
        test = self.data.test.pixels
        distances = {name: kind(self.features).open(self.device).against(test) for name, kind in DISTANCES.items()}
        return {**distances, "inception": InceptionScore(self.features).open(self.device)}

    def schedule_at(self, candidate: Candidate) -> dict[str, float]:
        """Shares of the ranges -> the parameters; a range of logarithms is shared by the logarithm."""
        found = {}
        for name, share in zip(NAMES, candidate.shares, strict=True):
            link: Any = self.tunable.links[name]
            low, high = link.low, link.high
            found[name] = low * (high / low) ** share if link.log else low + (high - low) * share
        return found

    def scratch(self, schedule: dict[str, float], seed: int, samples: int, role: str) -> torch.Tensor:
        """Images (N, C, H, W) of a network that was trained under this schedule alone."""
        sizes = self.sizes
        tunable = replace(self.tunable, start=schedule)
        curve = tunable.schedule(tunable.first(sizes.sampler_steps))
        trainer = self._trainer(seed)
        trainer.train(curve, sizes.train, Seed(seed).child("scratch"))
        process = process_of(
            trainer.network(curve), Ddim(steps=sizes.sampler_steps), Plain(weight=1.0), batch=min(samples, 256)
        )
        process = replace(process, meter=self.meter)
        batch = batch_of([""], samples, Seed(seed).child(role))
        with torch.no_grad():
            return torch.cat(list(process.over(batch, lambda chunk: process.model.decode(sample(process, chunk)))))

    def _trainer(self, seed: int) -> NetworkTrainer:
        sizes, train = self.sizes, self.data.train.to(self.device)
        network = Unet(channels=list(sizes.channels), seed=seed, device=self.device).open(train)
        options = Denoising(
            noise_levels="schedule", batch=sizes.batch, lr=2e-3, warmup=sizes.train // 10 + 1, ema=0.98, compile="off"
        )
        trainer: NetworkTrainer = options.begin(NetworkContext(network.module, train.signed()))
        trainer.meter = self.meter
        return trainer

    def score(self, schedule: dict[str, float], seed: int) -> float:
        images = self.scratch(schedule, seed, self.sizes.samples, "trial")
        return float(self.steering(images).mean())

    def metrics(self, schedule: dict[str, float], seed: int) -> Cell:
        images = self.scratch(schedule, seed, self.sizes.held_out, "held-out")
        with torch.no_grad():
            found = {name: float(reward(images).mean()) for name, reward in self.judging.items()}
        return {**schedule, "fid": -found["fid"], "inception": found["inception"], "reward": found["reward"]}


DISTANCES: dict[str, Any] = {"fid": Fid, "reward": Kid}


# -- methods -----------------------------------------------------------------------------------------------------------


def row(bench: Bench, cells: Cells, seed: int, method: str) -> Cell:
    ways = {"fixed": fixed, "bilevel": bilevel}
    run = ways.get(method)
    way = (lambda: run(bench, seed)) if run else (lambda: searched(bench, cells, seed, method))
    return cells.once("row", way, method=method, seed=seed)


def fixed(bench: Bench, seed: int) -> Cell:
    """Nothing is looked for."""
    return {**bench.metrics({"start": 0.0, "end": 1.0, "tau": 1.0}, seed), **together([])}


def bilevel(bench: Bench, seed: int) -> Cell:
    """`genbo tune` on the digits' example, from the default cosine."""
    with spent() as cost:
        result = genbo.tune(JOB, overrides(bench, seed), overwrite=True).result()
    used = result.document["cost"]
    cost["work"] = used["image_forwards"] + 2 * used.get("image_backwards", 0)
    said = result.document["phi"]["noise_schedule"]
    schedule = dict(zip(said["labels"], map(float, said["tuned"]), strict=True))
    return {**bench.metrics(schedule, seed), **together([cost]), "headline": result.document["headline"]}


def overrides(bench: Bench, seed: int) -> list[str]:
    """The example's job at these sizes."""
    sizes = bench.sizes
    names, channels = ", ".join(NAMES), ", ".join(map(str, sizes.channels))
    return [
        f"data={bench.path}",
        f"seed={seed}",
        f"output={bench.out / f'tune-{seed}'}",
        f"model.channels=[{channels}]",
        f"model.sampler={{kind: ddim, steps: {sizes.sampler_steps}}}",
        f"tune.noise_schedule={{family: cosine, parameters: [{names}], normalised: false}}",
        f"lower={{kind: denoising, pretrain: {sizes.train}, batch: {sizes.batch}, lr: 2e-3, "
        f"warmup: {sizes.train // 10 + 1}, ema: 0.98}}",
        f"reward={{kind: kid, features: {bench.features}}}",
        f"budget={{steps: {sizes.tune_steps}, samples: {sizes.samples}}}",
        "evaluate={samples: 32}",
        "optimizer=adam",  # gradients, as the paper has it: auto would take a search
    ]


def searched(bench: Bench, cells: Cells, seed: int, method: str) -> Cell:
    """The best schedule of the trials, and its network once more for the test images."""

    def trial(candidate: Candidate) -> float:
        return bench.score(bench.schedule_at(candidate), seed)

    space = Space(tuple(NAMES))
    trials = Searching(cells, seed, method, space, bench.sizes.calls, bench.meter, trial).trials()
    schedule = bench.schedule_at(best(trials))
    return {**bench.metrics(schedule, seed), **together(trials), "calls": len(trials)}


# -- the command -------------------------------------------------------------------------------------------------------


def table_of(sizes: Sizes, cells: Cells, data: str) -> Table:
    note = (
        f"`{Path(data).name}`, a U-Net of channels {list(sizes.channels)} trained for {sizes.train} steps of "
        f"{sizes.batch}, {sizes.sampler_steps} steps of DDIM; {number_format.plural(sizes.seeds, 'seed')}, ± half the "
        f"95 % interval (Student's, over seeds); {sizes.held_out} samples against the test images. Seconds and network "
        "rows are those of finding the schedule, without the network that is trained under it at last, which all "
        "methods need. Seconds mean nothing where other programs ran beside; network rows count a backward row twice. "
        f"Measured on {machine(cells)}."
    )
    title = "Noise schedule: bilevel against search"
    return Table(title, note, METHODS, COLUMNS, against="bilevel", gap="fid")


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    sizes = QUICK if asked.quick else replace(Sizes(), seeds=asked.seeds, train=asked.train)
    cells = Cells(asked.out, {**asdict(sizes), "data": asked.data, "features": asked.features})
    table, bench = table_of(sizes, cells, asked.data), Bench(asked, sizes)
    for seed in range(sizes.seeds):
        for method in asked.methods:
            row(bench, cells, seed, method)
            table.write(asked.out, cells)
    print(table.write(asked.out, cells))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and few steps: a smoke test")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=Sizes.train, help="steps of every network")
    parser.add_argument("--data", default="digits", help="a folder of images, or idx files")
    parser.add_argument("--features", default="digits-features", help="a classifier that suits the data")
    usual = [method for method in METHODS if method != "tpe"]
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=usual)
    parser.add_argument("--out", type=Path, default=Path("runs/paper-schedule"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
