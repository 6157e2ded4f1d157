"""Does a learned noise schedule help? Networks trained from scratch under it, held fixed, beside the default's.

    python -m benchmarks.fashion_mnist [--steps 4000] [--out figures.json]

The schedules are learned by `genbo tune examples/noise-schedule-fashion-mnist.yaml`, once from the default cosine and
once from a bad one, whose end leaves a third of the signal. Then, for each of three seeds and each schedule, a new
network is trained under that schedule alone, and 10,000 of its samples are held against the test images: Fréchet
distance of the bundled features. All but the schedule is the same, initial weights and minibatches included, so
differences are those of a seed. Intervals are Student's over the seeds; `se` is one distance's own, by its samples.
What `--out` already holds, from a run that was stopped, is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import genbo
from benchmarks.overhead import about, forget_peak, peak_gib
from genbo.bilevel.interval import student_t
from genbo.bilevel.lower.denoising import Denoising
from genbo.bilevel.training.network_trainer import NetworkContext, NetworkTrainer
from genbo.bilevel.tunables.noise_schedule import NoiseSchedule
from genbo.diffusion.data import Data
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.unet import Unet
from genbo.diffusion.process import Meter, process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Seed, batch_of
from genbo.rewards._sets import Distance
from genbo.rewards.fid import Fid

JOB = "examples/noise-schedule-fashion-mnist.yaml"
CHANNELS, SAMPLES, AT_ONCE, SEEDS = [32, 64, 64], 10_000, 1000, (0, 1, 2)
SAMPLING = (10, 50)  # steps; the schedules are learned for the first
BAD = ["tune.noise_schedule.normalised=false", "tune.noise_schedule.start={end: 0.6}"]


def learned(name: str, overrides: Sequence[str], runs: Path) -> dict[str, Any]:
    """The schedule that a job finds, as options of the tunable, and what its report says."""
    forget_peak()
    began = time.perf_counter()
    result = genbo.tune(JOB, [*overrides, f"output={runs / name}"], overwrite=True).result()
    said = result.document["phi"]["noise_schedule"]
    wanted = result.document["job"]["tune"]["noise_schedule"]
    start = {**wanted["start"], **dict(zip(said["labels"], said["tuned"], strict=True))}
    return {
        "options": {"start": start, "normalised": wanted["normalised"]},
        "headline": result.document["headline"],
        "cost": result.document["cost"],
        "seconds": time.perf_counter() - began,
        "peak_gib": peak_gib(),
    }


class Trainer:
    """One network, trained again and again from weights of its own for each seed, its recorded step kept."""

    def __init__(self, path: str, device: str) -> None:
        self.data = Data(path).open()
        self.device = device
        self.train = self.data.train.to(device)
        self.one: NetworkTrainer | None = None

    def trainer(self, seed: int) -> NetworkTrainer:
        network = Unet(channels=CHANNELS, attention=True, seed=seed, device=self.device).open(self.train)
        options = Denoising(noise_levels="schedule", batch=128, lr=1e-3, compile="on", capture="on")
        fresh = options.begin(NetworkContext(network.module, self.train.signed()))
        if self.one is None:
            self.one = fresh
        else:
            self.one.load(fresh.state())
        return self.one

    def distances(self, options: dict[str, Any], seed: int, steps: int, reward: Distance) -> dict[str, Any]:
        """Trained for so many steps, then sampled: distances, and what each half took."""
        tunable = NoiseSchedule(**options)
        schedule = tunable.schedule(tunable.first(SAMPLING[0]))
        forget_peak()
        began, trainer = time.perf_counter(), self.trainer(seed)
        trainer.meter = Meter()
        loss = trainer.train(schedule, steps, Seed(seed).child("scratch"))
        found: dict[str, Any] = {"loss": loss, "train_s": time.perf_counter() - began, **trainer.meter.as_dict()}
        batch = batch_of([""], SAMPLES, Seed(seed).child("drawn"))
        for n in SAMPLING:
            began = time.perf_counter()
            process = process_of(trainer.network(schedule), Ddim(steps=n), Plain(weight=1.0), batch=AT_ONCE)
            with torch.no_grad():
                parts = [reward.features(process.model.decode(sample(process, c))) for c in batch.chunks(AT_ONCE)]
            rows = -reward.rows(torch.cat(parts))
            found[f"fid_{n}"], found[f"se_{n}"] = rows.mean().item(), rows.std().item() / math.sqrt(SAMPLES)
            found[f"sampling_{n}_s"] = time.perf_counter() - began
        return {**found, "peak_gib": peak_gib()}


def compared(rows: list[dict[str, Any]], name: str, other: str, n: int) -> str:
    """The mean difference over the seeds, with its interval."""
    by = {(r["schedule"], r["seed"]): r[f"fid_{n}"] for r in rows}
    gaps = torch.tensor([by[name, s] - by[other, s] for s in SEEDS], dtype=torch.float64)
    half = student_t(0.975, len(SEEDS) - 1) * gaps.std().item() / math.sqrt(len(SEEDS))
    return f"{name} - {other} at {n} steps: {gaps.mean():+.3f} [{gaps.mean() - half:+.3f}, {gaps.mean() + half:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--runs", type=Path, default=Path("runs/fashion-mnist"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    known = json.loads(given.out.read_text()) if given.out and given.out.exists() else {}
    schedules: dict[str, Any] = known.get("schedules", {})
    rows: list[dict[str, Any]] = known.get("rows", [])

    def write() -> None:
        if given.out:
            found = {"about": about(), "steps": given.steps, "schedules": schedules, "rows": rows}
            given.out.write_text(json.dumps(found, indent=1) + "\n")

    if known and known["steps"] != given.steps:
        parser.error(f"{given.out} is of {known['steps']} steps; give another file, or --steps {known['steps']}")
    schedules |= {"default": {"options": {}}, "bad": {"options": {"start": {"end": 0.6}, "normalised": False}}}
    place = [f"data.path={given.data}"]
    for name, overrides in (("learned", place), ("mended", [*place, *BAD])):
        if name not in schedules:
            schedules[name] = learned(name, overrides, given.runs)
            write()
        print(name, json.dumps({k: v for k, v in schedules[name].items() if k != "cost"}), flush=True)
    trainer = Trainer(given.data, "cuda" if torch.cuda.is_available() else "cpu")
    reward = Fid("fashion-features").open(trainer.device).against(trainer.data.test.pixels)
    done = {(row["schedule"], row["seed"]) for row in rows}
    for seed in SEEDS:
        for name in (name for name in schedules if (name, seed) not in done):
            options = schedules[name]["options"]
            rows.append({"schedule": name, "seed": seed, **trainer.distances(options, seed, given.steps, reward)})
            print(json.dumps(rows[-1]), flush=True)
            write()
    for n in SAMPLING:
        for pair in (("learned", "default"), ("bad", "default"), ("mended", "default"), ("mended", "bad")):
            print(compared(rows, *pair, n))


if __name__ == "__main__":
    main()
