"""Whether the interval of a tuned guidance weight holds the optimum, on the bundled model.

    python -m benchmarks.guidance_coverage curve --out curve.json [--samples 4096] [--table table.safetensors]
    python -m benchmarks.guidance_coverage runs --curve curve.json --out runs.json [--seeds 40] [--start 1 12]

`curve` draws the reward over the guidance by brute force: diffusers' own pipeline and open_clip, no code of genbo's
sampler or reward, every sample from the same noise at each guidance. Its optimum is that of a polynomial through the
means near the top, with a jackknife error over the samples. `runs` tunes `examples/guidance.yaml` at many seeds in one
process, without the held-out evaluation, and counts the intervals that hold that optimum.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "guidance.yaml"
GRID = (1.0, 1.25, *(1.5 + k / 8 for k in range(11)), 3.0, 3.25, 3.5, 4.0, 5.0, 7.0, 10.0)
TOP = 0.04  # below the highest mean: guidances that the polynomial goes through
BLOCKS = 32  # of the jackknife

Figures = dict[str, Any]


# -- the curve ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def rewards(guidances: Sequence[float], prompts: Sequence[str], steps: int, batch: int, device: str) -> Tensor:
    """The score of every sample (columns, one a prompt) at every guidance (rows): the noise of a column is one."""
    import diffusers
    import open_clip

    folder = ROOT / "diffusion" / "bundled" / "emoji"
    pipeline: Any = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None).to(device)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, algorithm_type="dpmsolver++", solver_order=2
    )
    clip_folder = f"local-dir:{ROOT / 'rewards' / 'bundled' / 'emoji-clip'}"
    clip, transform = open_clip.create_model_from_pretrained(clip_folder)
    clip = clip.to(device).eval()
    tokens = open_clip.get_tokenizer(clip_folder)(list(prompts)).to(device)
    pixels = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    if clip.visual.image_size not in (pixels, (pixels, pixels)):
        raise ValueError(f"images of {pixels} pixels would have to be scaled to {clip.visual.image_size}")
    normalise = transform.transforms[-1]
    noise = torch.stack(
        [
            torch.randn(pipeline.unet.config.in_channels, *(pipeline.unet.config.sample_size,) * 2, generator=generator)
            for generator in (torch.Generator().manual_seed(n) for n in range(len(prompts)))
        ]
    )
    found = torch.empty(len(guidances), len(prompts), dtype=torch.float64)
    for at in range(0, len(prompts), batch):
        here = slice(at, at + batch)
        text = clip.encode_text(tokens[here], normalize=True)
        for row, guidance in enumerate(guidances):
            images = pipeline(
                list(prompts[here]),
                num_inference_steps=steps,
                guidance_scale=guidance,
                latents=noise[here].to(device),
                output_type="pt",
            ).images
            score = (clip.encode_image(normalise(images.float()), normalize=True) * text).sum(-1)
            found[row, here] = score.double().cpu()
        print(f"{min(at + batch, len(prompts))} of {len(prompts)} samples", flush=True)
    return found


def top_of(guidances: Tensor, means: Tensor) -> Tensor:
    """Where a polynomial of degree 4 (less, where there are few points) in log guidance is highest, near the top.

    `means` (V, ...), a column each; the points are the same for all of them, those of the mean column.
    """
    whole = means.mean(-1) if means.ndim > 1 else means
    near = whole > whole.max() - TOP
    x = guidances[near].log()
    middle, scale = x.mean(), (x - x.mean()).abs().max().clamp(min=1e-9)
    degree = min(4, len(x) - 1)
    basis = ((x - middle) / scale)[:, None] ** torch.arange(degree + 1)
    beta = torch.linalg.lstsq(basis, means[near].reshape(len(x), -1)).solution
    ends = ((x.aminmax().min - middle) / scale).item(), ((x.aminmax().max - middle) / scale).item()
    fine = torch.linspace(*ends, 4001, dtype=torch.float64)
    heights = fine[:, None] ** torch.arange(degree + 1) @ beta
    return (middle + scale * fine[heights.argmax(0)]).exp().reshape(means.shape[1:])


def optimum(guidances: Tensor, table: Tensor) -> tuple[float, float]:
    """Of the mean over the samples (V, N), with the jackknife's standard error over blocks of samples."""
    size = table.shape[1] // BLOCKS
    if size < 1:
        return top_of(guidances, table.mean(1)).item(), math.nan
    blocks = table[:, : size * BLOCKS].reshape(len(table), BLOCKS, size).mean(-1)
    left_out = (blocks.sum(1, keepdim=True) - blocks) / (BLOCKS - 1)
    tops = top_of(guidances, left_out)
    se = ((tops - tops.mean()).square().sum() * (BLOCKS - 1) / BLOCKS).sqrt()
    return top_of(guidances, table.mean(1)).item(), se.item()


def curve(arguments: argparse.Namespace) -> Figures:
    """The brute-force curve over the prompts of the example."""
    from genbo.cli.job.job import read_job

    job = read_job(EXAMPLE)
    of = job.held_out if arguments.held_out else job.prompts
    prompts = [of[n % len(of)] for n in range(arguments.samples)]
    guidances = torch.tensor(arguments.guidances, dtype=torch.float64)
    began = time.monotonic()
    table = rewards(arguments.guidances, prompts, job.steps, arguments.batch, arguments.device)
    if arguments.table:
        from safetensors.torch import save_file

        save_file({"guidance": guidances, "rewards": table}, str(arguments.table))
    best, se = optimum(guidances, table)
    at = (guidances - best).abs().argmin()
    rows = [
        {
            "guidance": g.item(),
            "mean": row.mean().item(),
            "se": row.std().item() / len(row) ** 0.5,
            "below_top": (row - table[at]).mean().item(),
            "below_top_se": (row - table[at]).std().item() / len(row) ** 0.5,
        }
        for g, row in zip(guidances, table, strict=True)
    ]
    for row in rows:
        print("  ".join(f"{key} {value:.4f}" for key, value in row.items()))
    print(f"optimum {best:.3f} ± {se:.3f}")
    return {"optimum": best, "optimum_se": se, "samples": len(prompts), "curve": rows, "s": time.monotonic() - began}


# -- the runs ----------------------------------------------------------------------------------------------------------


def runs(arguments: argparse.Namespace) -> Figures:
    """The example at many seeds: the answers, their error bars, and how many intervals hold the optimum."""
    from genbo.cli.job.job import read_job
    from genbo.cli.stages.build import assemble

    overrides = [f"budget.steps={arguments.steps}"] if arguments.steps else []
    overrides += [f"budget.samples={arguments.samples}"] if arguments.samples else []
    overrides += [f"model.device={arguments.device}"] if arguments.device else []
    assembled = assemble(read_job(arguments.job, overrides))
    best = json.loads(arguments.curve.read_text())["optimum"] if arguments.curve else arguments.optimum
    found: Figures = {"optimum": best, "starts": {}}
    for start in arguments.start:
        rows = [_one(assembled, start, seed) for seed in range(arguments.seeds)]
        found["starts"][f"{start:g}"] = {"runs": rows, **_summary(rows, best)}
        print(f"start {start:g}: ", found["starts"][f"{start:g}"] | {"runs": len(rows)}, flush=True)
    return found


def _one(assembled: Any, start: float, seed: int) -> Figures:
    """One run to its answer, as `genbo tune` makes it."""
    from genbo.bilevel.loop import tune
    from genbo.cli.report.summary import Names, tuned_of
    from genbo.cli.stages.ascent import record_of
    from genbo.diffusion.seed import Seed

    a = assembled
    (tunable,) = a.problem.tunables
    problem = replace(a.problem, tunables=(replace(tunable, start=start),))
    names = Names(tuple(a.reward_names), tuple(a.constraint_names))
    began = time.monotonic()
    steps = tune(problem, a.estimator, a.optimizer, a.prompts, a.budget, Seed(seed))
    records = [record_of(step, replace(a, problem=problem), names, 0.0) for step in steps]
    tuned = tuned_of(problem, records)
    row = {
        "seed": seed,
        "guidance": tuned.phi.item(),
        "se": tuned.se[0],
        "interval": _interval(tuned),
        "kind": getattr(tuned, "kinds", [tuned.method])[0],
        "s": time.monotonic() - began,
        "records": [{key: record[key] for key in ("u", "grad", "grad_se", "value", "status")} for record in records],
    }
    print({key: value for key, value in row.items() if key != "records"}, flush=True)
    return row


def _interval(tuned: Any) -> list[float] | None:
    given = getattr(tuned, "interval", None)
    if given is not None:
        return None if given[0] is None else list(given[0])
    se = tuned.se[0]
    return None if se is None else [tuned.phi.item() - 1.96 * se, tuned.phi.item() + 1.96 * se]


def _summary(rows: Sequence[Figures], best: float | None) -> Figures:
    if best is None:
        return {}
    barred = [row for row in rows if row["interval"] is not None]
    inside = sum(row["interval"][0] <= best <= row["interval"][1] for row in barred)
    z = [(row["guidance"] - best) / row["se"] for row in barred if row["se"]]
    return {
        "with_interval": len(barred),
        "hold_the_optimum": inside,
        "coverage": inside / len(barred) if barred else None,
        "rms_z": math.sqrt(sum(x * x for x in z) / len(z)) if z else None,
        "rms_error": math.sqrt(sum((row["guidance"] - best) ** 2 for row in rows) / len(rows)),
        "median_se": sorted(row["se"] or math.nan for row in barred)[len(barred) // 2] if barred else None,
    }


# -- the command -------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> Figures:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    drawn = commands.add_parser("curve")
    drawn.set_defaults(call=curve)
    drawn.add_argument("--samples", type=int, default=4096)
    drawn.add_argument("--guidances", type=float, nargs="+", default=GRID)
    drawn.add_argument("--batch", type=int, default=1024)
    drawn.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    drawn.add_argument("--held-out", action="store_true", help="the held-out prompts in place of the tuning prompts")
    drawn.add_argument("--table", type=Path, help="where to keep the score of every sample (safetensors)")
    tuned = commands.add_parser("runs")
    tuned.set_defaults(call=runs)
    tuned.add_argument("--job", type=Path, default=EXAMPLE)
    tuned.add_argument("--seeds", type=int, default=40)
    tuned.add_argument("--start", type=float, nargs="+", default=[1.0])
    tuned.add_argument("--optimum", type=float)
    tuned.add_argument("--curve", type=Path, help="what `curve` has written, for its optimum")
    tuned.add_argument("--steps", type=int)
    tuned.add_argument("--samples", type=int)
    tuned.add_argument("--device")
    for command in (drawn, tuned):
        command.add_argument("--out", type=Path, required=True, help="a JSON file")
    given = parser.parse_args(arguments)
    found: Figures = given.call(given)
    given.out.write_text(json.dumps(found, indent=1))
    return found


if __name__ == "__main__":
    main()
