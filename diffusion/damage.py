"""What is damaged in a pipeline's folder, as far as file headers and JSON alone can tell: no weight is read, no torch.

Each library names its weights in its own way: `diffusion_pytorch_model.safetensors` and `model.safetensors`, one file
or an index of shards, and a variant's name between the dots. Only the files that would be loaded are looked at.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from genbo.diffusion.pipeline_folder import components, has_variant, is_network, part_of, read_index
from genbo.rewards._json import mapping_in, not_finite

STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
LARGEST_CONFIG = 1_000_000
LARGEST_HEADER = 100_000_000
POINTER = b"version https://git-lfs"
UNBOUNDED = ("lambda_min_clipped", "time_step_limit")  # an infinity here means that there is no bound
CONFIGS = ("config.json", "scheduler_config.json", "preprocessor_config.json")
WORDS = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "spiece.model", "tokenizer.model"),
)

# What is a number, or a list of them, in every config that has it.
NUMBERS = re.compile(
    r"(scaling|shift)_factor|latents_(mean|std)|beta_(start|end)|trained_betas|num_train_timesteps|steps_offset"
    r"|clip_sample_range|sample_max_value|dynamic_thresholding_ratio|shift|(base|max)_shift|shift_terminal"
    r"|(base|max)_image_seq_len|solver_order|sigma_(min|max)|rho|sample_size|(in|out|latent|block_out|caption)_channels"
    r"|layers_per_block|norm_num_groups|num_(single_)?layers|num_(attention_)?heads|attention_head_dim|patch_size"
    r"|(joint_attention|caption_projection)_dim|pooled_projection_dim|(hidden|intermediate|vocab)_size"
    r"|num_hidden_layers|max_position_embeddings|d_(model|ff|kv)"
)
CHOICES = {
    "prediction_type": ("epsilon", "v_prediction", "sample", "flow_prediction"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
}
ONE = ("scaling_factor", "beta_start", "beta_end", "num_train_timesteps")  # never several
POSITIVE = ("scaling_factor", "num_train_timesteps", "sample_size", "latents_std", "shift")


def damages(folder: Path, variant: str | None = None) -> list[str]:
    """A sentence for each component that cannot be what was saved; of a folder without other mistakes."""
    found: list[str] = []
    for name, entry in components(read_index(folder)).items():
        found += part_damages(part_of(folder, name), str(entry[0]), str(entry[1]), variant)
    return found


def part_damages(part: Path, library: str, kind: str, variant: str | None = None) -> list[str]:
    """The first damage of one component's own folder, as a sentence."""
    said = next(_damages(part, library, kind, variant), None)
    return [f"pretrained: {said}; fetch the model again"] if said else []


def _damages(part: Path, library: str, kind: str, variant: str | None) -> Iterator[str]:
    if "Tokenizer" in kind:
        yield from _words_damages(part)
        return
    needed = "config.json" if is_network(kind) else "scheduler_config.json" if "Scheduler" in kind else None
    if needed and not (part / needed).is_file():
        yield f"{part} has no {needed}, which says what {kind} it is"
    for file in (part / name for name in CONFIGS):
        if file.is_file():
            yield from _config_damages(file)
    if is_network(kind):
        yield from _weights_damages(part, library, variant)


def _words_damages(part: Path) -> Iterator[str]:
    for file in (part / name for name in WORDS):
        if file.is_file() and not file.stat().st_size:
            yield f"{file} is empty"
        elif file.is_file() and file.suffix == ".json":
            yield from _json_damages(file)


def _json_damages(file: Path) -> Iterator[str]:
    """Of a small file all, of a large one whether its end is there."""
    try:
        if file.stat().st_size <= LARGEST_CONFIG:
            mapping_in(file)
            return
        with file.open("rb") as stream:
            stream.seek(-64, os.SEEK_END)
            if not stream.read().rstrip().endswith(b"}"):
                raise ValueError("its end is missing")
    except (OSError, ValueError) as error:
        yield f"{file} cannot be read ({error})"


# -- configs -----------------------------------------------------------------------------------------------------------


def _config_damages(file: Path) -> Iterator[str]:
    try:
        config = mapping_in(file)
    except (OSError, ValueError) as error:
        yield f"{file} cannot be read ({error})"
        return
    for where, value in not_finite(config):
        bound = where.partition(".")[0] in UNBOUNDED and not math.isnan(value)
        if not bound:
            yield f"{file} says {where}: {value}, which is no finite number"
    for name, value in config.items():
        if wrong := _wrong(name, value):
            yield f"{file} says {name}: {wrong}"
    for name in ("latents_mean", "latents_std"):
        channels, listed = config.get("latent_channels"), config.get(name)
        if isinstance(listed, list) and isinstance(channels, int) and len(listed) != channels:
            yield f"{file} says {name} of {len(listed)} numbers, for {channels} latent_channels"


def _wrong(name: str, value: object) -> str | None:
    """What cannot be the value of this name, in whatever config it stands, and why."""
    said = json.dumps(value)[:60]
    if name in CHOICES:
        return None if value in CHOICES[name] else f"{said}, which must be one of {', '.join(CHOICES[name])}"
    if name in ONE and (isinstance(value, list) or (value is None and name != "num_train_timesteps")):
        return f"{said}, which must be a number"
    if NUMBERS.fullmatch(name) and value is not None and (part := _no_number(value)):
        return f"{part}, which must be a number"
    if name == "sample_size" and isinstance(value, list) and len(value) != 2:
        return f"{said}, which must be a number, or a height and a width"
    smallest = min(_flat(value), default=1) if name in POSITIVE else 1
    return None if smallest > 0 else f"{said}, which must be greater than 0"


def _flat(value: object) -> list[float]:
    """A number, or those of a list."""
    return [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, (int, float))]


def _no_number(value: object) -> str | None:
    """The first of a value's parts that is no number, as JSON; None where all are."""
    if isinstance(value, list):
        return next((wrong for part in value if part is not None and (wrong := _no_number(part))), None)
    return None if isinstance(value, (int, float)) and not isinstance(value, bool) else json.dumps(value)[:60]


# -- weights -----------------------------------------------------------------------------------------------------------


def _weights_damages(part: Path, library: str, variant: str | None) -> Iterator[str]:
    stem = STEMS[library]
    variant = variant if has_variant(part, variant) else None
    whole, indices = weight_files(stem, variant)
    index = next((part / name for name in indices if (part / name).is_file()), None)
    alone = part / whole
    if index is not None and not (library == "transformers" and alone.is_file()):
        yield from _index_damages(index, needs_metadata=library == "diffusers")
    elif not alone.is_file():
        yield f"{part} has neither {whole} nor {indices[0]}"
    else:
        try:
            names = names_in(alone)
        except ValueError as error:
            yield str(error)
            return
        if library == "transformers" and (twice := _twice(names)):
            yield f"{alone} holds {twice[0]} and {twice[1]}, which are two values of one tensor"


def _twice(names: list[str]) -> tuple[str, str] | None:
    """A tensor with and without the prefix that transformers adds or takes away, as it wants it."""
    bare = set(names)
    pairs = ((name, f"{prefix}.{name}") for prefix in ("text_model", "model") for name in names)
    return next((pair for pair in pairs if pair[1] in bare), None)


def weight_files(stem: str, variant: str | None) -> tuple[str, list[str]]:
    """The name of a single file, and those that an index of shards may have."""
    if variant is None:
        return f"{stem}.safetensors", [f"{stem}.safetensors.index.json"]
    names = [f"{stem}.safetensors.index.{variant}.json", f"{stem}.safetensors.{variant}.index.json"]
    return f"{stem}.{variant}.safetensors", names


def _index_damages(index: Path, *, needs_metadata: bool) -> Iterator[str]:
    try:
        said = mapping_in(index)
    except (OSError, ValueError) as error:
        yield f"{index} cannot be read ({error})"
        return
    shard_of = said.get("weight_map")
    plain = isinstance(shard_of, dict) and all(_is_plain(name) for name in shard_of.values())
    if not shard_of or not plain or (needs_metadata and not isinstance(said.get("metadata"), dict)):
        yield f"{index} is no index of shards: it must have metadata, and a weight_map from tensors to files beside it"
        return
    yield from _shard_damages(index, shard_of)


def _is_plain(name: object) -> bool:
    """Of a file beside the index, and none elsewhere."""
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def _shard_damages(index: Path, shard_of: Mapping[str, str]) -> Iterator[str]:
    held: dict[str, set[str]] = {}
    for name in sorted(set(shard_of.values())):
        file = index.parent / name
        if not file.is_file():
            yield f"{file} is missing, which {index.name} names"
            return
        try:
            held[name] = set(names_in(file))
        except ValueError as error:
            yield str(error)
            return
    absent = sorted(tensor for tensor, name in shard_of.items() if tensor not in held[name])
    if absent:
        yield f"the weights in {index.parent} lack {some(absent)}, which {index.name} places in {shard_of[absent[0]]}"


def some(names: list[str]) -> str:
    """The first of them, and how many more."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def names_in(file: Path) -> list[str]:
    """The tensors of a whole safetensors file, from its header alone. ValueError says what is wrong."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            if POINTER.startswith(start) and start:
                raise ValueError(f"{file} is a pointer of Git LFS and not the weights themselves")
            length = int.from_bytes(start, "little")
            if not size:
                raise ValueError(f"{file} is empty")
            if not 2 <= length <= min(LARGEST_HEADER, size - 8):
                raise ValueError(f"{file} is no safetensors file, or was cut short")
            header = json.loads(stream.read(length))
        entries = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
        end = 8 + length + max((int(stop) for _, stop in entries.values()), default=0)
    except (
        OSError,
        RecursionError,
        KeyError,
        TypeError,
        AttributeError,
        json.JSONDecodeError,
        UnicodeDecodeError,
    ) as error:
        raise ValueError(f"{file} is no safetensors file, or is damaged ({error})") from error
    if end != size:
        raise ValueError(f"{file} was cut short: its header speaks of {end:,} bytes, and it has {size:,}")
    return list(entries)


# -- LoRA --------------------------------------------------------------------------------------------------------------


def lora_damages(file: Path, folder: Path | None = None, variant: str | None = None) -> list[str]:
    """What of a LoRA's file is damaged, or plainly of another model than the folder's."""
    try:
        names = [name for name in names_in(file) if not name.endswith("alpha")]
    except ValueError as error:
        return [f"lora: {error}; fetch it again"]
    if not names:
        return [f"lora: {file} holds no tensor; take another file"]
    strange = _of_no_layer(names, folder, variant) if folder else []
    return [no_layer(file, strange, len(names))] if strange else []


def no_layer(file: Path, strange: list[str], total: int) -> str:
    return (
        f"lora: {len(strange)} of {total} tensors of {file} fit no layer of this model ({some(strange)}); "
        "take one that was made for it"
    )


def _of_no_layer(names: list[str], folder: Path, variant: str | None) -> list[str]:
    """Tensors by peft's names whose layer the network's file has not, while it has others of them."""
    strange: list[str] = []
    for part in ("unet", "transformer"):
        layer_of = {
            name: found[1] for name in names if (found := re.fullmatch(rf"{part}\.(.+)\.lora_[AB]\.weight", name))
        }
        held = _held(folder / part, "diffusers", variant) if layer_of else set()
        absent = [name for name, layer in layer_of.items() if f"{layer}.weight" not in held]
        strange += absent if len(absent) < len(layer_of) else []
    return sorted(strange)


def _held(part: Path, library: str, variant: str | None) -> set[str]:
    """The tensors of a component, by header or index; empty where it is not there, or not whole."""
    if not part.is_dir() or next(_weights_damages(part, library, variant), None):
        return set()
    whole, indices = weight_files(STEMS[library], variant if has_variant(part, variant) else None)
    index = next((part / name for name in indices if (part / name).is_file()), None)
    return set(mapping_in(index)["weight_map"]) if index else set(names_in(part / whole))
