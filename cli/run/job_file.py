"""`job.yaml`: the resolved job that a run keeps, under its own hash."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from genbo.cli.errors import ArtifactRefused
from genbo.cli.run.atomic import is_plain_file, write_atomic
from genbo.cli.run.json_files import Document, strict
from genbo.cli.run.layout import JOB
from genbo.cli.run.seals import sha256

HEADER = b"# The job as it was run, with every default.\n"
SEALED = "# sha256 of what follows: "


def to_yaml(document: Document) -> bytes:
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 110
    buffer = BytesIO()
    yaml.dump(strict(document), buffer)
    return HEADER + buffer.getvalue()


def read_yaml(path: Path) -> Document:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        document = YAML(typ="safe", pure=True).load(path.read_text("utf-8"))
    except (YAMLError, ValueError, RecursionError) as problem:
        raise ArtifactRefused(f"{path} is not readable: {problem}") from problem
    if not isinstance(document, dict):
        raise ArtifactRefused(f"{path} is not a job")
    return document


def write_job(place: Path, document: Document) -> None:
    body = to_yaml(document).removeprefix(HEADER)
    write_atomic(place, HEADER + f"{SEALED}{sha256(body)}\n".encode() + body)


def stored_job(place: Path) -> Document | None:
    """The job that a run keeps; None where it keeps none, or a damaged one."""
    if not is_plain_file(place):
        return None
    seal, _, body = place.read_bytes().removeprefix(HEADER).partition(b"\n")
    if seal.startswith(SEALED.encode()) and seal != f"{SEALED}{sha256(body)}".encode():
        return None
    try:
        return read_yaml(place)
    except ArtifactRefused:
        return None


def keeps_a_job(path: Path) -> bool:
    try:
        with (path / JOB).open("rb") if is_plain_file(path / JOB) else BytesIO() as file:
            return file.readline() == HEADER
    except OSError:
        return False
