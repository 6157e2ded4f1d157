"""The sampler's wall time over that of the bare network calls that it makes, in the same run: at most 1.05 on a GPU.

    python -m benchmarks.overhead [--out figures.json]

Two networks: the bundled emoji model at batch 256, and a U-Net of Stable Diffusion 1.5's size with random weights at
batch 8. Both with guidance, so that every image is two rows. The bare calls use the same rows, times and conditions.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.pipelines.stable_diffusion import StableDiffusionModel
from genbo.diffusion.process import Process, process_of
from genbo.diffusion.sample import Rows, sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Batch, Seed, batch_of

STEPS, REPEATS, LEAST = 20, 40, 3  # of the sampler; pairs at most and at least


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Of one run, waiting for the device at both ends."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def bare_calls(process: Process, batch: Batch) -> tuple[Callable[[int], None], int]:
    """The sampler's network calls by themselves, one a step, and how many rows each has."""
    told, model = Rows(process, batch), process.model
    condition = told.both or told.cond
    rows = len(batch) if told.both is None else 2 * len(batch)
    x = torch.randn(rows, *model.shape, dtype=model.dtype, device=model.device)

    def call(step: int) -> None:
        model(x, told.times[step, :rows], condition)

    return call, rows


@torch.no_grad()
def measure(name: str, process: Process, batch: Batch, enough_s: float = math.inf) -> dict[str, Any]:
    """Sampler and bare calls in turn, so that a slow moment of the host meets both; the fastest of each, as timeit.

    The pairs end after `REPEATS`, or once they have taken `enough_s` seconds. `first_call_s` is that of the network's
    very first call, which compiles it where it is compiled.
    """
    device = process.model.device
    call, rows = bare_calls(process, batch)
    first_call_s = seconds(lambda: call(0), device)
    sample(process_of(process.model, replace(process.sampler, steps=1), process.rule), batch)

    def bare() -> None:
        for step in range(process.steps):
            call(step)

    before, pairs = process.meter.denoiser_calls, list[tuple[float, float]]()
    gc.collect()
    gc.disable()
    try:
        while len(pairs) < LEAST or (len(pairs) < REPEATS and sum(map(sum, pairs)) < enough_s):
            pairs.append((seconds(lambda: sample(process, batch), device), seconds(bare, device)))
    finally:
        gc.enable()
    calls = (process.meter.denoiser_calls - before) // len(pairs)
    assert calls == process.steps, "the bare loop must make as many calls as the sampler"
    sampler_s, bare_s = (min(column) for column in zip(*pairs, strict=True))
    ratios = statistics.quantiles([sampler / bare for sampler, bare in pairs], n=4)
    return {
        "network": name,
        "batch": len(batch),
        "rows": rows,
        "calls": calls,
        "first_call_s": round(first_call_s, 4),
        "sampler_s": round(sampler_s, 4),
        "bare_s": round(bare_s, 4),
        "ratio": round(sampler_s / bare_s, 4),
        "ratio_quartiles": [round(q, 4) for q in ratios],
        "pairs": len(pairs),
        "images_per_s": round(len(batch) / sampler_s, 4),
        "peak_gib": peak_gib(),
    }


def peak_gib() -> float:
    """The most memory that was in use since `forget_peak`; 0 on a CPU, which does not count it."""
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else 0.0


def forget_peak() -> None:
    """Count anew, with nothing held that is not in use."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def about() -> dict[str, str]:
    """On what and with what it was measured."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    return {"device": device, "torch": torch.__version__, "diffusers": diffusers.__version__}


def emoji() -> tuple[str, Process, Batch]:
    """The bundled model."""
    model = Diffusers(pretrained="emoji").open()
    return "emoji", process_of(model, Ddim(steps=STEPS), Plain(5.0)), batch_of(["a red apple"], 256, Seed(0))


def sd15() -> tuple[str, Process, Batch]:
    """Stable Diffusion 1.5's U-Net with random weights, in bf16; the other parts are small, and not timed."""
    own: Any = Diffusers(pretrained="emoji").open()
    torch.manual_seed(0)
    width = 768
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(own.pipeline.tokenizer),
            hidden_size=width,
            num_hidden_layers=1,
            max_position_embeddings=77,
        )
    )
    with torch.device(own.device):
        unet = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=width, attention_head_dim=8)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=own.pipeline.vae,
        text_encoder=text.to(own.device, own.dtype),
        tokenizer=own.pipeline.tokenizer,
        unet=unet.to(own.dtype),
        scheduler=own.pipeline.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    model = StableDiffusionModel(pipeline)
    return (
        "sd15-unet, random weights",
        process_of(model, Ddim(steps=STEPS), Plain(5.0)),
        batch_of(["a dog"], 8, Seed(0)),
    )


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    figures = []
    for build in (emoji, sd15) if torch.cuda.is_available() else (emoji,):
        forget_peak()
        figures.append(measure(*build()))
        print(" ".join(f"{key}={value}" for key, value in figures[-1].items()), flush=True)
    if out:
        out.write_text(json.dumps({**about(), "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
