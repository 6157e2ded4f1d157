"""What the sections of a job are read with: notes of mistakes, kinds of rooms, options held against their types."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from genbo.cli.job import catalog
from genbo.cli.job.kind import Kind
from genbo.cli.job.paths import with_paths
from genbo.cli.job.user_code import Allowed, not_allowed, sealed
from genbo.cli.job.validation import sentences_of, shown
from genbo.cli.job.yaml_nodes import Mistake, Node, Place, below
from genbo.diffusion.kinds import declared
from genbo.diffusion.process import GuidanceRule
from genbo.rewards._traits import nothing

T = TypeVar("T", bound=BaseModel)
Part = dict[str, Any]


@dataclass(frozen=True)
class Checked:
    """What the options of any kind may have to be checked by.

    Attributes:
        device: Where it will compute, of a model.
        mistakes: () -> what is wrong with the options, `option: sentence` each; files are looked at, and none is run.
    """

    device: str = "auto"
    mistakes: Callable[[], Sequence[str]] = nothing


class Reader:
    """One pass over a tree. Each part gives its value, or None with its mistakes noted: all are found.

    `values` are those of the sections that were read so far. `rule` and `steps` are what is known of the model even
    where another part of it has a mistake, and `names` are those of the rewards that are tuned for or kept.
    """

    def __init__(self, base: Path, mistakes: list[Mistake], code: Allowed | None = None, root: Node | None = None):
        self.base, self.mistakes, self.code = base, mistakes, code or {}
        self.root = root or Node({}, Place())
        self.values: dict[str, object] = {}
        self.rule: Kind[GuidanceRule] | None = None
        self.steps: int | None = None
        self.names: list[str] = []

    def note(self, node: Node, message: str, *, place: Place | None = None, where: str | None = None) -> None:
        self.mistakes.append(node.mistake(message, place, where))

    # -- nodes --------------------------------------------------------------------------------------------

    def at(self, key: str) -> Node | None:
        """The node of a key of the job, if it is written."""
        return self.root.child(key)

    def at_or(self, key: str, usual: Any) -> Node:
        """The node of a key of the job, or one with what holds where it is not written."""
        return self.at(key) or Node(usual, self.root.place, key)

    def keys(self, node: Node, known: Sequence[str]) -> None:
        """Note the keys that are not known."""
        assert isinstance(node.value, dict)
        for key in node.value:
            if key not in known:
                remedy = catalog.nearest(key, known) or "; this kind takes no options, so delete it"
                self.note(node, f"unknown key{remedy}", place=node.keys.get(key), where=below(node.where, key))

    def mapping(self, node: Node, example: str, *, empty: bool = True) -> bool:
        """Whether the node is a mapping, one with something in it unless it may be empty."""
        if isinstance(node.value, dict) and (node.value or empty):
            return True
        seen = "empty" if isinstance(node.value, dict) else shown(node)
        self.note(node, f"must be a mapping of options, not {seen}; write {{{example}}}")
        return False

    def many(self, node: Node, one: Callable[[Node], Part | None]) -> list[Part] | None:
        """One part, or a list of them, each read by `one`."""
        items = node.value if isinstance(node.value, list) else [node]
        found = [one(item) for item in items]
        return [part for part in found if part is not None] if all(part is not None for part in found) else None

    # -- rooms --------------------------------------------------------------------------------------------

    def kind(self, node: Node, room: str, what: str, also: Sequence[str] = ()) -> Kind | None:
        """`name`, or `{kind: name, <options>}`; `also` are keys that belong there and are read elsewhere."""
        if isinstance(node.value, str):
            node = Node({"kind": node}, node.place, node.where)
        if not isinstance(node.value, dict):
            example, known = catalog.DEFAULTS.get(room) or catalog.kinds(room)[0], _kinds(room)
            self.note(node, f"must be {what} like {{kind: {example}}}, not {shown(node)}; choose from {known}")
            return None
        named = node.value.get("kind")
        name = named.value if named is not None else catalog.DEFAULTS.get(room)
        if name is None:
            self.note(node, f"missing; write one of {_kinds(room)}", where=below(node.where, "kind"))
            return None
        if name not in catalog.kinds(room):
            assert named is not None
            wrong = f"must be the name of {what}, not {shown(named)}"
            if isinstance(name, str):
                wrong = f"unknown {what.partition(' ')[2]} {name!r}"
            self.note(named, f"{wrong}{catalog.nearest(str(name), catalog.kinds(room))}")
            return None
        return self.of_kind(node, room, str(name), also)

    def of_kind(self, node: Node, room: str, name: str, also: Sequence[str]) -> Kind | None:
        """The options of a kind that is known, and is in its room."""
        rest, _ = without(node, "kind")
        values = self.validated(catalog.model_of(room, name), rest, also)
        if values is None:
            return None
        options = sealed(catalog.build(room, name, with_paths(values, self.base)), self.code)
        wrong = _option_mistakes(options) or not_allowed(options)
        self.sentences(rest, wrong)
        return None if wrong else Kind(kind=name, options=options)

    def validated(self, model: type[T], node: Node, also: Sequence[str] = ()) -> T | None:
        """The node as that pydantic model, or its mistakes noted."""
        if not isinstance(node.value, dict):
            self.mapping(node, f"{next(iter(model.model_fields), 'kind')}: ...")
            return None
        try:
            return model.model_validate(node.plain())
        except ValidationError as error:
            for at, place, where, message in sentences_of(error, model, node, also):
                self.note(at, message, place=place, where=where)
            return None

    def sentences(self, node: Node, found: Sequence[str]) -> None:
        """Note `option: sentence` mistakes of an options object at the option's own place."""
        for text in found:
            option, colon, rest = text.partition(": ")
            if colon and re.fullmatch(r"\w+", option):
                self.note(node.find([option]), rest, where=below(node.where, option))
            else:
                self.note(node, text)


def without(node: Node, key: str) -> tuple[Node, Node | None]:
    """A mapping without that key, and what stands under it."""
    if not isinstance(node.value, dict):
        return node, None
    rest = {k: v for k, v in node.value.items() if k != key}
    return Node(rest, node.place, node.where, node.keys), node.value.get(key)


def distinct(found: Sequence[Part], taken: Sequence[str] = ()) -> Iterator[Part]:
    """With names that differ, also from those `taken`: numbered from the second appearance on."""
    seen = dict.fromkeys(taken, 1)
    for part in found:
        name = part["name"]
        seen[name] = seen.get(name, 0) + 1
        yield {**part, "name": name if seen[name] == 1 else f"{name}-{seen[name]}"}


def named(found: Sequence[Part]) -> Iterator[Part]:
    """Each with a `name`: its kind, numbered from its second appearance on."""
    return distinct([{**part, "name": part["kind"]} for part in found])


def reason(error: Exception) -> str:
    """Why a file cannot be read, in a few words."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _option_mistakes(options: Any) -> list[str]:
    device = declared(Checked, options).device
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", str(device)):
        wrong = f"device: must be auto, cpu, cuda or cuda:0, not {device!r}; auto takes a GPU if there is one"
        return [wrong, *_option_mistakes(replace(options, device="auto"))]
    try:
        return list(declared(Checked, options).mistakes())
    except (OSError, ValueError, RuntimeError) as error:
        return [f"pretrained: cannot be looked at ({reason(error)}); correct the path"]


def _kinds(room: str) -> str:
    return ", ".join(catalog.kinds(room))
