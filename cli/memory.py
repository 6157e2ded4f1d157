"""How much memory a job will want, from file headers and configs alone: an order, not a promise.

    weights      the numbers in the safetensors headers, at the precision that they are loaded in
    activations  LIVE maps a row, of the first level's width and the latent's size; or decoding, the image's
    gradients    reverse mode keeps the maps of one step a row: every level's, KEPT of them a block

The larger of network and decoder counts, beside the weights of model and rewards.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genbo.cli.job import Job

LIVE = 16  # feature maps of full size that are alive at once in a forward pass
KEPT = 12  # feature maps that a residual block with attention keeps for its backward pass
MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class Memory:
    """In bytes."""

    weights: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.activations

    @property
    def rule(self) -> str:
        return f"weights {self.weights / 1e6:,.0f} MB, activations {self.activations / 1e6:,.0f} MB"


def memory(job: Job, rows: int, differentiated: bool) -> Memory | None:
    """Of a job that draws so many images at once; None for an exact world, or a hub id not here yet."""
    from genbo.cli.job import likely_half

    folder = getattr(job.model.options, "folder", None)
    if folder is None:
        return None
    width = 2 if likely_half(job.model.options) else 4
    weights = sum(numbers_in(file) for file in _networks(folder)) * width
    weights += sum(numbers_in(file) * 4 for file in _reward_files(job))
    return Memory(weights, activations(folder, rows, width, differentiated))


def _networks(folder: Path) -> list[Path]:
    """One file set a component: variants beside the plain weights are the same numbers again."""
    found: list[Path] = []
    for part in sorted({path.parent for path in folder.glob("*/*.safetensors")}):
        files = sorted(part.glob("*.safetensors"))
        found += [f for f in files if f.stem.count(".") == 0] or files
    return found


def _reward_files(job: Job) -> list[Path]:
    options = [reward.options for reward in (*job.reward, *job.keep)]
    folders = {getattr(each, "folder", None) for each in options}
    alone = {getattr(each, "file", None) for each in options}
    found = {file for folder in folders if folder for file in folder.glob("*.safetensors")}
    return sorted(found | {file for file in alone if isinstance(file, Path) and file.suffix == ".safetensors"})


def activations(folder: Path, rows: int, width: int, differentiated: bool) -> float:
    """Bytes beside the weights: the network's two rows an image, or the decoder's one, whichever is more."""
    network, decoder = _config(folder, "unet") or _config(folder, "transformer"), _config(folder, "vae")
    size, channels = (
        _numbers(network.get("sample_size", 64)),
        _numbers(network.get("block_out_channels", 320)),
    )
    latent = math.prod(size if len(size) > 1 else size * 2)
    forward = 2 * rows * LIVE * channels[0] * latent * width
    if differentiated:
        blocks = [c * latent / 4**level for level, c in enumerate(channels)]
        forward = 2 * rows * KEPT * 2 * (1 + max(_numbers(network.get("layers_per_block", 2)))) * sum(blocks) * width
    widths = _numbers(decoder.get("block_out_channels", 0))
    image = latent * 4 ** (len(widths) - 1)
    return float(max(forward, rows * LIVE * widths[0] * image * width))


def numbers_in(file: Path) -> float:
    """How many numbers a safetensors file holds, from its header; 0 where it cannot be read."""
    try:
        with file.open("rb") as data:
            length = int.from_bytes(data.read(8), "little")
            header = json.loads(data.read(length)) if length < MAX_HEADER else {}
        return float(sum(math.prod(t["shape"]) for name, t in header.items() if name != "__metadata__"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return 0.0


def _config(folder: Path, part: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _numbers(value: Any) -> list[float]:
    """A config's number, or its list of them."""
    values = value if isinstance(value, list) else [value]
    return [float(v) for v in values if isinstance(v, (int, float))] or [0.0]
