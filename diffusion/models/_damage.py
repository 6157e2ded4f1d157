"""What is damaged in a pipeline's folder, as far as file headers and JSON alone can tell: no weight is read, no torch.

Each library names its weights in its own way: `diffusion_pytorch_model.safetensors` and `model.safetensors`, one file
or an index of shards, and a variant's name between the dots. Only the files that would be loaded are looked at.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from genbo.diffusion.models._folder import components, has_variant, is_network, part_of, read_index
from genbo.rewards._json import mapping_in, not_finite

STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
LARGEST_HEADER = 100_000_000
POINTER = b"version https://git-lfs"
UNBOUNDED = ("lambda_min_clipped", "time_step_limit")  # an infinity here means that there is no bound
CONFIGS = ("config.json", "scheduler_config.json", "preprocessor_config.json")
WORDS = ("vocab.json", "merges.txt", "tokenizer.json", "spiece.model", "tokenizer.model", "vocab.txt")

# What is a number, or a list of them, in every config that has it.
NUMBERS = re.compile(
    r"(scaling|shift)_factor|latents_(mean|std)|beta_(start|end)|trained_betas|num_train_timesteps|steps_offset"
    r"|clip_sample_range|sample_max_value|dynamic_thresholding_ratio|shift|(base|max)_shift|shift_terminal"
    r"|(base|max)_image_seq_len|solver_order|sigma_(min|max)|rho|sample_size|(in|out|latent|block_out|caption)_channels"
    r"|layers_per_block|norm_num_groups|num_(single_)?layers|num_(attention_)?heads|attention_head_dim|patch_size"
    r"|(joint_attention|caption_projection)_dim|pooled_projection_dim|(hidden|intermediate|vocab)_size"
    r"|num_hidden_layers|max_position_embeddings|d_(model|ff|kv)"
)
POSITIVE = ("scaling_factor", "num_train_timesteps", "sample_size", "latents_std")


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
        yield from _empty_files(part)
        return
    for file in (part / name for name in CONFIGS):
        if file.is_file():
            yield from _config_damages(file)
    if is_network(kind):
        if not (part / "config.json").is_file():
            yield f"{part} has no config.json, which says what {kind} it is"
        yield from _weights_damages(part, library, variant)


def _empty_files(part: Path) -> Iterator[str]:
    for file in (part / name for name in WORDS):
        if file.is_file() and not file.stat().st_size:
            yield f"{file} is empty"


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
        if NUMBERS.fullmatch(name) and value is not None and (wrong := _no_number(value)):
            yield f"{file} says {name}: {wrong}, which must be a number"
        elif name in POSITIVE and isinstance(value, (int, float)) and value <= 0:
            yield f"{file} says {name}: {value}, which must be greater than 0"


def _no_number(value: Any) -> str | None:
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
            names_in(alone)
        except ValueError as error:
            yield str(error)


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
    """The tensors of a component without damage, by header or index; empty where it is not there."""
    if not part.is_dir():
        return set()
    whole, indices = weight_files(STEMS[library], variant if has_variant(part, variant) else None)
    index = next((part / name for name in indices if (part / name).is_file()), None)
    return set(mapping_in(index)["weight_map"]) if index else set(names_in(part / whole))
