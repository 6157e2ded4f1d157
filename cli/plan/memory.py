"""How much memory a job will want, from file headers and configs alone: an order, not a promise.

    weights      the numbers in the safetensors headers, at the precision that they are loaded in
    activations  LIVE maps a row, of the first level's width and the latent's size; or decoding, the image's
    gradients    reverse mode keeps the maps of one step a row: every level's, KEPT of them a block
    transformers have a map of tokens x width, LIVE of them alive, and KEPT of them kept a block

The larger of network and decoder counts, beside the weights of model and rewards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genbo.diffusion.kinds import declared
from genbo.diffusion.pipeline_folder import config_of
from genbo.rewards._traits import RewardTraits

if TYPE_CHECKING:
    from genbo.cli.job.job import Job

OWN_SIZE = 128  # of latents, where a config does not say: FLUX
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
    from genbo.cli.job.job import likely_half

    traits = job.model.traits
    folder = traits.folder
    if folder is None:
        return None
    width = 2 if likely_half(job.model.options) else 4
    weights = sum(numbers_in(file) for file in _networks(folder)) * width
    weights += sum(numbers_in(file) * 4 for file in _reward_files(job))
    return Memory(weights, activations(folder, rows, width, differentiated, (traits.height, traits.width)))


def _networks(folder: Path) -> list[Path]:
    """One file set a component: variants beside the plain weights are the same numbers again."""
    found: list[Path] = []
    for part in sorted(
        {path.parent for pattern in ("*.safetensors", "*/*.safetensors") for path in folder.glob(pattern)}
    ):
        files = sorted(part.glob("*.safetensors"))
        found += [f for f in files if f.stem.count(".") == 0] or files
    return found


def _reward_files(job: Job) -> list[Path]:
    below = job.lower.reward if job.lower else ()
    traits = [declared(RewardTraits, reward.options) for reward in (*job.scored, *below)]
    folders, alone = {each.folder for each in traits}, {each.weights_file for each in traits}
    found = {file for folder in folders if folder for file in folder.glob("*.safetensors")}
    return sorted(found | {file for file in alone if file is not None and file.suffix == ".safetensors"})


def activations(
    folder: Path, rows: int, width: int, differentiated: bool, pixels: Sequence[int | None] = (None, None)
) -> float:
    """Bytes beside the weights: the network's two rows an image, or the decoder's one, whichever is more.

    `pixels` are height and width, where they are not the model's own.
    """
    network, decoder = config_of(folder, "unet") or config_of(folder, "transformer"), config_of(folder, "vae")
    widths = _numbers(decoder.get("block_out_channels", 0))
    side, own = 2 ** (len(widths) - 1), _numbers(network.get("sample_size") or OWN_SIZE)
    latent = math.prod(
        n if p is None else p / side for p, n in zip(pixels, own if len(own) > 1 else own * 2, strict=True)
    )
    is_unet = not network or "block_out_channels" in network
    maps = _unet(network, latent) if is_unet else _transformer(network, latent)
    forward = 2 * rows * (KEPT * maps[1] if differentiated else LIVE * maps[0]) * width
    return float(max(forward, rows * LIVE * widths[0] * latent * side**2 * width))


def _unet(network: Mapping[str, object], latent: float) -> tuple[float, float]:
    """Numbers in the largest map of a row, and in those that all blocks keep for the way back."""
    channels = _numbers(network.get("block_out_channels", 320))
    blocks = [c * latent / 4**level for level, c in enumerate(channels)]
    return channels[0] * latent, 2 * (1 + max(_numbers(network.get("layers_per_block", 2)))) * sum(blocks)


def _transformer(network: Mapping[str, object], latent: float) -> tuple[float, float]:
    """The same; FLUX, whose patches come packed, has a fourth of the tokens that its config says."""
    packed = 4 if "guidance_embeds" in network else 1
    tokens = latent / (_numbers(network.get("patch_size", 1))[0] ** 2 * packed)
    one = (
        tokens
        * _numbers(network.get("num_attention_heads", 16))[0]
        * _numbers(network.get("attention_head_dim", 64))[0]
    )
    blocks = sum(_numbers(network.get(name, 0))[0] for name in ("num_layers", "num_single_layers"))
    return one, one * blocks


def numbers_in(file: Path) -> float:
    """How many numbers a safetensors file holds, from its header; 0 where it cannot be read."""
    try:
        with file.open("rb") as data:
            length = int.from_bytes(data.read(8), "little")
            header = json.loads(data.read(length)) if length < MAX_HEADER else {}
        return float(sum(math.prod(t["shape"]) for name, t in header.items() if name != "__metadata__"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return 0.0


def _numbers(value: object) -> list[float]:
    """A config's number, or its list of them."""
    values = value if isinstance(value, list) else [value]
    return [float(v) for v in values if isinstance(v, (int, float))] or [0.0]
