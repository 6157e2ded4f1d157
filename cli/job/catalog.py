"""Names in the job -> the files of a room: what there is, what it is for, which options it takes.

A room is a folder; a file in it is a kind, its CamelCase dataclass holds the options as fields, its
docstring's first line is its help. Only the file that is asked for is imported. Options become a pydantic
model here, so the rooms themselves know nothing of pydantic.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, GroupedMetadata, Gt, Le, Len, Lt
from pydantic import BaseModel, ConfigDict, Discriminator, Tag, create_model
from pydantic import Field as ModelField

from genbo.diffusion import kinds as rooms

ROOMS = {
    "models": "genbo.diffusion.models",
    "samplers": "genbo.diffusion.samplers",
    "guidance": "genbo.diffusion.guidance",
    "steering": "genbo.diffusion.steering",
    "tunables": "genbo.bilevel.tunables",
    "lower": "genbo.bilevel.lower",
    "rewards": "genbo.rewards",
    "estimators": "genbo.bilevel.estimators",
    "optimizers": "genbo.bilevel.optimizers",
    "searchers": "genbo.bilevel.searchers",
    "pruners": "genbo.bilevel.pruners",
}
DEFAULTS = {
    "models": "diffusers",
    "samplers": "ddim",
    "guidance": "plain",
    "steering": "tilt",
    "lower": "reweight",
    "estimators": "auto",
    "optimizers": "adam",
}
LISTED = 20  # names in a sentence, at most
HIDDEN = {  # options that the job does not write: `guidance.rescale:` is the key itself; what is allowed is not its say
    "tunables": ("option",),
    "rewards": ("sha256",),
}


# -- what there is ---------------------------------------------------------------------------------------


def kinds(room: str) -> tuple[str, ...]:
    """The names that a room's files give, in order."""
    return rooms.kinds(ROOMS[room])


def options_of(room: str, kind: str) -> type[Any]:
    """The dataclass of one kind; its file is imported here. Raises `KeyError` where there is no such kind."""
    return rooms.class_of(ROOMS[room], kind)


def help_line(room: str, kind: str) -> str:
    """The first line of the file's docstring."""
    doc = inspect.getdoc(inspect.getmodule(options_of(room, kind))) or ""
    return doc.partition("\n")[0]


@dataclass(frozen=True)
class Option:
    """One option of a kind, in words."""

    name: str
    type: str
    default: Any
    required: bool

    def __str__(self) -> str:
        return f"{self.name}: {self.type}" if self.required else f"{self.name}: {self.type} = {spoken(self.default)}"


def options(room: str, kind: str) -> list[Option]:
    """Every option of a kind, in the order of its fields."""
    cls = options_of(room, kind)
    hints = hints_of(cls)
    return [Option(f.name, words(hints[f.name]), _default(f), _required(f)) for f in _fields(room, cls)]


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` where a known name is near, else `; choose from` and the whole list."""
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    return f"; choose from {', '.join(known[:LISTED])}{more}" if known else ""


# -- options as words, and as a model --------------------------------------------------------------------


def hints_of(cls: type[object]) -> dict[str, object]:
    """Annotations of the fields alone: class variables may speak of types that are not imported."""
    return {name: hint for name, hint in get_type_hints(cls, include_extras=True).items() if not _is_class_var(hint)}


def _is_class_var(hint: object) -> bool:
    return hint is ClassVar or get_origin(hint) is ClassVar


def _fields(room: str, cls: type[Any]) -> list[Field[Any]]:
    return [f for f in fields(cls) if f.init and f.name not in HIDDEN.get(room, ())]


def _required(f: Field[Any]) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _default(f: Field[Any]) -> object:
    return f.default_factory() if f.default_factory is not MISSING else None if f.default is MISSING else f.default


def spoken(value: object) -> str:
    """A value as YAML in one line."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:g}" if float(f"{value:g}") == value else repr(value)
        case str():
            return (
                value if value and value.isprintable() and not set(value) & set("{}[],:#\"'&*!|>%@`") else repr(value)
            )
        case list() | tuple():
            return f"[{', '.join(map(spoken, value))}]"
        case dict():
            return f"{{{', '.join(f'{k}: {spoken(v)}' for k, v in value.items())}}}"
    return spoken(plain(value)) if is_dataclass(value) else str(value)


def words(hint: Any) -> str:
    """A type as a person says it."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return " ".join([words(args[0]), *filter(None, map(_bound, args[1:]))])
    if origin is Literal:
        return " | ".join(str(arg) for arg in args)
    if origin in (Union, types.UnionType):
        return " | ".join(words(arg) for arg in args)
    if origin is list:
        return f"list of {words(args[0])}"
    if origin is tuple:
        return f"[{', '.join(words(arg) for arg in args)}]"
    if origin is dict:
        return f"{{{words(args[0])}: {words(args[1])}}}"
    if is_dataclass(hint):
        return f"{{{', '.join(f'{f.name}: {words(hints_of(hint)[f.name])}' for f in fields(hint))}}}"  # type: ignore[arg-type]
    plain = {float: "number", int: "whole number", str: "text", bool: "true | false", type(None): "null"}
    return "a value" if hint is Any else plain.get(hint, str(hint))


_SIGNS = {Gt: ">", Ge: ">=", Lt: "<", Le: "<="}


def _limits_of(constraint: object) -> Iterator[tuple[str, Any]]:
    """Signs and limits of an annotated_types constraint; an `Interval` holds several."""
    if isinstance(constraint, GroupedMetadata):
        for part in constraint:
            yield from _limits_of(part)
    match constraint:
        case Gt(limit) | Ge(limit) | Lt(limit) | Le(limit):
            yield _SIGNS[type(constraint)], limit


def _bound(constraint: object) -> str:
    """`>= 0`, `< 1`: an annotated_types constraint in signs."""
    return " and ".join(f"{sign} {spoken(limit)}" for sign, limit in _limits_of(constraint))


def limits(hint: object) -> tuple[float | None, float | None]:
    """The least and the greatest value that a numeric annotation allows; None where there is no limit."""
    low = high = None
    for constraint in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
        for sign, limit in _limits_of(constraint):
            low, high = (limit, high) if sign[0] == ">" else (low, limit)
    return low, high


STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
MODELS: dict[str, type[BaseModel]] = {}  # tag of a nested mapping in an error's place -> its model


@cache
def model_of(room: str, kind: str, tagged: bool = False) -> type[BaseModel]:
    """The pydantic model of one kind's options; `tagged` adds its `kind` key, which only the schema wants."""
    cls = options_of(room, kind)
    own: dict[str, Any] = {"kind": (Literal[kind], ...)} if tagged else {}
    return _model(cls, cls.__name__, own, HIDDEN.get(room, ()), help_line(room, kind))


def _model(cls: type[Any], name: str, own: dict[str, Any], hidden: Sequence[str], doc: str | None) -> type[BaseModel]:
    hints, entries = hints_of(cls), dict(own)
    for f in fields(cls):
        if f.init and f.name not in hidden:
            entries[f.name] = (typed(hints[f.name]), ... if _required(f) else _model_default(f))
    return create_model(name, __config__=STRICT, __doc__=doc, **entries)


def _model_default(f: Field[Any]) -> object:
    value = plain(_default(f))
    return ModelField(default_factory=lambda: value) if isinstance(value, (list, dict)) else value


def nested(cls: type[object]) -> type[BaseModel]:
    """The model of a nested dataclass; it is made once, and errors find it again by its tag."""
    tag = _tag(cls)
    if tag not in MODELS:
        MODELS[tag] = _model(cls, cls.__name__, {}, (), inspect.cleandoc(cls.__doc__ or ""))
    return MODELS[tag]


def typed(hint: object) -> object:
    """An annotation of a dataclass -> one for pydantic.

    Tuples become lists of that length (JSON Schema 7 has no tuples that editors know), nested dataclasses
    become models, and a union is decided by the shape of what was written, so an error speaks of one branch.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return Annotated[(typed(args[0]), *args[1:])]
    if origin in (Union, types.UnionType):
        return _by_shape(args)
    if origin is tuple:
        return Annotated[list[typed(args[0])], Len(len(args), len(args))]  # type: ignore[misc]
    if origin is list:
        return list[typed(args[0])]  # type: ignore[misc]
    if origin is dict:
        return dict[args[0], typed(args[1])]  # type: ignore[misc,valid-type]
    return nested(hint) if is_dataclass(hint) else hint  # type: ignore[arg-type]


def _by_shape(branches: Sequence[object]) -> object:
    """A union whose branch is chosen by whether a mapping, a list, null or a single value was written."""
    tags = {_shape_of(branch): _tag(branch) for branch in branches}
    if len(tags) < len(branches):
        return reduce(or_, map(typed, branches))
    usual = tags.get("scalar") or next(tags[s] for s in ("list", "mapping", "null") if s in tags)

    def choose(value: object) -> str:
        shape = _shape(value)
        return tags.get(shape) or usual

    tagged = [Annotated[typed(b), Tag(_tag(b))] for b in branches]
    return Annotated[reduce(or_, tagged), Discriminator(choose)]


def _tag(branch: object) -> str:
    return f"<{branch.__name__ if is_dataclass(branch) else words(branch)}>"  # type: ignore[union-attr]


def _shape_of(hint: object) -> str:
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if hint in (None, type(None)):
        return "null"
    if is_dataclass(hint) or get_origin(hint) is dict:
        return "mapping"
    return "list" if get_origin(hint) in (list, tuple) else "scalar"


def _shape(value: object) -> str:
    match value:
        case None:
            return "null"
        case Mapping() | BaseModel():
            return "mapping"
        case list() | tuple():
            return "list"
    return "scalar"


# -- models -> objects -> plain values -------------------------------------------------------------------


def build(room: str, kind: str, model: BaseModel, **given: object) -> Any:
    """The options object of validated options; `given` fills what the job does not write among them."""
    return _object(options_of(room, kind), {**model.__dict__, **given})


def made(cls: type[object], model: BaseModel) -> Any:
    """The object of a dataclass that stands in no room."""
    return _object(cls, model.__dict__)


def _object(cls: type[object], values: Mapping[str, object]) -> object:
    hints = hints_of(cls)
    return cls(**{name: _as(hints[name], value) for name, value in values.items() if name in hints})


def _as(hint: Any, value: Any) -> object:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _as(args[0], value)
    if origin in (Union, types.UnionType):
        return _as(next((a for a in args if _shape_of(a) == _shape(value)), args[0]), value)
    if origin is tuple and value is not None:
        return tuple(value)
    if is_dataclass(hint) and isinstance(value, BaseModel):
        return _object(hint, value.__dict__)  # type: ignore[arg-type]
    return value


def plain(value: object) -> Any:
    """An options object as YAML has it: mappings, lists and scalars."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.init}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def document_of(room: str, value: object) -> dict[str, object]:
    """An options object as the job writes it, without what the job writes elsewhere."""
    return {name: item for name, item in plain(value).items() if name not in HIDDEN.get(room, ())}
