"""Hashes, and small JSON files that carry their own: what was damaged is not taken for what was written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from genbo.cli.run.atomic import is_plain_file
from genbo.cli.run.json_files import Document, strict, to_json, write_json
from genbo.diffusion.file_hashes import sha256_of as sha256_of

SEAL = "sha256"  # the key of a small file's own hash


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_sealed(path: Path, document: Document) -> None:
    """A JSON object with the hash of the rest of it, which tells later whether it was damaged."""
    document = strict(document)
    write_json(path, {**document, SEAL: sha256(to_json(document))})


def read_sealed(path: Path) -> Document | None:
    """The object in a file of `write_sealed`, without its hash; None where there is none, or it is damaged.

    What an earlier genbo wrote has no hash, and is taken as it is.
    """
    try:
        found = json.loads(path.read_bytes()) if is_plain_file(path) else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    seal = found.pop(SEAL, None)
    if seal is not None:
        return found if seal == sha256(to_json(found)) else None
    return None if _seals(found) else found


def _seals(found: Document) -> bool:
    """Whether one of the values is the hash of all others: a seal whose name was damaged."""
    texts = (key for key, value in found.items() if isinstance(value, str) and len(value) == len(sha256(b"")))
    return any(found[key] == sha256(to_json({k: v for k, v in found.items() if k != key})) for key in texts)
