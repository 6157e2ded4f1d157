"""How the standard error of a guidance gradient falls with the step of the difference, on the bundled model.

    python -m benchmarks.step_width [--samples 96]

Prints, for steps h in u and weights phi, the mean over samples of [R(u + h) - R(u - h)] / 2h and its standard error.
All differences are taken from one curve of rewards at a fine grid of u, with the same noise everywhere.
"""

from __future__ import annotations

import argparse

import torch

from genbo.bilevel.estimators.zeroth_order import standard_error
from genbo.bilevel.problem import Problem
from genbo.bilevel.tunables.guidance import Guidance
from genbo.diffusion import bundled
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.process import process_of
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.seed import Seed, batch_of
from genbo.rewards.clip import Clip

SPACING, STEPS = 0.1, (1, 2, 3, 4, 6, 8)


def main() -> None:
    """Draw the curve, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=96)
    samples = parser.parse_args().samples
    model = Diffusers(pretrained="emoji").open()
    prompts_file = bundled.prompts_file("emoji-held-out")
    assert prompts_file is not None
    problem = Problem(
        process_of(model, Dpmpp(steps=10), Plain(1.0), batch=64),
        (Guidance(start=1.0, bounds=(0.0, 20.0)),),
        ((1.0, Clip(pretrained="emoji-clip").open(model.device)),),
    )
    batch = batch_of(prompts_file.read_text().splitlines(), samples, Seed(5), shuffle=False)
    u = torch.arange(-3.4, 0.85, SPACING, dtype=torch.float64)
    phi, rewards = problem.value(u[:, None])[:, 0], problem.scores(problem.value(u[:, None]), batch)[0]
    for k in STEPS:
        slope = (rewards[2 * k :] - rewards[: -2 * k]) / (2 * k * SPACING)
        cells = [
            f"{w:.1f}: {m:+.3f} ± {e:.3f}"
            for w, m, e in zip(phi[k:-k], slope.mean(1), standard_error(slope), strict=True)
        ]
        print(f"h {k * SPACING:.1f}  " + "  ".join(cells[::4]), flush=True)


if __name__ == "__main__":
    main()
