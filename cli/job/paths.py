"""Options that may be paths, made absolute: a job's relative paths are those of its own folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

PATHS = ("pretrained", "clip", "lora", "like", "file", "features", "weights")  # a file, a folder, or a bundled thing
T = TypeVar("T", bound=BaseModel)


def with_paths(values: T, base: Path) -> T:
    """With every option that is a path made absolute."""
    written = {name: value for name, value in values.__dict__.items() if name in PATHS}
    found = {name: resolved(text, base) for name, text in written.items() if isinstance(text, str) and text}
    return values.model_copy(update=found)


def resolved(written: str, base: Path) -> str:
    """A `pretrained` that names a path, absolute; a bundled name, a tag or a hub id as it is."""
    from genbo.diffusion import bundled as models
    from genbo.rewards import bundled as rewards

    scheme = "local-dir:" if written.startswith("local-dir:") else ""
    name = written.removeprefix(scheme)
    bundled = models.model_folder(name) or rewards.folder(name)
    if not name or bundled or "\0" in name or name.startswith("hf-hub:"):
        return written
    try:
        path = base / Path(name).expanduser()
        is_path = bool(scheme) or name.startswith((".", "/", "~")) or path.exists()
    except (OSError, RuntimeError):
        return written
    return scheme + os.path.normpath(path) if is_path else written
