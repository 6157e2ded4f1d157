"""What only a GPU has: places to move networks away to, compiled blocks, memory that runs out. Skipped without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.process import Process, process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.euler import Euler
from genbo.diffusion.seed import Batch, Seed, batch_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

FLOWS = ("stable_diffusion_3", "flux")
FAMILIES = ("stable_diffusion", "stable_diffusion_xl", "pixart_sigma", *FLOWS)
BATCH = Batch(("a red apple", "a dog", "a blue house"), (11, 12, 13))
TENSOR_CORES = 2e-2  # how far convolutions in TF32 may take an image from one in float32
SAME = 2e-3  # and the same arithmetic in another order

Folder = Callable[[str], Path]


def process(family_folder: Folder, family: str, **options: Any) -> Process:
    size = {"height": 16, "width": 16} if family == "flux" else {}
    told = {"pretrained": str(family_folder(family)), "dtype": "fp32", "negative_prompt": "a cat", **size, **options}
    sampler = Euler(steps=4) if family in FLOWS else Ddim(steps=4)
    return process_of(Diffusers(**told).open(), sampler, Plain(weight=3.0))


@torch.no_grad()
def drawn(process: Process, batch: Batch = BATCH) -> torch.Tensor:
    return process.model.decode(sample(process, batch)).float().cpu()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seeds_are_the_same_images_on_either_device(family_folder, family):
    torch.testing.assert_close(
        drawn(process(family_folder, family, device="cuda")),
        drawn(process(family_folder, family, device="cpu")),
        atol=TENSOR_CORES,
        rtol=0,
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        {"offload": "encoders"},
        {"offload": "model"},
        {"offload": "sequential"},
        {"vae_slicing": True},
        {"compile": "on"},
    ],
    ids=lambda options: "-".join(f"{k}-{v}" for k, v in options.items()),
)
def test_where_networks_wait_and_how_they_are_run_is_no_matter_of_the_images(family_folder, family, options):
    plain = drawn(process(family_folder, family))
    assert plain.std() > 0.02
    torch.testing.assert_close(drawn(process(family_folder, family, **options)), plain, atol=SAME, rtol=0)


def test_offloaded_encoders_leave_the_gpu_to_the_network(family_folder):
    model: Any = process(family_folder, "stable_diffusion", offload="encoders").model
    model.encode(["a dog"])
    assert {p.device.type for p in model.pipeline.text_encoder.parameters()} == {"cpu"}
    assert {p.device.type for p in model.denoiser.parameters()} == {"cuda"}


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_the_default_and_draws_nearly_the_same(family_folder, family):
    half = process(family_folder, family, dtype="auto")
    assert half.model.dtype == torch.bfloat16
    assert (drawn(half) - drawn(process(family_folder, family))).abs().mean() < 0.05


def test_memory_that_runs_out_halves_the_batch_and_no_image_changes(family_folder):
    whole = process(family_folder, "stable_diffusion")
    batch = batch_of(["a red apple", "a dog"], 64, Seed(0))
    expected = drawn(whole, batch)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    drawn(whole, batch)
    needed = torch.cuda.max_memory_reserved() - before
    torch.cuda.empty_cache()
    short = process_of(whole.model, whole.sampler, whole.rule, batch=len(batch))
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 0.6 * needed) / total)
    try:
        parts = list(short.over(batch, lambda part: drawn(short, part)))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(parts) > 1
    assert short.room.images is not None
    assert short.room.images < len(batch)
    torch.testing.assert_close(torch.cat(parts), expected, atol=TENSOR_CORES, rtol=0)
