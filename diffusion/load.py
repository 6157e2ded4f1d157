"""Pipelines from disk or hub into memory, with every weight accounted for."""

from __future__ import annotations

import importlib
import json
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from genbo.diffusion.models.diffusers import Diffusers, families, folder_mistakes
from genbo.diffusion.refused import Refused

if TYPE_CHECKING:
    from genbo.diffusion.process import Model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_pipeline(options: Diffusers) -> Model:
    """The model that the options name, on its device, in eval mode, without gradients of its weights."""
    folder = options.folder or _fetch(options)
    mistakes = folder_mistakes(folder, options.variant)
    if mistakes:
        raise Refused("; ".join(mistakes))
    device = options.torch_device()
    if device.type == "cuda" and not torch.cuda.is_available():
        raise Refused("device: this machine has no CUDA device that torch can use; set model.device: auto")
    dtype = DTYPES.get(options.dtype) or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    pipeline = _from_folder(folder, dtype, options.variant)
    _check_weights(pipeline, folder, options.variant)
    pipeline.to(device)
    family = importlib.import_module(f"genbo.diffusion.pipelines.{families()[type(pipeline).__name__]}")
    model: Model = family.open_pipeline(pipeline, options)
    return model


def _quiet() -> None:
    """diffusers' and transformers' bars would run through the live table; both have two switches."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _from_folder(folder: Path, dtype: torch.dtype, variant: str | None) -> Any:
    os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "true")
    from diffusers import DiffusionPipeline

    _quiet()
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder, dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise Refused(f"pretrained: diffusers cannot load {folder}: {_first_line(error)}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _fetch(options: Diffusers) -> Path:
    """The snapshot of a hub id: safetensors, JSON and text only."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            options.pretrained,
            revision=options.revision,
            allow_patterns=["*.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors"],
        )
    except (OSError, ValueError) as error:
        raise Refused(
            f"pretrained: {options.pretrained} is no folder here and could not be fetched from the hub "
            f"({_first_line(error)}); check the name, the network and, for a gated model, `hf auth login`"
        ) from error
    return Path(folder)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _check_weights(pipeline: Any, folder: Path, variant: str | None) -> None:
    """Every network of a pipeline."""
    for name, component in pipeline.components.items():
        if isinstance(component, torch.nn.Module):
            check_network(component, folder / name, variant)


def check_network(network: torch.nn.Module, folder: Path, variant: str | None = None) -> None:
    """diffusers fills a missing tensor with random numbers and loads NaN: look at every name and every value."""
    stored: set[str] = set()
    for file in folder.glob(f"*{variant}*.safetensors" if variant else "*.safetensors"):
        stored |= tensor_names(file)
    missing = sorted(key for key in network.state_dict() if not _is_stored(key, stored, network))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise Refused(
            f"pretrained: the weights of {folder.name} in {folder.parent} lack {missing[0]}{more}; "
            "fetch the model again"
        )
    for key, value in network.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise Refused(
                f"pretrained: {folder.name} in {folder.parent} has a NaN or infinity in {key}; fetch the model again"
            )


def _is_stored(key: str, stored: set[str], component: torch.nn.Module) -> bool:
    """Under its own name, under a name with the model's prefix (transformers' CLIPTextModel), or tied to one."""
    if key in stored or any(name.endswith(f".{key}") for name in stored):
        return True
    tied = getattr(component, "all_tied_weights_keys", None) or {}
    return key in tied


def tensor_names(file: Path) -> set[str]:
    """The names in a safetensors file, read from its header alone."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > min(100_000_000, file.stat().st_size):
            raise Refused(f"pretrained: {file} is not a safetensors file, or was cut short; fetch it again")
        header = json.loads(stream.read(length))
    return set(header) - {"__metadata__"}
