"""What a pipeline's folder says of itself, from file names and JSON alone: mistakes, and what its network is told.

The folder is untrusted data. Its pipeline class must be one that genbo knows, its components must be diffusers' or
transformers', its weights safetensors, and there must be no code in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PIPELINES = Path(__file__).parent / "pipelines"
COMPONENT_MODULES = ("diffusers", "transformers")
CHECKER = ["stable_diffusion", "StableDiffusionSafetyChecker"]  # never loaded: it would blacken images unseen
TOKENS = (  # each set of files can make a tokenizer
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("spiece.model",),
    ("tokenizer.model",),
    ("tiktoken.model",),
    ("vocab.txt",),
)
SENTENCEPIECE = ("spiece.model", "tokenizer.model")
READS_SENTENCEPIECE = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}  # module -> package
DISPENSABLE = ("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor", "safety_checker")  # may be null
PART = re.compile(r"unet|transformer|vae|scheduler|image_encoder|feature_extractor|(text_encoder|tokenizer)(_\d)?")
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


def part_of(folder: Path, name: str) -> Path:
    """Where a component lies: in a folder of its own, or beside model_index.json, as `from_pretrained` looks for it."""
    return part if (part := folder / name).is_dir() else folder


def nulls(index: Mapping[str, object]) -> list[str]:
    """The components that the index leaves out: null, or [null, null]."""
    return [name for name, entry in index.items() if PART.fullmatch(name) and entry in (None, [None, None])]


def is_network(kind: str) -> bool:
    """Whether a component of this class has weights."""
    return not any(word in kind for word in ("Tokenizer", "Scheduler", "Processor", "FeatureExtractor"))


def has_variant(part: Path, variant: str | None) -> bool:
    """Whether a component has weights of this variant; diffusers takes the plain ones of one that has not."""
    return variant is not None and any(
        f".{variant}." in file.name or f".{variant}-" in file.name for file in part.iterdir()
    )


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
    found = [] if any_class else _nulls_mistakes(folder, kind, index)
    for name, entry in components(index).items():
        found += _component_mistakes(folder, name, entry, variant)
    parts = [part_of(folder, name) for name in components(index)]
    if variant and not found and not any(has_variant(part, variant) for part in parts):
        found.append(f"pretrained: no component of {folder.name} has weights of variant {variant!r}; leave variant out")
    return found


def _nulls_mistakes(folder: Path, kind: str, index: Mapping[str, object]) -> list[str]:
    """A component that is left out, and without which the pipeline cannot draw."""
    without = {*DISPENSABLE, *(("text_encoder", "tokenizer") if kind == "StableDiffusionXLPipeline" else ())}
    read = {name.replace("tokenizer", "text_encoder"): name for name in nulls(index) if name.startswith("tokenizer")}
    lonely = [name for encoder, name in read.items() if encoder in components(index)]
    missing = [name for name in nulls(index) if name not in without or name in lonely]
    where = folder / "model_index.json"
    return [f"pretrained: {where} says null for {name}; save the pipeline again with it" for name in missing]


def _component_mistakes(folder: Path, name: str, entry: list[Any], variant: str | None) -> list[str]:
    library = entry[0] if len(entry) == 2 and isinstance(entry[1], str) else entry
    if not re.fullmatch(r"\w+", name) or library not in COMPONENT_MODULES:
        return [
            f"pretrained: component {name!r} comes from {library!r}; genbo loads components of diffusers and "
            "transformers only, and never runs code from a model's folder"
        ]
    part, kind = part_of(folder, name), entry[1]
    if part == folder and not _is_at_root(folder, kind):
        return [
            f"pretrained: {folder.name} has no {name}/ folder, which its model_index.json names; fetch the model again"
        ]
    if list(part.glob("*.py")):
        return [f"pretrained: {part} holds Python code, which genbo does not run; remove it or take a model without"]
    if "Tokenizer" in kind:
        return _tokenizer_mistakes(part)
    return _weights_mistakes(part, variant) if is_network(kind) else []


def _is_at_root(folder: Path, kind: str) -> bool:
    """Whether what lies beside model_index.json is this component, by the class that its config names."""
    if "Tokenizer" in kind:
        return bool(_tokens_in(folder))
    if not is_network(kind):
        file = "scheduler_config.json" if "Scheduler" in kind else "preprocessor_config.json"
        return (folder / file).is_file()
    config = config_of(folder, "")
    return kind == config.get("_class_name") or kind in (config.get("architectures") or ())


def _tokens_in(part: Path) -> list[tuple[str, ...]]:
    return [names for names in TOKENS if all((part / name).is_file() for name in names)]


def _tokenizer_mistakes(part: Path) -> list[str]:
    found = _tokens_in(part)
    if not found:
        names = ", ".join(" with ".join(names) for names in TOKENS)
        return [f"pretrained: {part} has no vocabulary ({names}), so no word is known; fetch it again"]
    missing = [package for module, package in READS_SENTENCEPIECE.items() if not _is_installed(module)]
    if missing and all(names[0] in SENTENCEPIECE for names in found):
        packages = " ".join(missing)
        return [f"pretrained: {part / found[0][0]} is a sentencepiece model, which needs: pip install {packages}"]
    return []


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package above it
        return False


def _weights_mistakes(part: Path, variant: str | None) -> list[str]:
    ours = variant if has_variant(part, variant) else None
    if list(part.glob(f"*{ours}*.safetensors" if ours else "*.safetensors")):
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


def lora_file(lora: str) -> Path:
    """The one file of a LoRA without mistakes."""
    path = Path(lora).expanduser()
    return path if path.is_file() else next(path.glob("*.safetensors"))


# -- what the network is told ------------------------------------------------------------------------------------------


def config_of(folder: Path, part: str, file: str = "config.json") -> dict[str, Any]:
    """A component's config; empty where it cannot be read, or is another component's."""
    try:
        config = json.loads((part_of(folder, part) / file).read_text(encoding="utf-8"))
        at_root = part and not (folder / part).is_dir()
        if at_root and part not in read_index(folder):
            return {}
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def scheduler_of(folder: Path) -> dict[str, object]:
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
