"""The device and the precision that a model will likely run in, guessed without torch."""

from __future__ import annotations

import os
from pathlib import Path

from genbo.diffusion.kinds import declared
from genbo.diffusion.model_options import ModelOptions
from genbo.diffusion.traits import ModelTraits


def likely_gpu() -> bool:
    """Whether a GPU is likely to be there."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    return not hidden and (Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists())


def likely_device(options: ModelOptions) -> str:
    """The device of a model's options, guessed where they leave it open with `auto`."""
    device = declared(ModelTraits, options).device
    return ("cuda" if likely_gpu() else "cpu") if device == "auto" else device


def likely_half(options: ModelOptions) -> bool:
    """Whether the network will run in half precision."""
    dtype = declared(ModelTraits, options).dtype
    return dtype in ("bf16", "fp16") or (dtype == "auto" and likely_device(options).startswith("cuda"))
