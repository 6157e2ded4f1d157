"""YAML text -> values that know where they stand: the line and the column that a mistake in them points at.

The text is read event by event, with YAML 1.2's own meaning of a plain word (`1e-3` a number, `no` a word),
and refused where it could be more than data or more than it looks: tags, anchors, aliases, repeated keys,
depth, size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from genbo.cli.errors import UserMistake

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_NODES = 20_000
MAX_DIGITS = 64
NODES = ("ScalarEvent", "SequenceStartEvent", "MappingStartEvent")  # ruamel's events with a tag and an anchor

Scalar = None | bool | int | float | str
Loc = Sequence[str | int]


@dataclass(frozen=True)
class Place:
    """Where something was written: a line and a column (from 1) of a file, or an override, or a dict."""

    source: str | None = None
    line: int | None = None
    column: int | None = None


@dataclass(frozen=True)
class Mistake:
    """One sentence about one place of a job."""

    path: str | None
    line: int | None
    column: int | None
    where: str
    message: str

    def __str__(self) -> str:
        file = self.path if self.line is None else f"{self.path}:{self.line}:{self.column}"
        if file == "--set":
            return f"--set {self.where}: {self.message}"
        return ": ".join(part for part in (file, self.where, self.message) if part)


class JobMistakes(UserMistake):
    """Everything that is wrong with a job, a line a mistake, in the order in which it is written."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = sorted(mistakes, key=lambda m: (m.path == "--set", m.line or 0, m.column or 0))
        super().__init__("\n".join(map(str, self.mistakes)))


@dataclass
class Node:
    """A value and its place; the value is a dict of nodes, a list of nodes, or a scalar."""

    value: dict[str, Node] | list[Node] | Scalar
    place: Place
    where: str = ""
    keys: dict[str, Place] = field(default_factory=dict)  # where each key of a dict stands

    def plain(self) -> Any:
        match self.value:
            case dict():
                return {key: node.plain() for key, node in self.value.items()}
            case list():
                return [node.plain() for node in self.value]
        return self.value

    def child(self, key: str | int) -> Node | None:
        match self.value:
            case dict():
                return self.value.get(str(key))
            case list() if isinstance(key, int) and key < len(self.value):
                return self.value[key]
        return None

    def find(self, loc: Loc) -> Node:
        """The node at `loc`, or the nearest one above it."""
        node = self
        for key in loc:
            node = node.child(key) or node
        return node

    def mistake(self, message: str, place: Place | None = None, where: str | None = None) -> Mistake:
        place = place or self.place
        return Mistake(place.source, place.line, place.column, self.where if where is None else where, message)


def below(where: str, key: str | int) -> str:
    return f"{where}.{key}" if where else str(key)


# -- from a file, an override or a dict ------------------------------------------------------------------


def node_of_text(text: str, source: str, where: str = "") -> Node:
    """The tree of one YAML document; raises JobMistakes."""
    if source == "--set":
        return _Reader(text, source, where, located=False).document()
    return _Reader(text, source, where).document()


def node_of_value(value: object, source: str | None = None, where: str = "", depth: int = 0) -> Node:
    """The tree of plain Python values; raises JobMistakes."""
    place = Place(source)
    if depth > MAX_DEPTH:
        raise JobMistakes([Mistake(source, None, None, where, f"nested more than {MAX_DEPTH} deep; make it flatter")])
    match value:
        case dict():
            strange = [key for key in value if not isinstance(key, str)]
            if strange:
                raise JobMistakes([Mistake(source, None, None, where, f"the key {strange[0]!r} must be a text")])
            nodes = {k: node_of_value(v, source, below(where, k), depth + 1) for k, v in value.items()}
            return Node(nodes, place, where, dict.fromkeys(nodes, place))
        case list() | tuple():
            items = [node_of_value(v, source, below(where, i), depth + 1) for i, v in enumerate(value)]
            return Node(list(items), place, where)
        case None | bool():
            return Node(value, place, where)
        case int() | float() if abs(value) < 10**MAX_DIGITS:
            return Node(value, place, where)
        case str() if not _SURROGATE.search(value):
            return Node(value, place, where)
        case int() | float() | str():
            message = (
                "must be a finite number" if not isinstance(value, str) else "half of a surrogate pair is no character"
            )
        case _:
            message = f"{type(value).__name__} is not a value of a job; use numbers, texts, lists and dicts"
    raise JobMistakes([Mistake(source, None, None, where, message)])


_SURROGATE = re.compile("[\ud800-\udfff]")

# The core schema of YAML 1.2.2, section 10.3.2
_WORDS: dict[str, Scalar] = dict.fromkeys(("", "~", "null", "Null", "NULL"))
_WORDS |= dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)
_INTEGER = re.compile(r"[-+]?[0-9]+")
_OTHER_BASE = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def scalar_of_word(word: str) -> Scalar:
    """What a plain word means; raises ValueError with a sentence where it means no finite number."""
    if word in _WORDS:
        return _WORDS[word]
    if _NOT_FINITE.fullmatch(word):
        raise ValueError(f"{word} is not a finite number; write a finite one")
    if len(word) > MAX_DIGITS and _FLOAT.fullmatch(word):
        raise ValueError(f"a number of {len(word)} characters; write it with at most {MAX_DIGITS}")
    if _INTEGER.fullmatch(word):
        return int(word)
    if _OTHER_BASE.fullmatch(word):
        return int(word, 0)
    if _FLOAT.fullmatch(word):
        number = float(word)
        if number in (float("inf"), float("-inf")):
            raise ValueError(f"{word} is too large for a number; write a finite one")
        return number
    return word


class _Reader:
    """Builds the tree from ruamel's events; gathers the mistakes that leave it whole, ends at the others."""

    def __init__(self, text: str, source: str, where: str, *, located: bool = True) -> None:
        self.text, self.source, self.where, self.located = text, source, where, located
        self.mistakes: list[Mistake] = []
        self.nodes = 0

    def document(self) -> Node:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError
        from ruamel.yaml.reader import ReaderError

        parser = YAML(typ="rt", pure=True)
        try:
            self.events: Iterator[Any] = iter(parser.parse(self.text))
            node = self._document()
        except ReaderError as error:
            self._refuse(self._place_of_offset(error.position), self.where, "a control character; delete it")
        except YAMLError as error:
            self._refuse_syntax(error)
        except (
            ValueError,
            AttributeError,
            IndexError,
            TypeError,
            AssertionError,
        ) as error:  # ruamel's own slips
            self._refuse(
                Place(self.source),
                self.where,
                f"not YAML that can be read ({type(error).__name__}); simplify it",
            )
        if self.mistakes:
            raise JobMistakes(self.mistakes)
        return node

    def _document(self) -> Node:
        node = Node(None, self._place_of_offset(0), self.where)
        documents = 0
        for event in self.events:
            kind = type(event).__name__
            if kind == "DocumentStartEvent":
                documents += 1
                if documents > 1:
                    self._refuse(self._place(event), self.where, "a second document begins here; keep one job a file")
            elif kind not in ("StreamStartEvent", "StreamEndEvent", "DocumentEndEvent", "CommentEvent"):
                node = self._node(event, self.where, 0)
        return node

    def _node(self, event: object, where: str, depth: int) -> Node:
        place, kind = self._place(event), type(event).__name__
        self._guard(event, kind, place, where, depth)
        if kind == "MappingStartEvent":
            return self._mapping(place, where, depth)
        if kind == "SequenceStartEvent":
            return self._sequence(place, where, depth)
        return Node(self._scalar(event, place, where), place, where)

    def _guard(self, event: Any, kind: str, place: Place, where: str, depth: int) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self._refuse(place, where, f"more than {MAX_NODES} values; put long lists of prompts into a text file")
        if depth > MAX_DEPTH:
            self._refuse(place, where, f"nested more than {MAX_DEPTH} deep; make it flatter")
        if kind == "AliasEvent" or (kind in NODES and event.anchor):
            self._refuse(
                place,
                where,
                "anchors (&) and aliases (*) are refused; write the value out, or put it in quotes",
            )
        if _tag(event):
            self._refuse(place, where, f"the tag {_tag(event)} is refused: a job is plain data; delete it")

    def _mapping(self, place: Place, where: str, depth: int) -> Node:
        node = Node({}, place, where)
        assert isinstance(node.value, dict)
        for event in self.events:
            kind = type(event).__name__
            if kind == "MappingEndEvent":
                break
            at = self._place(event)
            if kind != "ScalarEvent":
                self._refuse(at, where, "a key must be a word; to begin a text with [ or {, put it in quotes")
            self._guard(event, kind, at, where, depth)
            key = str(event.value)
            child = self._node(next(self.events), below(where, key), depth + 1)
            if child.value is None and child.place.line != at.line:
                child.place = at  # nothing was written: ruamel puts that where the next thing begins
            if key in node.value:
                first = node.keys[key]
                seen = f"line {first.line}" if first.line else "the same mapping"
                self._note(at, below(where, key), f"this key stands already in {seen}; delete one of the two")
            else:
                node.value[key], node.keys[key] = child, at
        return node

    def _sequence(self, place: Place, where: str, depth: int) -> Node:
        items: list[Node] = []
        for event in self.events:
            if type(event).__name__ == "SequenceEndEvent":
                break
            items.append(self._node(event, below(where, len(items)), depth + 1))
        return Node(items, place, where)

    def _scalar(self, event: Any, place: Place, where: str) -> Scalar:
        text = str(event.value)
        if _SURROGATE.search(text):
            self._note(place, where, "half of a surrogate pair is no character; write the character itself")
            return ""
        if event.style not in (None, ""):
            return text
        try:
            return scalar_of_word(text)
        except ValueError as mistake:
            self._note(place, where, str(mistake))
            return 1  # a number, so that nothing further is said of it

    # -- places -------------------------------------------------------------------------------------------

    def _place(self, event: Any) -> Place:
        return self._place_at(event.start_mark.line, event.start_mark.column)

    def _place_at(self, line: int, column: int) -> Place:
        return Place(self.source, line + 1, column + 1) if self.located else Place(self.source)

    def _place_of_offset(self, offset: int) -> Place:
        before = self.text[:offset]
        return self._place_at(before.count("\n"), len(before) - (before.rfind("\n") + 1))

    def _note(self, place: Place, where: str, message: str) -> None:
        self.mistakes.append(Mistake(place.source, place.line, place.column, where, message))

    def _refuse(self, place: Place, where: str, message: str) -> None:
        self._note(place, where, message)
        raise JobMistakes(self.mistakes) from None

    def _refuse_syntax(self, error: object) -> None:
        from ruamel.yaml.error import MarkedYAMLError

        if not isinstance(error, MarkedYAMLError):
            error = MarkedYAMLError(problem=str(error))
        mark = error.problem_mark or error.context_mark
        place = self._place_at(mark.line, mark.column) if mark else Place(self.source)
        if str(error.context).startswith("while parsing a flow") and error.context_mark:
            opened = self._place_at(error.context_mark.line, error.context_mark.column)
            self._refuse(opened, self.where, "this bracket is not closed, or a comma is missing in it; mend it")
        problem = " ".join(str(error.problem or error).split())
        if "'\\t'" in problem or "\\t" in problem:
            self._refuse(place, self.where, "a tab indents this line; indent with spaces")
        remedy = "check the indentation, the brackets and the quotes before this place"
        self._refuse(place, self.where, f"this is not YAML ({problem}); {remedy}")


def _tag(event: Any) -> str | None:
    tag = event.tag if type(event).__name__ in NODES else None
    if tag is None or str(tag) in ("", "None"):
        return None
    return str(tag)
