"""The loop's state as tensors and plain values, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from genbo.cli.errors import ArtifactRefused
from genbo.cli.run.json_files import Document
from genbo.cli.run.layout import TENSORS

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.loop import State


def kinds() -> dict[str, str]:
    """Every field of the loop's state and how it is kept: a tensor, tensors by name, or a plain value."""
    from typing import get_type_hints

    from torch import Tensor

    from genbo.bilevel.loop import State

    known = {Tensor: "tensor", dict[str, Tensor]: "tensors"}
    hints = get_type_hints(State)
    return {field.name: known.get(hints[field.name], "value") for field in fields(State)}


def tensors_of(state: State) -> dict[str, Tensor]:
    """Every tensor of a state by its path, on the CPU: `u`, `optimizer.<name>`, ..."""
    found: dict[str, Tensor] = {}
    for name, kind in kinds().items():
        value = getattr(state, name)
        if kind == "tensor":
            found[name] = value.cpu()
        elif kind == "tensors":
            found |= {f"{name}.{key}": tensor.cpu().contiguous() for key, tensor in value.items()}
    return found


def state_of(words: Document, tensors: Mapping[str, Tensor], where: Path) -> State:
    """The inverse of `tensors_of` and `words_of`; every difference from what was declared is an error."""
    from genbo.bilevel.loop import State

    _check_tensors(cast("Document", words["tensors"]), tensors, where / TENSORS)
    parts = dict(cast("dict[str, Any]", words["values"]))
    for name, kind in kinds().items():
        if kind == "tensors":
            nested = {k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(f"{name}.")}
            parts[name] = nested
        elif kind == "tensor" and name in tensors:
            parts[name] = tensors[name]
    absent = [name for name in kinds() if name not in parts]
    strange = [name for name in parts if name not in kinds()]
    strange += [key for key in tensors if key.split(".")[0] not in kinds()]
    if absent or strange:
        faults = [f"{name!r} is missing" for name in absent] + [f"{name!r} does not belong here" for name in strange]
        raise ArtifactRefused(f"{where}: {'; '.join(faults)}")
    return State(**parts)


def _check_tensors(declared: Mapping[str, object], tensors: Mapping[str, Tensor], file: Path) -> None:
    for key in declared.keys() - tensors.keys():
        raise ArtifactRefused(f"{file}: the tensor {key!r} is missing")
    for key in tensors.keys() - declared.keys():
        raise ArtifactRefused(f"{file}: the tensor {key!r} does not belong here")
    for key, tensor in tensors.items():
        wanted, found = declared[key], {"shape": list(tensor.shape), "dtype": str(tensor.dtype)}
        if wanted != found:
            raise ArtifactRefused(f"{file}: the tensor {key!r} is {found}, not {wanted}")
        if not tensor.isfinite().all():
            raise ArtifactRefused(f"{file}: the tensor {key!r} holds numbers that are not finite")
