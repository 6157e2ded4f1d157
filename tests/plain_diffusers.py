"""Draws from folders by plain diffusers, in a process that knows nothing of genbo: a line of JSON in, a file out.

{"folder": ..., "call": {...}, "seeds": [...], "out": "x.safetensors"}
"""

from __future__ import annotations

import inspect
import json
import sys
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from safetensors.torch import save_file


def drawn(folder: str, call: dict[str, Any], seeds: list[int]) -> torch.Tensor:
    """(N, C, H, W) in [0, 1]; of what is given, the pipeline is told what it takes."""
    pipeline = DiffusionPipeline.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    taken = inspect.signature(pipeline.__call__).parameters
    given = {**call, "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds], "output_type": "np"}
    images = pipeline(**{name: value for name, value in given.items() if name in taken}).images
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def main() -> None:
    logging.disable_progress_bar()
    for line in sys.stdin:
        job = json.loads(line)
        save_file({"images": drawn(job["folder"], job["call"], job["seeds"])}, job["out"])
        assert not [name for name in sys.modules if name.split(".")[0] == "genbo"]
        print("drawn", flush=True)


if __name__ == "__main__":
    main()
