"""How often a tuner is called ahead of itself or behind: comparisons of one job with itself, with other seeds.

    python -m benchmarks.ahead_self [--comparisons 200] [--repeats 3]

The job tunes guidance in a Gaussian world, whose runs take a tenth of a second. Each comparison has `repeats` runs on
either side, scored on held-out samples that both sides of a repeat share, as `genbo compare` does it. At most 5 % may
be called ahead or behind.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from genbo.bilevel.contest import against
from genbo.bilevel.loop import begin
from genbo.cli.job.job import read_job
from genbo.cli.report.summary import tuned_of
from genbo.cli.stages.ascent import record_of, steps_of
from genbo.cli.stages.build import assemble
from genbo.cli.stages.context import names_of
from genbo.diffusion.seed import Seed, batch_of

JOB: dict[str, Any] = {
    "version": 1,
    "model": {
        "kind": "gaussian",
        "means": {"a": [2.0, 0.0], "b": [0.0, 2.0], "c": [1.0, 1.0]},
        "std": 0.7,
        "sampler": {"kind": "ddim", "steps": 4},
    },
    "prompts": ["a", "b"],
    "tune": {"guidance": {"start": 4.0, "bounds": [0, 10]}},
    "reward": {"kind": "quadratic", "target": [1.2, 1.2]},
    "budget": {"steps": 8, "samples": 8},
    "evaluate": {"samples": 32, "prompts": ["b", "c"]},
    "output": "unused",
}


def reached(seed: int, held_out: int) -> tuple[Tensor, tuple[str, ...]]:
    """Held-out scores (N,) of one run's answer, and their prompts; `held_out` names the samples."""
    a = assemble(read_job({**JOB, "seed": seed}))
    names = names_of(a)
    records = [record_of(step, a, names, 0.0) for step in steps_of(a, begin(a.problem))]
    phi = tuned_of(a.problem, records).phi
    batch = batch_of(a.held_out, JOB["evaluate"]["samples"], Seed(held_out).child("evaluate"))
    return a.judge.scores(phi[None], batch)[0, 0], batch.prompts


def main() -> None:
    """Print how many comparisons were called what."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: Counter[str] = Counter()
    for comparison in range(arguments.comparisons):
        sides: list[list[Tensor]] = [[], []]
        for repeat in range(arguments.repeats):
            shared = 1_000_000 + comparison * arguments.repeats + repeat
            for side in (0, 1):
                scores, prompts = reached(2 * (shared - 1_000_000) + side, shared)
                sides[side].append(scores)
        found[against(*sides, prompts, fresh_prompts=True).standing] += 1
    wrong = found["ahead"] + found["behind"]
    print(f"{dict(found)}: {wrong / arguments.comparisons:.1%} of {arguments.comparisons} called ahead or behind")


if __name__ == "__main__":
    main()
