"""A key of a job as it may be written, with its short forms, as a type for pydantic, which makes the JSON schema."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import BaseModel, create_model

from genbo.cli.job import catalog
from genbo.diffusion.kinds import class_name


def one_of(branches: list[Any]) -> Any:
    """The union of types."""
    return reduce(or_, branches)


def one_or_many(item: Any, *, least: int = 0) -> Any:
    """One of these, or a list of at least that many."""
    items = list[item]
    return item | (Annotated[items, MinLen(least)] if least else items)


def room(name: str, *, short: bool = True, **own: Any) -> Any:
    """One of the kinds of a room, by name (where all options may be left out) or as a mapping of them.

    `own` are keys that the job has beside the kind's options, each a type and a default.
    """
    kinds = [kind(name, each, own) for each in catalog.kinds(name)]
    names = [each for each in catalog.kinds(name) if not any(o.required for o in catalog.options(name, each))]
    needs_more = any(default is ... for _, default in own.values())
    return one_of([*([Literal[tuple(names)]] if short and names and not needs_more else []), *kinds])


def kind(room: str, name: str, own: dict[str, Any]) -> type[BaseModel]:
    """One kind as a mapping of its options and of `own`."""
    base = catalog.model_of(room, name)
    title = class_name(room) + class_name(name) + "".join(part.capitalize() for part in own)
    entries: dict[str, Any] = {"kind": (Literal[name], name if catalog.DEFAULTS.get(room) == name else ...), **own}
    return create_model(title, __base__=base, __doc__=catalog.help_line(room, name), **entries)


def mapping(name: str, **entries: Any) -> type[BaseModel]:
    """A mapping of these keys and no others."""
    return create_model(name, __config__=catalog.STRICT, **entries)


def word(text: str) -> Any:
    """This word and no other."""
    return Literal[text]


def names_of(room: str) -> Any:
    """The name of a kind of a room."""
    return Literal[catalog.kinds(room)]


def some(item: Any) -> Any:
    """A list of two or more of these."""
    return Annotated[list[item], MinLen(2)]
