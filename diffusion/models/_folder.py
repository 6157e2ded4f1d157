"""What a pipeline's folder says of itself, from file names and JSON alone: mistakes, and what its network is told.

The folder is untrusted data. Its pipeline class must be one that genbo knows, its components must be diffusers' or
transformers', its weights safetensors, and there must be no code in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PIPELINES = Path(__file__).parent.parent / "pipelines"
COMPONENT_MODULES = ("diffusers", "transformers")
CHECKER = ["stable_diffusion", "StableDiffusionSafetyChecker"]  # never loaded: it would blacken images unseen
TOKENS = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")  # each can make a tokenizer
PICKLES = ("*.bin", "*.pt", "*.ckpt", "*.pth")
AGAIN = "save it again with save_pretrained(..., safe_serialization=True)"


def families() -> dict[str, str]:
    """Pipeline class -> the file in `diffusion/pipelines/` that knows it, which opens with the class's name."""
    found = {}
    for file in sorted(PIPELINES.glob("[!_]*.py")):
        name = file.read_text(encoding="utf-8").split('"""', 2)[1].split(":", 1)[0].strip()
        found[name] = file.stem
    return found


def read_index(folder: Path) -> dict[str, Any]:
    """`model_index.json` as a dict; ValueError where it is not JSON or not one."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    if not isinstance(index, dict):
        raise ValueError("not a mapping")
    return index


def components(index: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Name -> [library, class] of what the pipeline is made of, but for the safety checker."""
    found = {name: entry for name, entry in index.items() if not name.startswith("_") and isinstance(entry, list)}
    return {name: entry for name, entry in found.items() if entry != CHECKER and entry[:1] != [None]}


# -- mistakes ----------------------------------------------------------------------------------------------------------


def folder_mistakes(folder: Path, variant: str | None = None, *, any_class: bool = False) -> list[str]:
    """What is wrong with a pipeline's folder; with `any_class` it may be a pipeline that genbo has no file for."""
    if not (folder / "model_index.json").is_file():
        hint = (
            " (it looks like a single component: give the folder above it)" if (folder / "config.json").exists() else ""
        )
        return [f"pretrained: {folder} has no model_index.json, so it is not a diffusers pipeline{hint}"]
    try:
        index = read_index(folder)
    except ValueError as error:
        return [f"pretrained: {folder / 'model_index.json'} cannot be read as JSON: {error}"]
    kind = index.get("_class_name")
    if not isinstance(kind, str) or not (kind in families() or (any_class and re.fullmatch(r"\w+Pipeline", kind))):
        known = ", ".join(sorted(families()))
        way_out = "" if any_class else "; any other that diffusers ships can be a black box: write model.kind: blackbox"
        return [f"pretrained: {folder.name} is a {kind!r}; genbo knows {known}{way_out}"]
    return [
        said for name, entry in components(index).items() for said in _component_mistakes(folder, name, entry, variant)
    ]


def _component_mistakes(folder: Path, name: str, entry: list[Any], variant: str | None) -> list[str]:
    library = entry[0] if len(entry) == 2 else entry
    if not re.fullmatch(r"\w+", name) or library not in COMPONENT_MODULES:
        return [
            f"pretrained: component {name!r} comes from {library!r}; genbo loads components of diffusers and "
            "transformers only, and never runs code from a model's folder"
        ]
    part = folder / name
    if not part.is_dir():
        return [
            f"pretrained: {folder.name} has no {name}/ folder, which its model_index.json names; fetch the model again"
        ]
    if list(part.glob("*.py")):
        return [f"pretrained: {part} holds Python code, which genbo does not run; remove it or take a model without"]
    if "Tokenizer" in str(entry[1]) and not any((part / file).is_file() for file in TOKENS):
        return [f"pretrained: {part} has no vocabulary ({', '.join(TOKENS)}), so no word is known; fetch it again"]
    is_network = (part / "config.json").exists()
    return _weights_mistakes(part, variant) if is_network else []


def _weights_mistakes(part: Path, variant: str | None) -> list[str]:
    if list(part.glob(f"*{variant}*.safetensors" if variant else "*.safetensors")):
        return []
    if pickles := [file.name for kind in PICKLES for file in part.glob(kind)]:
        return [f"pretrained: {part.name} has only {pickles[0]}, which could run code when read; {AGAIN}"]
    what = f"safetensors of variant {variant!r}" if variant else "safetensors"
    return [f"pretrained: {part} has no {what}; fetch the weights (a repository's large files may be mere pointers)"]


def lora_mistakes(lora: str) -> list[str]:
    """What is wrong with a LoRA's file, or with the folder that holds it."""
    path = Path(lora).expanduser()
    if not path.exists():
        return [f"lora: there is no file or folder {lora!r}; fetch it (`hf download owner/name --local-dir ...`)"]
    if path.is_file():
        return [] if path.suffix == ".safetensors" else [f"lora: {path.name} could run code when read; {AGAIN}"]
    files = sorted(file.name for file in path.glob("*.safetensors"))
    if len(files) > 1:
        return [f"lora: {path} holds {', '.join(files)}; name one of them"]
    return [] if files else [f"lora: {path} has no safetensors; give the file that save_lora_weights wrote"]


# -- what the network is told ------------------------------------------------------------------------------------------


def config_of(folder: Path, part: str, file: str = "config.json") -> dict[str, Any]:
    """A component's config; empty where it cannot be read."""
    try:
        config = json.loads((folder / part / file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def scheduler_of(folder: Path) -> dict[str, Any]:
    return config_of(folder, "scheduler", "scheduler_config.json")


def is_flow(folder: Path) -> bool:
    return "FlowMatch" in str(scheduler_of(folder).get("_class_name"))


def takes_guidance(folder: Path) -> bool:
    """Whether the network was distilled to be told its guidance."""
    return bool(config_of(folder, "transformer").get("guidance_embeds"))


def is_unconditional(folder: Path) -> bool:
    """Whether the network is told nothing."""
    unet = config_of(folder, "unet")
    return unet.get("_class_name") == "UNet2DModel" and not unet.get("num_class_embeds")


def class_names(folder: Path) -> list[str]:
    """The names of the classes in order, where a genbo.json beside the pipeline has them."""
    listed = config_of(folder, "", "genbo.json").get("classes")
    return [str(name) for name in listed] if isinstance(listed, list) else []


def known_prompts(folder: Path) -> list[str] | None:
    """The classes of a network that is told one, by name and by number; None where prompts are words."""
    unet = config_of(folder, "unet")
    if unet.get("_class_name") == "UNet2DModel" and isinstance(number := unet.get("num_class_embeds"), int):
        return [*class_names(folder), *map(str, range(number))]
    if config_of(folder, "", "model_index.json").get("_class_name") == "DiTPipeline":
        number = config_of(folder, "transformer").get("num_embeds_ada_norm")
        return [*_imagenet(folder), *map(str, range(number if isinstance(number, int) else 1000))]
    return None


def _imagenet(folder: Path) -> Iterator[str]:
    """Every name in `id2label`, which has several a class, separated by commas."""
    listed = config_of(folder, "", "model_index.json").get("id2label")
    for named in listed.values() if isinstance(listed, dict) else ():
        yield from (name.strip() for name in str(named).split(","))
