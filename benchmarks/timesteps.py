"""Tuned times against the usual spacings, on seeds and prompts that tuning never saw, at equal steps.

    python -m benchmarks.timesteps runs/timesteps [--samples 64] [--device cuda] [--seed 1] [--times 999,850,...]

reads the job and the tuned times of a finished run of `tune: {timesteps: ...}`, or takes times by hand, and draws the
same held-out samples with every grid: the tuned one, diffusers' linspace (uniform), leading and trailing, Karras', and
AYS. All are held against the same teacher, in PSNR, squared and absolute distance of pixels. Prints the mean of each,
and the paired difference, tuned minus other, with its 95 % interval over prompts. The samples come from another seed
than the run's own verdict. On two CPU cores 64 samples take a few minutes, nearly all of it the teacher.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genbo.bilevel.problem import Problem
from genbo.bilevel.tunables.timesteps import Timesteps
from genbo.bilevel.verdict import compare, draw
from genbo.cli.job.job import Job, read_job
from genbo.cli.report import number_format
from genbo.cli.stages.build import assemble
from genbo.diffusion.process import Process
from genbo.diffusion.seed import Batch, Seed, batch_of
from genbo.rewards.teacher import Teacher

DISTANCES = ("psnr", "squared", "absolute")


def main() -> None:
    """Draw every grid, print a row for each."""
    asked = arguments()
    device = [] if asked.device == "auto" else [f"model.device={asked.device}"]
    job = read_job(json.loads((asked.run / "report.json").read_text())["job"], device)
    problem = assemble(job).problem
    batch = batch_of(job.held_out, asked.samples, Seed(asked.seed).child("benchmark"))
    scores = {name: drawn(base, batch) for name, base in grids(asked, job, problem)}
    show(scores, batch, fresh_prompts=job.held_out_is_fresh_prompts)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--times", help="instead of the run's own, noisiest first")
    return parser.parse_args()


def grids(asked: argparse.Namespace, job: Job, problem: Problem) -> Iterator[tuple[str, Problem]]:
    """A problem a grid, all with one memory of the teacher's samples; any tuned guidance stays at the job's own."""
    process = problem.process
    tuned = json.loads((asked.run / "report.json").read_text())["phi"]["timesteps"]["tuned"]
    times = [float(time) for time in asked.times.split(",")] if asked.times else tuned
    taught = next((r.options for r in job.reward if isinstance(r.options, Teacher)), Teacher())
    starts: dict[str, Any] = {"tuned": times, "uniform": "uniform", "trailing": "trailing"}
    if leading := _leading(process):
        starts["leading"] = leading
    for name, start in {**starts, "karras": "karras", "ays": "ays"}.items():
        rewards = tuple(
            (1.0, Teacher(taught.steps, distance=distance, sampler=taught.sampler).open(process.model.device))  # type: ignore[arg-type]
            for distance in DISTANCES
        )
        yield name, Problem(process, (Timesteps(start).of(process),), rewards, teachers=problem.teachers)


def _leading(process: Process) -> list[float] | None:
    """diffusers' third spacing, Stable Diffusion 1.5's own; an exact world has none."""
    model: Any = process.model
    if not hasattr(model, "scheduler"):
        return None
    scheduler = model.scheduler(process.sampler, timestep_spacing="leading")
    scheduler.set_timesteps(process.steps)
    return [float(time) for time in scheduler.timesteps]


def drawn(problem: Problem, batch: Batch) -> Tensor:
    """(K, N)."""
    return torch.cat([torch.stack(seen) for seen, _ in draw(problem, problem.first(), batch)], dim=1)


def show(scores: dict[str, Tensor], batch: Batch, *, fresh_prompts: bool) -> None:
    print(f"{len(batch)} samples of {len(set(batch.prompts))} prompts; a mean of each, and tuned minus it")
    print(f"{'':<10}" + "".join(f"{name:<40}" for name in DISTANCES))
    for name, row in scores.items():
        cells = []
        for mine, tuned in zip(row, scores["tuned"], strict=True):
            cell = number_format.number(mine.mean().item())
            if name != "tuned":
                found = compare(mine, tuned, batch.prompts, fresh_prompts=fresh_prompts)
                cell += f"  {number_format.change(found.difference, found.interval)}"
            cells.append(f"{cell:<40}")
        print(f"{name:<10}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
