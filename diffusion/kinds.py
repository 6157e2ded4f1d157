"""From a kind's name to its class and back, in every room: `cosine_ramp` is the class `CosineRamp` of `cosine_ramp.py`.

A room is a package, such as `genbo.diffusion.guidance`; each file in it is a kind, but for those whose names begin with
`_`. A file that is added to a room is found at once; a class that was found once is remembered.
"""

from __future__ import annotations

import pkgutil
from dataclasses import fields
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

R = TypeVar("R")


def kinds(room: str) -> tuple[str, ...]:
    """The names of a room's kinds, sorted; none of their files is imported."""
    files = pkgutil.iter_modules(import_module(room).__path__)
    return tuple(sorted(file.name for file in files if not file.ispkg and not file.name.startswith("_")))


def class_name(kind: str) -> str:
    """`cosine_ramp` -> `CosineRamp`."""
    return "".join(part.capitalize() for part in kind.split("_"))


@cache
def class_of(room: str, kind: str) -> type[Any]:
    """The class of a kind; its file is imported here.

    Raises `KeyError` where the room has no such file, so that a name from a file can import nothing else, and
    `AttributeError` where the file has no class of its name.
    """
    if kind not in kinds(room):
        raise KeyError(f"{room} has no kind {kind!r}")
    found: type[Any] = getattr(import_module(f"{room}.{kind}"), class_name(kind))
    return found


def kind_of(made: object) -> str:
    """The kind of an object of a room's class: the name of the file that its class stands in."""
    return type(made).__module__.rpartition(".")[2]


def declared(traits: type[R], part: object) -> R:
    """What a part declares of itself: a record whose fields are the part's own attributes, or else the defaults.

    `traits` is a frozen dataclass such as `ModelTraits`, with a default for every field. `part` is an object with
    options, or a class; of a class, what depends on the options stays at its default.
    """
    found = {f.name: getattr(part, f.name, f.default) for f in fields(traits)}  # type: ignore[arg-type]
    known = {name: value for name, value in found.items() if not isinstance(value, property)}
    return traits(**known)
