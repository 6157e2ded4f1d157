"""A checkpoint's manifest: its step, its job and the hash of every file in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from genbo.cli.errors import ArtifactRefused
from genbo.cli.run.json_files import Document, to_json
from genbo.cli.run.layout import MANIFEST
from genbo.cli.run.seals import sha256
from genbo.cli.run.versions import version

FORMAT = 2  # of the checkpoints that are written
READABLE = (1, 2)  # those of format 1 hold a copy of the journal


def step_name(step: int) -> str:
    return f"step-{step:06d}"


class Corrupt(Exception):
    """A checkpoint that does not hold what its manifest says; it names the file."""


def manifest_of(files: Mapping[str, bytes], job: str, step: int, parent: int | None) -> Document:
    described = {name: {"sha256": sha256(data), "bytes": len(data)} for name, data in files.items()}
    manifest = {
        "schema": FORMAT,
        "genbo": version(),
        "job": job,
        "step": step,
        "parent": parent,
        "files": described,
    }
    return {**manifest, "sha256": sha256(to_json(manifest))}


def read_manifest(folder: Path) -> Document:
    """The manifest of a checkpoint, equal to its own hash; the files that it names are not looked at."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        own = {k: v for k, v in manifest.items() if k != "sha256"}
        genuine = manifest["sha256"] == sha256(to_json(own))
    except (OSError, ValueError, AttributeError, TypeError, KeyError, RecursionError) as problem:
        raise Corrupt(folder / MANIFEST) from problem
    if not genuine or folder.name != step_name(manifest.get("step", -1)):
        raise Corrupt(folder / MANIFEST)
    if manifest["schema"] not in READABLE:
        raise ArtifactRefused(
            f"{folder} was written by genbo {manifest['genbo']} in format {manifest['schema']}; "
            f"this genbo reads formats up to {FORMAT}: go on with that version"
        )
    return dict(manifest)


def read_verified(folder: Path) -> tuple[Document, dict[str, bytes]]:
    """The manifest and the files of a checkpoint, each equal to its hash."""
    manifest, files = read_manifest(folder), {}
    for name, declared in cast("dict[str, dict[str, Any]]", manifest["files"]).items():
        try:
            files[name] = (folder / name).read_bytes()
        except OSError as problem:
            raise Corrupt(folder / name) from problem
        if len(files[name]) != declared["bytes"] or sha256(files[name]) != declared["sha256"]:
            raise Corrupt(folder / name)
    return manifest, files
