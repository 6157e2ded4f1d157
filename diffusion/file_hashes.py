"""The files that an opened model or reward was read from, by their sha256."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from genbo.diffusion.kinds import declared
from genbo.diffusion.traits import Origin

KEPT = (".json", ".txt", ".safetensors")  # of a folder: what is read of it


def sha256_of(path: Path) -> str:
    """Of a file's contents, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(part: object) -> dict[str, str]:
    """The files of an opened model or reward that knows its folder, or its one file; of a distance, its network."""
    origin = declared(Origin, part)
    if origin.extractor:
        return {"features": origin.extractor.identity}
    folder, file = origin.folder, origin.file
    if folder is None or not Path(folder).is_dir():
        return {file.name: sha256_of(file)} if file is not None and file.is_file() else {}
    files = [f for f in sorted(Path(folder).rglob("*")) if f.is_file() and f.suffix in KEPT]
    return {str(f.relative_to(folder)).replace(os.sep, "/"): sha256_of(f) for f in files}
