"""Safetensors files of the user's: what they hold, from the header alone, and their tensors, whole and finite.

Nothing here runs code: pickled files are refused. Looking at a file needs no torch, so a job can be checked without it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genbo.rewards import Refused

if TYPE_CHECKING:
    from torch import Tensor

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LARGEST_HEADER = 100_000_000
COUNTS = ("num_batches_tracked", "position_ids")  # ends of names: what inference never reads, and not every file keeps

Shape = tuple[int, ...]


def file_mistake(path: Path) -> str | None:
    """Why this cannot be a safetensors file to read, before looking into it."""
    if path.suffix in PICKLED:
        return (
            f"pretrained: {path} is a pickled file, which can run code; convert it to safetensors: "
            f'safetensors.torch.save_file(torch.load("{path.name}", weights_only=True), "{path.stem}.safetensors")'
        )
    if not path.is_file():
        return f"pretrained: there is no file {path}; correct the path"
    return None


def shapes(path: Path) -> dict[str, Shape]:
    """The shape of every tensor, by name. Raises `Refused` where the file is no safetensors file."""
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(LARGEST_HEADER, path.stat().st_size - 8):
                raise ValueError("its header is cut short")
            header = json.loads(stream.read(length))
        return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"pretrained: {path} is not a safetensors file, or is damaged ({error}); fetch or save it again"
        raise Refused(said) from error


def differences(path: Path, found: Mapping[str, Shape], wanted: Mapping[str, Shape], what: str) -> list[str]:
    """What is missing from a file, too much in it, or of another shape than `what` has, a sentence each."""
    sentences = []
    if missing := [name for name in wanted if name not in found]:
        sentences.append(f"pretrained: {path} has no {_first(missing)}, which {what} needs; save all of its weights")
    if extra := [name for name in found if name not in wanted]:
        sentences.append(f"pretrained: {path} has {_first(extra)}, which {what} has no place for; leave it out")
    for name in [name for name in wanted if name in found and found[name] != wanted[name]][:1]:
        sizes = f"{spoken(found[name])} in {path}, but {spoken(wanted[name])} in {what}"
        sentences.append(f"pretrained: {name} is {sizes}; give a file of that network")
    return sentences


def read(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """These tensors in float32 on the CPU. Raises `Refused` for damage, and for a number that is not finite."""
    import torch
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in names}
    except Exception as error:  # its own exception type, and OSError
        said = f"pretrained: {path} is not a safetensors file, or is damaged ({error}); fetch or save it again"
        raise Refused(said) from error
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise Refused(f"pretrained: {name} in {path} holds a NaN or an infinity; fetch or save it again")
    return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}


def filled(network: Any, path: Path, what: str) -> Any:
    """The network with every weight of its own from a file, in evaluation mode, without gradients of its own.

    It may have been made on torch's `meta` device, where nothing is drawn at random first. Raises `Refused` where the
    file is not of this network.
    """
    wanted = without_counts({name: tuple(value.shape) for name, value in network.state_dict().items()})
    if wrong := differences(path, without_counts(shapes(path)), wanted, what):
        raise Refused("; ".join(wrong))
    network.load_state_dict(read(path, wanted), strict=False, assign=True)
    return network.eval().requires_grad_(False)


def without_counts(held: Mapping[str, Shape]) -> dict[str, Shape]:
    return {name: shape for name, shape in held.items() if not name.endswith(COUNTS)}


def _first(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"


def spoken(shape: Shape) -> str:
    """`64 x 32`."""
    return " x ".join(map(str, shape)) or "a single number"
