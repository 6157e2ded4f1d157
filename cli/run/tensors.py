"""Tensors and words in one safetensors file that can tell when it was damaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from genbo.cli.errors import ArtifactRefused
from genbo.cli.run.atomic import write_atomic
from genbo.cli.run.json_files import Document, strict

if TYPE_CHECKING:
    from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor], words: Mapping[str, object]) -> None:
    """Tensors and words in one safetensors file that can tell when it was damaged."""
    from safetensors.torch import save

    text = json.dumps(strict(words), sort_keys=True)
    write_atomic(path, save(dict(tensors), {"words": text, "sha256": _digest(tensors, text)}))


def read_tensors(path: Path, words: Mapping[str, object]) -> dict[str, Tensor] | None:
    """The tensors, where the file is intact and its words include these; else None: make it again."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not path.is_file():
        return None
    try:
        found = words_in(path)
        if any(found.get(key) != value for key, value in strict(words).items()):
            return None
        tensors = load(path.read_bytes())
    except (ArtifactRefused, SafetensorError, ValueError):
        return None
    return tensors if _stated(path) == _digest(tensors, json.dumps(found, sort_keys=True)) else None


def words_in(path: Path) -> Document:
    """The words of a file of `write_tensors`."""
    try:
        return dict(json.loads(_metadata(path)["words"]))
    except (KeyError, ValueError, TypeError) as problem:
        raise ArtifactRefused(f"{path} is damaged") from problem


def _metadata(path: Path) -> dict[str, str]:
    """safetensors' header: eight bytes of length, then JSON."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def _stated(path: Path) -> str:
    return _metadata(path).get("sha256", "")


def _digest(tensors: Mapping[str, Tensor], words: str) -> str:
    digest = hashlib.sha256(words.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(-1).numpy().tobytes())
    return digest.hexdigest()
