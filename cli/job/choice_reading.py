"""Reads a choice under `tune`: a list of values of `sampler.<option>`, `guidance.kind` or `lower.prediction`."""

from __future__ import annotations

from dataclasses import dataclass, fields

from genbo.cli.job import catalog
from genbo.cli.job.choices import PREDICTION, ROOMS, Choice, Value
from genbo.cli.job.kind import Kind
from genbo.cli.job.reader import Reader
from genbo.cli.job.validation import shown
from genbo.cli.job.yaml_nodes import Node, below

WHAT = {"sampler": "sampler", "guidance": "guidance rule"}
EXAMPLES = {"kind": "[ddim, dpmpp]", "steps": "[10, 20]"}


@dataclass(frozen=True)
class Own:
    """The job's own parts that may be chosen; `training` is the lower level where it trains the network."""

    model: dict[str, Kind]
    training: Kind | None
    most_steps: int


def is_choice(key: str) -> bool:
    """Whether a key under `tune` names something to choose; options of a guidance rule are numbers."""
    part, dot, option = key.partition(".")
    return bool(dot) and (part in ("sampler", "lower") or key == "guidance.kind") and bool(option)


def names() -> list[str]:
    """Every choice that there may be."""
    options = {o.name for kind in catalog.kinds("samplers") for o in catalog.options("samplers", kind)}
    return ["sampler.kind", *(f"sampler.{name}" for name in sorted(options)), "guidance.kind", PREDICTION]


def read_choice(reader: Reader, own: Own, parent: Node, key: str, node: Node) -> Choice | None:
    """The choice of one key, or None with its mistakes noted."""
    if key not in names():
        message = f"unknown choice {key!r}{catalog.nearest(key, names())}"
        reader.note(parent, message, place=parent.keys.get(key), where=below(parent.where, key))
        return None
    items = node.value
    if not isinstance(items, list) or len(items) < 2:
        example = EXAMPLES.get(key.partition(".")[2], "[..., ...]")
        seen = f"a list of {len(items)}" if isinstance(items, list) else shown(node)
        reader.note(node, f"must be a list of two values or more, like {example}, not {seen}; write all to choose from")
        return None
    found = (_predictions if key == PREDICTION else _of_model)(reader, own, parent, key, items)
    if found is None:
        return None
    values, start = found
    words = [catalog.spoken(value) for value in values]
    if twice := next((word for word in words if words.count(word) > 1), None):
        reader.note(node, f"{twice} is in the list twice; delete one of the two")
        return None
    if start not in values:
        message = (
            f"the search starts at the job's own {catalog.spoken(start)}, which is not in the list; add it, or set "
        )
        place = key if key == PREDICTION else f"model.{key}"
        reader.note(node, f"{message}{place} to one of these")
        return None
    return Choice(key, tuple(values), start)


Found = tuple[list[Value], Value] | None


def _of_model(reader: Reader, own: Own, parent: Node, key: str, items: list[Node]) -> Found:
    """The values and the start of a key under `model`."""
    part, _, option = key.partition(".")
    start = own.model[part]
    if option == "kind":
        kinds = [_kind(reader, part, item) for item in items]
        return None if None in kinds else ([str(kind) for kind in kinds], start.kind)
    for kind in _kinds_in_play(parent, part, start.kind):
        if option not in {f.name for f in fields(catalog.options_of(ROOMS[part], kind))}:
            remedy = f"take {kind} out of tune.{part}.kind" if kind != start.kind else f"choose another model.{part}"
            message = f"the {WHAT[part]} {kind} has no option {option!r}; {remedy}, or delete this"
            reader.note(parent, message, place=parent.keys.get(key), where=below(parent.where, key))
            return None
    found = [_value(reader, own, ROOMS[part], start.kind, option, item) for item in items]
    return None if None in found else ([value for value in found if value is not None], vars(start.options)[option])


def _kinds_in_play(parent: Node, part: str, own: str) -> list[str]:
    """The kinds that the options of this part may belong to."""
    listed = parent.child(f"{part}.kind")
    values = listed.plain() if listed is not None and isinstance(listed.value, list) else []
    return list(dict.fromkeys([own, *(kind for kind in values if kind in catalog.kinds(ROOMS[part]))]))


def _kind(reader: Reader, part: str, item: Node) -> str | None:
    known = catalog.kinds(ROOMS[part])
    if item.value in known:
        return str(item.value)
    named = repr(item.value) if isinstance(item.value, str) else shown(item)
    reader.note(item, f"unknown {WHAT[part]} {named}{catalog.nearest(str(item.value), known)}")
    return None


def _value(reader: Reader, own: Own, room: str, kind: str, option: str, item: Node) -> Value | None:
    """A value as the option has it, checked by the option's own type."""
    alone = Node({option: item}, item.place, item.where.rpartition(".")[0], {option: item.place})
    found = reader.validated(catalog.model_of(room, kind), alone)
    value: Value | None = None if found is None else getattr(found, option)
    if value is not None and option == "steps" and isinstance(value, int) and value > own.most_steps:
        reader.note(item, f"at most {own.most_steps} steps, not {value}; use fewer")
        return None
    return value


def _predictions(reader: Reader, own: Own, parent: Node, key: str, items: list[Node]) -> Found:
    """What a network that the job trains may predict."""
    if own.training is None:
        message = "only a network that the job trains can predict something else; set lower: {kind: denoising}"
        reader.note(parent, f"{message}, or delete this", place=parent.keys.get(key), where=below(parent.where, key))
        return None
    found = [_value(reader, own, "lower", own.training.kind, "prediction", item) for item in items]
    start: Value = own.training.options.prediction
    return None if None in found else ([value for value in found if value is not None], start)
