"""Pipelines of `published`, measured part by part: what `benchmarks.full_size` runs in processes of their own.

    python -m benchmarks.full_size_one sd15 --until 1893456000 --out sd15.json [--parts eager compiled] [--tiny]

What is found is written after every part. A part that fails leaves its error there, and one that would not end before
`--until`, in seconds since 1970, is left out: how long it takes is known from the samplings timed first.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import torch

from benchmarks.overhead import about, forget_peak, measure, peak_gib, seconds
from benchmarks.published import FULL, Published, tiny
from genbo.bilevel.estimators.covariance import Covariance
from genbo.bilevel.estimators.zeroth_order import ZerothOrder
from genbo.bilevel.loop import Budget, TuningStep, tune
from genbo.bilevel.lower.reweight import Reweight
from genbo.bilevel.optimizers.adam import Adam
from genbo.bilevel.optimizers.bisection import Bisection
from genbo.bilevel.problem import Problem
from genbo.bilevel.regularization.bank import Bank, mistakes
from genbo.bilevel.regularization.bank_sampler import Sampled
from genbo.bilevel.regularization.search import walk
from genbo.bilevel.regularization.tilted import Law
from genbo.bilevel.scoring import Weighted
from genbo.bilevel.tunables.regularization import Regularization
from genbo.diffusion.load import quicken
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.process import Process, process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.seed import Batch, Seed, batch_of
from genbo.rewards.quadratic import Quadratic

PROMPTS = ("a red apple", "a dog")
SAMPLES = 8  # of an outer step, and of a bank

Figures = dict[str, Any]


@dataclass
class Bench:
    """A pipeline on its device, and what has been found of it."""

    published: Published
    device: torch.device
    found: dict[str, Figures] = field(default_factory=dict)
    model: Any = None

    def process(self, images: int, steps: int | None = None) -> Process:
        """On a meter and with memory of its own; `images` at once, at most."""
        sampler = self.published.sampler
        sampler = sampler if steps is None else replace(sampler, steps=steps)  # type: ignore[type-var]
        return process_of(self.model, sampler, self.published.rule, batch=images)

    def reward(self, *colour: float) -> Weighted:
        """How near an image is to one colour; nothing leaves the device but the scores."""
        height, width = self.model.pixels
        return [(1.0, Quadratic(list(colour), scale=1 / (3 * height * width)).open(self.device))]

    def image_s(self) -> float:
        """Seconds an image, as timed; 0 where that failed."""
        timed = self.found.get("eager", {})
        return float(timed["sampler_s"] / timed["batch"]) if "sampler_s" in timed else 0.0


# -- parts -------------------------------------------------------------------------------------------------------------


def built(bench: Bench) -> Figures:
    """Made, and one image decoded, so that the decoder's first call is no part of what follows."""
    dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32

    def make() -> None:
        bench.model = bench.published.open(bench.device, dtype)

    build_s = seconds(make, bench.device)
    weights = sum(parameter.numel() for parameter in bench.model.denoiser.parameters())
    noise = torch.randn(1, *bench.model.shape, device=bench.device, dtype=dtype)
    with torch.no_grad():
        decode_s = [seconds(lambda: bench.model.decode(noise), bench.device) for _ in range(2)]
    return {
        "seconds": round(build_s, 4),
        "weights": weights,
        "dtype": str(dtype),
        "decode_one_image_s": round(min(decode_s), 4),
    }


def eager(bench: Bench) -> Figures:
    """The sampler beside the bare calls of its network."""
    images = bench.published.batch
    return measure("eager", bench.process(images), batch_of(PROMPTS, images, Seed(0)), bench.published.enough_s)


def outer_step(bench: Bench) -> Figures:
    """A step of tuning guidance: a central difference of one number, both sides in one call."""
    process = bench.process(2 * SAMPLES)
    problem = Problem(process, (bench.published.tunable,), tuple(bench.reward(0.2, 0.5, 0.8)))
    steps = tune(problem, ZerothOrder(), Adam(), PROMPTS, Budget(steps=1, samples=SAMPLES), Seed(0))
    made: list[TuningStep] = []
    spent_s = seconds(lambda: made.append(next(steps)), bench.device)
    (step,) = made
    return {
        "seconds": round(spent_s, 4),
        "samples": SAMPLES,
        "parameters": len(step.phi),
        "status": step.status,
        **process.meter.as_dict(),
        "images_at_once": process.room.images or process.batch,
    }


def bank(bench: Bench) -> Figures:
    """A bank of two rewards, and a step of lambda on it, which must not call the network."""
    process = bench.process(SAMPLES)
    source = Sampled(process, PROMPTS, bench.reward(0.2, 0.5, 0.8), bench.reward(0.8, 0.5, 0.2), Seed(0))
    drawn: list[Bank] = []
    spent_s = seconds(lambda: drawn.append(source.draw(0, SAMPLES // len(PROMPTS), None)), bench.device)
    spent = process.meter.as_dict()

    def solve(lam: float, gamma: float | None = None) -> Law:
        return Reweight().solve(drawn[0], lam, gamma)

    rounds = walk(solve, Covariance(), Regularization(start=1.0, bounds=(0.1, 10.0)), Bisection(), 1)
    step_s = seconds(lambda: next(rounds), bench.device)
    return {
        "seconds": round(spent_s, 4),
        "samples": SAMPLES,
        **spent,
        "lambda_step_s": round(step_s, 4),
        "lambda_step_calls": process.meter.denoiser_calls - spent["denoiser_calls"],
        "mistakes": mistakes(drawn[0], PROMPTS),
    }


@torch.no_grad()
def largest_batch(bench: Bench) -> Figures:
    """Images in one call, halved from `asked` until a step and the decoder have room for them."""
    asked = bench.published.most
    process, tried = bench.process(asked, steps=1), list[int]()

    def one(part: Batch) -> int:
        forget_peak()
        tried.append(len(part))
        return len(process.model.decode(sample(process, part)))

    images = next(process.over(batch_of(PROMPTS, asked, Seed(0)), one))
    return {"images": images, "asked": asked, "tried": tried}


def compiled(bench: Bench) -> Figures:
    """As `eager`, with the blocks compiled that `compile: on` compiles; the last part, as they stay so."""
    quicken(bench.model.denoiser, Diffusers(compile="on"))
    return {**eager(bench), "network": "compiled"}


PARTS: dict[str, tuple[Callable[[Bench], Figures], Callable[[Bench], float]]] = {  # with the seconds that each takes
    "built": (built, lambda bench: 0.0),
    "eager": (eager, lambda bench: 0.0),
    "outer_step": (outer_step, lambda bench: 2 * SAMPLES * bench.image_s()),
    "bank": (bank, lambda bench: SAMPLES * bench.image_s()),
    "largest_batch": (
        largest_batch,
        lambda bench: 4 * bench.published.most * bench.image_s() / bench.published.sampler.steps,
    ),
    "compiled": (compiled, lambda bench: bench.published.compile_s + 7 * bench.published.batch * bench.image_s()),
}


# -- all of them -------------------------------------------------------------------------------------------------------


def run(bench: Bench, until: float, write: Callable[[], None], parts: Collection[str] = tuple(PARTS)) -> None:
    """Part after part, of `parts` and what all of them need; `write` is called after each."""
    for name, (part, takes) in PARTS.items():
        if name != "built" and bench.model is None:
            break
        if name != "built" and name not in parts:
            continue
        bench.found[name] = _tried(bench, part, takes(bench), until - time.time())
        write()


def _tried(bench: Bench, part: Callable[[Bench], Figures], takes_s: float, left_s: float) -> Figures:
    if takes_s > left_s or left_s < 0:
        return {"skipped": f"about {takes_s:.0f} s, and {max(left_s, 0):.0f} s were left"}
    forget_peak()
    began = time.time()
    try:
        found = part(bench)
    except Exception:  # whatever it is, the other parts and models are still to be measured
        return {"error": traceback.format_exc(limit=-3), "peak_gib": peak_gib()}
    return {**found, "peak_gib": peak_gib(), "part_s": round(time.time() - began, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=list(FULL))
    parser.add_argument("--until", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    if not (given.tiny or torch.cuda.is_available()):
        parser.error("there is no CUDA device that torch can use, and the full sizes need one; add --tiny")
    diffusers.utils.logging.set_verbosity_error()
    device = torch.device("cpu" if given.tiny else "cuda")
    benches = {name: Bench(tiny(name) if given.tiny else FULL[name], device) for name in given.models}

    def write() -> None:
        found = {name: bench.found for name, bench in benches.items()}
        given.out.write_text(json.dumps({"about": about(), "found": found}) + "\n")

    torch.manual_seed(0)
    for bench in benches.values():
        run(bench, given.until, write, given.parts)


if __name__ == "__main__":
    main()
