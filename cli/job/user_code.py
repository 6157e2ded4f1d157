"""Code of the user's own, which a job may name and only the command line may allow: --allow-code my_reward.py

What is allowed is a file as it is now, by its sha256. A job that names another file, or has no such line beside it, is
told what to add; the options of a reward carry the hash, which no job can write, and the reward runs nothing else.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from genbo.cli.errors import UserMistake
from genbo.cli.run.seals import sha256_of

Allowed = Mapping[Path, str]


def allowed(paths: Sequence[str | Path]) -> Allowed:
    """Real paths, and the sha256 of what they hold."""
    found = {}
    for written in paths:
        path = Path(written).expanduser()
        if not path.is_file():
            raise UserMistake(f"--allow-code {written}: there is no such file; correct the path")
        found[path.resolve()] = sha256_of(path)
    return found


def sealed(options: Any, known: Allowed) -> Any:
    """Options that name code, with the hash of that code where it is allowed; others as they are."""
    if not hasattr(options, "sha256"):
        return options
    return replace(options, sha256=known.get(options.path.resolve(), ""))


def not_allowed(options: Any) -> list[str]:
    """The mistake of naming code that is not allowed."""
    if getattr(options, "sha256", "allowed"):
        return []
    path = options.path
    return [f"file: {path.name} is code, and a job alone may run none; read it, then add {flag(path)}"]


def flag(path: str | Path) -> str:
    """What to type to allow a file, from the current folder."""
    absolute = Path(path).expanduser().absolute()
    near = os.path.relpath(absolute) if absolute.is_relative_to(Path.cwd()) else str(absolute)
    return f"--allow-code {shlex.quote(near)}"


def announce(known: Allowed) -> None:
    """On stderr, what may be run."""
    for path, digest in known.items():
        print(f"allowed code: {path.name}, sha256 {digest}", file=sys.stderr)
