"""Pipelines from disk or hub into memory, with every weight accounted for."""

from __future__ import annotations

import importlib
import json
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from genbo.diffusion.device import present
from genbo.diffusion.models._folder import components, lora_mistakes, read_index
from genbo.diffusion.pipelines._pipeline import encoders, networks
from genbo.diffusion.refused import Refused
from genbo.diffusion.room import first_line

if TYPE_CHECKING:
    from genbo.diffusion.models.diffusers import Diffusers
    from genbo.diffusion.process import Model

VARIANTS = ("fp16", "bf16", "non_ema", "ema")  # weights beside the plain ones, that are not fetched unasked
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_pipeline(options: Diffusers) -> Model:
    """The model that the options name, on its device, in eval mode, without gradients of its weights."""
    folder = options.folder or _fetch(options)
    mistakes = options.folder_mistakes(folder)
    if mistakes:
        raise Refused("; ".join(mistakes))
    device = present(options.torch_device())
    dtype = DTYPES.get(options.dtype) or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    pipeline = _from_folder(folder, dtype, options.variant)
    _check_weights(pipeline, folder, options.variant)
    lora = None if options.lora is None else _lora_file(Path(options.lora).expanduser())
    fused = merge_lora(pipeline, lora, options.lora_scale) if lora else ()
    _place(pipeline, options, device)
    family = importlib.import_module(f"genbo.diffusion.pipelines.{options.family(type(pipeline).__name__)}")
    model: Any = family.open_pipeline(pipeline, options)
    model.lora_file, model.fused = lora, fused
    quicken(model.denoiser, options)
    return cast("Model", model)


def _place(pipeline: Any, options: Diffusers, device: torch.device) -> None:
    """Onto the device, whole or a part at a time; a decoder that overflows in fp16 works in fp32."""
    vae = getattr(pipeline, "vae", None)
    if vae is not None and vae.dtype == torch.float16 and vae.config.get("force_upcast"):
        vae.to(torch.float32)
    if options.vae_tiling and vae is not None:
        vae.enable_tiling()
    if options.vae_slicing and vae is not None:
        vae.enable_slicing()
    if options.offload != "none" and device.type == "cpu":
        raise Refused("offload: there is nothing to move away from where the device is the CPU; set offload: none")
    if options.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif options.offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        stay = encoders(pipeline) if options.offload == "encoders" else {}
        for name, network in networks(pipeline).items():
            network.to("cpu" if name in stay else device)


def quicken(network: Any, options: Diffusers) -> None:
    """Attention by the backend that is asked for, and blocks compiled: the repeated ones alone, which is quick."""
    if options.attention != "auto":
        try:
            network.set_attention_backend(options.attention)
        except (ValueError, RuntimeError, ImportError, AttributeError) as error:
            raise Refused(f"attention: {first_line(error)}; set attention: auto") from error
    if options.compile == "on":
        repeated = network._repeated_blocks or network._no_split_modules or ()
        blocks = [module for module in network.modules() if type(module).__name__ in repeated]
        for module in blocks or [network]:
            module.compile()


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
            folder, dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True, **_unwanted(folder)
        )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise Refused(f"pretrained: diffusers cannot load {folder}: {first_line(error)}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _unwanted(folder: Path) -> dict[str, None]:
    """The safety checker, which would blacken images before a reward sees them, is not loaded."""
    index = read_index(folder)
    listed = {name for name, entry in index.items() if isinstance(entry, list) and name not in components(index)}
    return dict.fromkeys(listed & {"safety_checker"})


def _fetch(options: Diffusers) -> Path:
    """The snapshot of a hub id: safetensors, JSON and text only."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            options.pretrained,
            revision=options.revision,
            allow_patterns=["*.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors"],
            ignore_patterns=None if options.variant else [f"*.{name}*.safetensors" for name in VARIANTS],
        )
    except (OSError, ValueError) as error:
        raise Refused(
            f"pretrained: {options.pretrained} is no folder here and could not be fetched from the hub "
            f"({first_line(error)}); check the name, the network and, for a gated model, `hf auth login`"
        ) from error
    return Path(folder)


def _check_weights(pipeline: Any, folder: Path, variant: str | None) -> None:
    """Every network of a pipeline."""
    for name, component in networks(pipeline).items():
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


# -- LoRA --------------------------------------------------------------------------------------------------------------


def merge_lora(pipeline: Any, file: Path, scale: float) -> tuple[str, ...]:
    """Add a LoRA to the weights at its scale; the names of the components that it changed."""
    if not hasattr(pipeline, "load_lora_weights"):
        raise Refused(f"lora: diffusers loads none into a {type(pipeline).__name__}; leave it out")
    _check_finite(file)
    try:
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise Refused(f"lora: {file} does not fit this model ({first_line(error)}); take one of its family") from error
    changed = tuple(sorted(name for name, adapters in pipeline.get_list_adapters().items() if adapters))
    if not changed:
        raise Refused(f"lora: {file} names no layer of this model; take one that was made for it")
    pipeline.fuse_lora(components=list(changed), lora_scale=scale)
    pipeline.unload_lora_weights()
    return changed


def _lora_file(path: Path) -> Path:
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if len(files) != 1 or files[0].suffix != ".safetensors":
        raise Refused("; ".join(lora_mistakes(str(path))))
    return files[0]


def _check_finite(file: Path) -> None:
    from safetensors.torch import load_file

    for name, value in load_file(file).items():
        if not value.isfinite().all():
            raise Refused(f"lora: {file} has a NaN or infinity in {name}; fetch it again")
