"""What one outer iteration of schedule learning costs, at the settings of the method's released code.

    python -m benchmarks.schedule_cost [--out figures.json]

Ten training steps of 128 images, then a two-point difference along one random direction: 36 samples on each side, 50
steps of DDIM, a Fréchet distance of InceptionV3's features, whose weights are random here (their values cost nothing).
The network has about 1.1 M weights and sees 28 x 28 pixels. What is counted must be what was meant; the time is that of
the loop between two of its steps, with the device waited for, the median after a few.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from genbo.bilevel.estimators.zeroth_order import ZerothOrder
from genbo.bilevel.loop import Budget, tune
from genbo.bilevel.lower.denoising import Denoising
from genbo.bilevel.optimizers.adam import Adam
from genbo.bilevel.problem import Problem
from genbo.bilevel.training.network_trainer import NetworkContext
from genbo.bilevel.training.schedule_response import ScheduleResponse
from genbo.bilevel.tunables.noise_schedule import NoiseSchedule
from genbo.diffusion.data import Data
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.unet import Unet
from genbo.diffusion.process import process_of
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Seed
from genbo.rewards._inception import Inception
from genbo.rewards.fid import Fid

TRAINED, MINIBATCH, SAMPLES, STEPS = 10, 128, 36, 50
WARM_UP, MEASURED = 3, 10
RELEASED_S = 16.5  # an outer iteration of the released code, measured on one H200
PARAMETERS = ["start", "end", "tau", "eps"]
WAYS: dict[str, dict[str, Any]] = {
    "eager": {"compile": "off", "capture": "off"},
    "captured": {"compile": "off", "capture": "on"},
    "compiled and captured": {"compile": "on", "capture": "on"},
}


def random_inception(folder: Path) -> str:
    torch.manual_seed(0)
    file = folder / "inception.safetensors"
    save_file(Inception().network.state_dict(), file)
    return str(file)


def problem(way: dict[str, Any], reward: Fid, device: str) -> Problem:
    """The whole of it, as a job would have it."""
    splits = Data("digits", size=28).open()
    network = Unet(channels=[32, 64, 64], attention=True, device=device).open(splits.train)
    options = Denoising(batch=MINIBATCH, steps=TRAINED, **way)
    trainer = options.begin(NetworkContext(network.module, splits.train.to(network.device).signed()))
    tunable = NoiseSchedule(parameters=PARAMETERS)
    learning = ScheduleResponse(trainer, tunable.schedule, tunable.schedule(tunable.first(STEPS)))
    process = process_of(learning.model(), Ddim(steps=STEPS), Plain(weight=1.0), batch=2 * SAMPLES)
    trainer.meter = process.meter
    distance = reward.open(network.device).against(splits.validation.pixels)
    return Problem(process, (tunable,), ((1.0, distance),), learning=learning)


def measure(p: Problem) -> dict[str, Any]:
    """Seconds of an iteration, and what it counted."""
    estimator = ZerothOrder(directions="random", count=1)
    steps = tune(p, estimator, Adam(lr=0.01), [""], Budget(WARM_UP + MEASURED, SAMPLES), Seed(0))
    seconds, before = [], p.process.meter.as_dict()
    for number in range(WARM_UP + MEASURED):
        began, before = time.perf_counter(), p.process.meter.as_dict()
        next(steps)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - began)
    spent = {key: value - before[key] for key, value in p.process.meter.as_dict().items()}
    planned = {
        "denoiser_calls": TRAINED + STEPS,
        "image_forwards": TRAINED * MINIBATCH + STEPS * 2 * SAMPLES,
        "reward_images": 2 * SAMPLES,
    }
    assert spent == planned, (spent, planned)
    return {"seconds": statistics.median(seconds), "fastest": min(seconds), "slowest": max(seconds), **spent}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    out = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = []
    with tempfile.TemporaryDirectory() as folder:
        weights = random_inception(Path(folder))
        for way in out.ways:
            for name, reward in (
                ("inception", Fid("inception", weights)),
                ("fashion-features", Fid("fashion-features")),
            ):
                row = {"way": way, "features": name, **measure(problem(WAYS[way], reward, device))}
                row["released / this"] = RELEASED_S / row["seconds"]
                found.append(row)
                print(json.dumps(row), flush=True)
    if device == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on {torch.cuda.get_device_name()}")
    if out.out:
        out.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
