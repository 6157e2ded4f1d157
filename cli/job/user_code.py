"""The user's own code: a job may name it, but only the command line may allow it, with --allow-code my_reward.py

A file is allowed by the sha256 of what it holds now. A job that names a file which is not allowed is a mistake whose
message says which flag to add. The options of a reward carry the hash, which a job cannot set, and the reward runs no
other code.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from genbo.cli.errors import UserMistake
from genbo.cli.run.seals import sha256_of
from genbo.rewards._traits import RunsCode

Allowed = Mapping[Path, str]


def allowed(paths: Sequence[str | Path]) -> Allowed:
    """The real path of each file and the sha256 of its contents. Raises `UserMistake` where one is no file."""
    found = {}
    for written in paths:
        path = Path(written).expanduser()
        if not path.is_file():
            raise UserMistake(f"--allow-code {written}: there is no such file; correct the path")
        found[path.resolve()] = sha256_of(path)
    return found


def sealed(options: object, known: Allowed) -> object:
    """The options; those that name code get the hash of that code, or "" where it is not allowed."""
    if not isinstance(options, RunsCode):
        return options
    return replace(options, sha256=known.get(options.path.resolve(), ""))  # type: ignore[type-var]


def not_allowed(options: object) -> list[str]:
    """A mistake where the options name code that is not allowed."""
    if not isinstance(options, RunsCode) or options.sha256:
        return []
    path = options.path
    return [f"file: {path.name} is code, which a job may not run by itself; read it, then add {flag(path)}"]


def flag(path: str | Path) -> str:
    """The flag that allows a file, to be typed in the current folder."""
    absolute = Path(path).expanduser().absolute()
    near = os.path.relpath(absolute) if absolute.is_relative_to(Path.cwd()) else str(absolute)
    return f"--allow-code {shlex.quote(near)}"


def announce(known: Allowed) -> None:
    """Print to stderr which code may run."""
    for path, digest in known.items():
        print(f"allowed code: {path.name}, sha256 {digest}", file=sys.stderr)
