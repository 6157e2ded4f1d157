"""A LoRA file merged into the weights of a pipeline, every tensor of it.

diffusers puts what fits where it fits, and only logs what does not. So the names that it converts a file to are held
against those that its adapters have: a tensor that fits no layer is refused, and so is a layer that lacks one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genbo.diffusion.component import refusing
from genbo.diffusion.damage import lora_damages, no_layer, some
from genbo.diffusion.parts import networks
from genbo.diffusion.pipeline_folder import lora_file, lora_mistakes
from genbo.diffusion.refused import Refused

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER = "genbo"


def file_of(lora: str) -> Path:
    """The LoRA's file, whole as far as its header tells. Raises `Refused`."""
    if mistakes := lora_mistakes(lora):
        raise Refused("; ".join(mistakes))
    file = lora_file(lora)
    if damages := lora_damages(file):
        raise Refused("; ".join(damages))
    return file


def merge_lora(pipeline: Any, file: Path, scale: float) -> tuple[str, ...]:
    """Add a LoRA to the weights at its scale; the names of the components that it changed."""
    # diffusers has a mixin of its own for each family of LoRA, so the method is what they share
    if not hasattr(pipeline, "load_lora_weights"):
        raise Refused(f"lora: diffusers loads none into a {type(pipeline).__name__}; leave it out")
    _check_finite(file)
    with refusing(f"lora: {file} does not fit this model", "take one of its family"):
        given = {"weight_name": file.name, "use_safetensors": True, "local_files_only": True}
        found = pipeline.lora_state_dict(str(file.parent), **given)
        pipeline.load_lora_weights(str(file.parent), adapter_name=ADAPTER, **given)
    changed = tuple(sorted(name for name, adapters in pipeline.get_list_adapters().items() if adapters))
    _check_names(pipeline, changed, found[0] if isinstance(found, tuple) else found, file)
    with refusing(f"lora: {file} cannot be merged", "take one of this model's family"):
        pipeline.fuse_lora(components=list(changed), lora_scale=scale, adapter_names=[ADAPTER])
        pipeline.unload_lora_weights()
    for name in changed:
        _check_merged(getattr(pipeline, name), name, file, scale)
    return changed


def _check_names(pipeline: object, changed: tuple[str, ...], tensors: Mapping[str, Tensor], file: Path) -> None:
    """Every tensor of the file in an adapter, and every one of the adapters in the file."""
    from peft import get_peft_model_state_dict

    strange, absent = {name for name in tensors if not name.endswith("alpha")}, set()
    total, known = len(strange), networks(pipeline)
    for part in changed:
        own = {name: name for name in get_peft_model_state_dict(known[part], adapter_name=ADAPTER)}
        here = _as_peft_names(
            part, known[part], {name: tensors[name] for name in strange if name.startswith(f"{part}.")}
        )
        strange -= {name for name, theirs in here.items() if theirs in own}
        absent |= {f"{part}.{name}" for name in set(own) - set(here.values())}
    if strange:
        raise Refused(no_layer(file, sorted(strange), total))
    if absent:
        raise Refused(f"lora: {file} lacks {some(sorted(absent))}; fetch it again")


def _as_peft_names(part: str, network: object, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Each name in the file -> that in peft, by diffusers' own conversions, which keep the tensors themselves."""
    from diffusers.utils import (
        convert_state_dict_to_diffusers,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    theirs: Any = {name.removeprefix(f"{part}."): value for name, value in tensors.items()}
    if theirs and part.startswith("text_encoder"):
        theirs = convert_state_dict_to_peft(convert_state_dict_to_diffusers(theirs))
        if not hasattr(network, "text_model"):  # some versions of transformers have this level
            theirs = {name.removeprefix("text_model."): value for name, value in theirs.items()}
    elif theirs and not any("lora_A" in name or ".lokr_" in name for name in theirs):
        theirs = convert_unet_state_dict_to_peft(theirs)
    name_of = {id(value): str(name) for name, value in theirs.items()}
    return {name: name_of.get(id(value), "") for name, value in tensors.items()}


def _check_finite(file: Path) -> None:
    from safetensors import safe_open

    with refusing(f"lora: {file} cannot be read", "fetch it again"), safe_open(file, framework="pt") as held:
        for name in held.keys():  # noqa: SIM118  it is no mapping
            value = held.get_tensor(name)
            if value.is_floating_point() and not value.isfinite().all():
                raise Refused(f"lora: {file} has a NaN or infinity in {name}; fetch it again")


def _check_merged(network: Any, part: str, file: Path, scale: float) -> None:
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise Refused(
                f"lora: with {file} at lora_scale {scale:g}, {name} of {part} has a NaN or infinity; take a smaller "
                "lora_scale, or dtype: fp32"
            )
