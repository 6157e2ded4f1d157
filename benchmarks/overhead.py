"""The sampler's wall time over that of the bare network calls that it makes, in the same run: at most 1.05 on a GPU.

    python -m benchmarks.overhead [--out figures.json]

Two networks: the bundled emoji model at batch 256, and a U-Net of Stable Diffusion 1.5's size with random weights at
batch 8. Both with guidance, so that every image is two rows. The bare calls use the same rows, times and conditions.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.pipelines.stable_diffusion import StableDiffusionModel
from genbo.diffusion.process import Process, process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Batch, Seed, batch_of

STEPS, REPEATS = 20, 40


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Of one run, waiting for the device at both ends."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(name: str, process: Process, batch: Batch) -> dict[str, Any]:
    """Sampler and bare calls in turn, so that a slow moment of the host meets both; the fastest of each, as timeit."""
    model = process.model
    rows = 2 * len(batch)
    x = torch.randn(rows, *model.shape, dtype=model.dtype, device=model.device)
    condition = model.unconditional().take(torch.zeros(len(batch), dtype=torch.long, device=model.device))
    condition = condition.cat(model.encode(batch.prompts))
    times = process.grid.time[0].to(model.device, model.dtype)

    def bare() -> None:
        for t in times:
            model(x, t.expand(rows), condition)

    with torch.no_grad():
        for work in (bare, lambda: sample(process, batch)):
            work()
        before = process.meter.denoiser_calls
        gc.collect()
        gc.disable()
        pairs = [
            (seconds(lambda: sample(process, batch), model.device), seconds(bare, model.device)) for _ in range(REPEATS)
        ]
        gc.enable()
    calls = (process.meter.denoiser_calls - before) // REPEATS
    assert calls == STEPS, "the bare loop must make as many calls as the sampler"
    sampler_s, bare_s = (min(column) for column in zip(*pairs, strict=True))
    ratios = statistics.quantiles([sampler / bare for sampler, bare in pairs], n=4)
    return {
        "network": name,
        "batch": len(batch),
        "rows": rows,
        "calls": calls,
        "sampler_s": round(sampler_s, 4),
        "bare_s": round(bare_s, 4),
        "ratio": round(sampler_s / bare_s, 4),
        "ratio_quartiles": [round(q, 4) for q in ratios],
        "images_per_s": round(len(batch) / sampler_s, 2),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else 0.0,
    }


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
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        figures.append(measure(*build()))
        print(" ".join(f"{key}={value}" for key, value in figures[-1].items()), flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    about = {
        "device": device,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "figures": figures,
    }
    if out:
        out.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
