"""The whole package once more, of links to its files, so that a test can put a file into a room as one would."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("cli", "bilevel", "diffusion", "schedules", "rewards")
WHOLE = ("bundled", "__pycache__")  # folders of data, linked as they are, and what is not linked


def house_with(folder: Path, added: Mapping[str, str]) -> Path:
    """A folder for PYTHONPATH whose `genbo` has these files beside its own; paths as in the repository.

    A file stands in the place of one of the repository that has its name.
    """
    for file in (ROOT / "api").iterdir():
        _link(file, folder / "genbo" / file.name)
    for room in ROOMS:
        _links(ROOT / room, folder / "genbo" / room)
    for path, text in added.items():
        new = folder / "genbo" / path
        new.unlink(missing_ok=True)
        new.write_text(text, encoding="utf-8")
    return folder


def _links(source: Path, target: Path) -> None:
    for item in source.iterdir():
        if item.is_dir() and item.name not in WHOLE:
            _links(item, target / item.name)
        elif item.name != "__pycache__":
            _link(item, target / item.name)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)
