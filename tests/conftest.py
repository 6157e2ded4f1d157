"""Tiny networks with random weights, written once a session in the formats that real ones come in."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip `local-dir:` folder: 32 x 32 pixels, prepared with numbers that are nobody's default."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("tiny-clip")
    model_cfg = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    preprocess_cfg = {
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = open_clip.CLIP(**model_cfg)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / "open_clip_model.safetensors")
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def random_resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A safetensors file of torchvision's ResNet-18 before training, with 1,000 classes."""
    import torch
    from safetensors.torch import save_file
    from torchvision.models import resnet18

    file = tmp_path_factory.mktemp("random-resnet18") / "resnet18.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(resnet18().state_dict(), file)
    return file


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionPipeline folder: 16 x 16 images, latents of (4, 8, 8), with SD's DDIM."""
    import torch

    from tests.families import stable_diffusion

    folder = tmp_path_factory.mktemp("tiny-sd")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stable_diffusion().save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small pipeline by its family's name, as `tests.families` makes it."""
    import torch

    from tests.families import MAKERS, lively

    @cache
    def folder_of(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family.replace("_", "-"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            lively(MAKERS[family]()).save_pretrained(folder, safe_serialization=True)
        return folder

    return folder_of
