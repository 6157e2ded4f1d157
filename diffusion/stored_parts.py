"""A part of a room from a file that somebody else may have written: its kind and its options, each held to its type.

No name from a file reaches an import but that of a file in the room, and no value is taken that is not of the type, or
within the limits, that the option declares.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt

from genbo.diffusion.kinds import class_of, kinds
from genbo.diffusion.refused import Refused


def part_from(package: str, options: object, where: str) -> Any:
    """The object that {kind, options} describes; keys that are no option are left out.

    Raises `Refused`, a sentence that begins with `where`.
    """
    written = options if isinstance(options, Mapping) else {}
    kind, known = written.get("kind"), kinds(package)
    if kind not in known:
        room = package.rpartition(".")[2]
        raise Refused(f"{where}: unknown {room} kind {kind!r}; choose from {', '.join(known)}")
    made = class_of(package, str(kind))
    hints = _hints(made)
    given = {f.name: written[f.name] for f in fields(made) if f.init and f.name in written}
    for name, value in given.items():
        if not _fits(value, hints[name]):
            raise Refused(f"{where}: {name} of {kind} cannot be {value!r}; write what the run has written")
    for f in fields(made):
        if f.init and f.name not in given and f.default is MISSING and f.default_factory is MISSING:
            raise Refused(f"{where}: {kind} has no {f.name}; write what the run has written")
    return made(**given)


def _hints(made: type[Any]) -> dict[str, Any]:
    found = get_type_hints(made, include_extras=True)
    return {name: hint for name, hint in found.items() if hint is not ClassVar and get_origin(hint) is not ClassVar}


def _fits(value: object, hint: Any) -> bool:
    """Whether a value of JSON is of this annotation."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _fits(value, args[0]) and all(_holds(value, one) for one in _limits(args[1:]))
    if origin is Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if origin in (Union, UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, args[0]) for item in value)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and len(value) == len(args) and all(map(_fits, value, args))
    if hint in (None, NoneType):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is hint


def _limits(constraints: tuple[Any, ...]) -> Iterator[Any]:
    for one in constraints:
        yield from one if isinstance(one, GroupedMetadata) else (one,)


def _holds(value: Any, limit: Any) -> bool:
    if value is None:
        return True
    match limit:
        case Gt(bound):
            return bool(value > bound)
        case Ge(bound):
            return bool(value >= bound)
        case Lt(bound):
            return bool(value < bound)
        case Le(bound):
            return bool(value <= bound)
    return True
