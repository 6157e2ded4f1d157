"""Pipelines from disk or hub into memory, with every weight accounted for."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from genbo.diffusion.component import check_words, load_component, refusing
from genbo.diffusion.device import present
from genbo.diffusion.lora import file_of, merge_lora
from genbo.diffusion.parts import encoders, networks
from genbo.diffusion.pipeline_folder import components, part_of, read_index
from genbo.diffusion.refused import Refused
from genbo.diffusion.room import first_line

if TYPE_CHECKING:
    from genbo.diffusion.pipeline_options import PipelineOptions
    from genbo.diffusion.process import Model

VARIANTS = ("fp16", "bf16", "non_ema", "ema")  # weights beside the plain ones, that are not fetched unasked
FETCHED = ["*.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors", "diffusion_pytorch_model*.safetensors"]
UNSEEN = ("safety_checker", "feature_extractor")  # one blackens images unseen, and the other works for it alone
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_pipeline(options: PipelineOptions) -> Model:
    """The model that the options name, on its device, in eval mode, without gradients of its weights."""
    folder = options.folder or _fetch(options)
    if wrong := options.folder_mistakes(folder) or options.folder_damages(folder):
        raise Refused("; ".join(wrong))
    device = present(options.torch_device())
    dtype = DTYPES.get(options.dtype) or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    lora = None if options.lora is None else file_of(options.lora)
    pipeline, notes = _from_folder(folder, dtype, options.variant)
    fused = merge_lora(pipeline, lora, options.lora_scale) if lora else ()
    _place(pipeline, options, device)
    family = importlib.import_module(f"genbo.diffusion.pipelines.{options.family(type(pipeline).__name__)}")
    model: Any = family.open_pipeline(pipeline, options)
    model.lora_file, model.fused, model.notes = lora, fused, notes
    quicken(model.denoiser, options)
    return cast("Model", model)


def _place(pipeline: Any, options: PipelineOptions, device: torch.device) -> None:
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


def quicken(network: Any, options: PipelineOptions) -> None:
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


def _from_folder(folder: Path, dtype: torch.dtype, variant: str | None) -> tuple[Any, tuple[str, ...]]:
    """The pipeline, every component of it whole, and what is to be noted of them."""
    os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "true")
    index = read_index(folder)
    made = _pipeline_class(index)
    components_taken, options_taken = map(set, made._get_signature_keys(made))
    loaded = {
        name: load_component(part_of(folder, name), entry[0], entry[1], dtype, variant)
        for name, entry in components(index).items()
        if name in components_taken and name not in UNSEEN
    }
    parts = {name: component for name, (component, _) in loaded.items()}
    _check_words(parts, folder)
    nulls = {name for name, entry in index.items() if entry in (None, [None, None])}
    if absent := sorted(components_taken - {*parts, *nulls, *UNSEEN, *made._optional_components}):
        raise Refused(f"pretrained: {folder / 'model_index.json'} names no {absent[0]}; fetch the model again")
    options = {name: index[name] for name in options_taken & set(index)}
    with refusing(f"pretrained: diffusers cannot make a {made.__name__} of {folder}"):
        pipeline = made(**dict.fromkeys(components_taken) | parts, **options)
    pipeline.register_to_config(_name_or_path=str(folder))
    _check_levels(pipeline, folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, tuple(note for _, note in loaded.values() if note)


def _pipeline_class(index: dict[str, Any]) -> Any:
    import diffusers

    name = str(index.get("_class_name"))
    found = getattr(diffusers, name, None)
    if not isinstance(found, type) or not issubclass(found, diffusers.DiffusionPipeline):
        raise Refused(f"pretrained: the installed diffusers has no {name}; update it (`pip install -U diffusers`)")
    return found


def _check_words(parts: dict[str, Any], folder: Path) -> None:
    """Each tokenizer beside the text encoder that reads it."""
    for name, tokenizer in parts.items():
        encoder = parts.get(name.replace("tokenizer", "text_encoder")) if "tokenizer" in name else None
        if encoder is not None and hasattr(encoder, "get_input_embeddings"):
            check_words(tokenizer, encoder, part_of(folder, name))


def _check_levels(pipeline: Any, folder: Path) -> None:
    """A scheduler's settings may be numbers, and make noise levels that are none."""
    from diffusers import SchedulerMixin

    scheduler = getattr(pipeline, "scheduler", None)
    betas = getattr(scheduler, "betas", None)
    if not isinstance(scheduler, SchedulerMixin) or not isinstance(betas, torch.Tensor):
        return
    where, steps = part_of(folder, "scheduler") / "scheduler_config.json", scheduler.config.get("num_train_timesteps")
    if not ((betas >= 0) & (betas <= 1)).all():
        raise Refused(f"pretrained: by {where} not every beta lies in [0, 1]; fetch the model again")
    if len(betas) != steps:
        raise Refused(f"pretrained: {where} has {len(betas)} betas for {steps} training steps; fetch the model again")


def _fetch(options: PipelineOptions) -> Path:
    """The snapshot of a hub id: safetensors, JSON and text only."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            options.pretrained,
            revision=options.revision,
            allow_patterns=FETCHED,
            ignore_patterns=None if options.variant else [f"*.{name}*.safetensors" for name in VARIANTS],
        )
    except (OSError, ValueError) as error:
        raise Refused(
            f"pretrained: {options.pretrained} is no folder here and could not be fetched from the hub "
            f"({first_line(error)}); check the name, the network and, for a gated model, `hf auth login`"
        ) from error
    return Path(folder)
