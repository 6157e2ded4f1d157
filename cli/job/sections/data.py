"""`data`: the images that a network learns, or that a distance compares samples with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from genbo.cli.job import catalog
from genbo.cli.job.paths import resolved
from genbo.cli.job.reader import Reader
from genbo.cli.job.section import Entry, Level, Section
from genbo.cli.job.yaml_nodes import Node
from genbo.diffusion.data import DIGITS, PRETRAINED, Data


class DataSection(Section[Data]):
    key = "data"
    optional = True

    def read(self, reader: Reader) -> Data | None:
        return read_data(reader, reader.at("data"))

    def described(self) -> Entry:
        return str | catalog.nested(Data) | None, None

    def written(self, value: Data | None, level: Level) -> Any:
        return catalog.plain(value)


def read_data(reader: Reader, node: Node | None) -> Data | None:
    """A path, or a mapping of a path and how to read it."""
    if node is None or node.value is None:
        return None
    if isinstance(node.value, str):
        node = Node({"path": node}, node.place, node.where)
    values = reader.validated(catalog.nested(Data), node)
    if values is None:
        return None
    found: Data = catalog.made(Data, values)
    if found.path not in (DIGITS, PRETRAINED):
        path = f"./{found.path}" if _is_plain(found.path) else found.path
        found = replace(found, path=resolved(path, reader.base))
    wrong = found.mistakes() if found.path.isprintable() else ["data: a path cannot hold control characters"]
    for text in wrong:
        reader.note(node, text.removeprefix("data: "))
    return None if wrong else found


def _is_plain(path: str) -> bool:
    """Whether a path is neither absolute nor of the home folder."""
    return bool(path) and not path.startswith(("/", "~", "."))


DATA = DataSection()
