"""`--set a.b=c`: one value put into a job's tree, before anything is checked."""

from __future__ import annotations

from collections.abc import Sequence

from genbo.cli.job import catalog
from genbo.cli.job.choice_reading import is_choice
from genbo.cli.job.yaml_nodes import JobMistakes, Mistake, Node, Place, below, node_of_text


def override(root: Node, text: str) -> None:
    """Put `a.b=c` into the tree; the value is YAML."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key or not all(key.split(".")):
        raise JobMistakes(
            [Mistake("--set", None, None, text or "''", "write it as key.key=value, like budget.steps=5")]
        )
    new = node_of_text(value, "--set", key)
    if not isinstance(root.value, dict):
        return
    _put(root, _path_of(key, new), new, key)


def _path_of(key: str, value: Node) -> list[str]:
    """The keys of a dotted path; a key under `tune` may hold a dot itself: tune.guidance.rescale.start."""
    parts = key.split(".")
    if parts[0] == "tune" and len(parts) == 3 and is_choice(f"{parts[1]}.{parts[2]}"):
        return ["tune", f"{parts[1]}.{parts[2]}"]
    if parts[0] != "tune" or len(parts) < 3 or parts[1] not in catalog.kinds("tunables"):
        return parts
    own = {option.name for option in catalog.options("tunables", parts[1])}
    joined = f"{parts[1]}.{parts[2]}"
    is_key = parts[3] in own if len(parts) > 3 else isinstance(value.value, dict) and parts[2] not in own
    return ["tune", joined, *parts[3:]] if is_key else parts


def _put(root: Node, parts: Sequence[str], new: Node, key: str) -> None:
    """Walks down the tree, making what is not there, and puts the new node in its place."""
    node, where, place = root, "", Place("--set")
    for i, part in enumerate(parts):
        _open(node, part, place)
        where = below(where, part)
        if isinstance(node.value, list):
            index = _index(node.value, part, key)
            if i == len(parts) - 1:
                node.value[index] = new
            node = node.value[index]
            continue
        assert isinstance(node.value, dict)
        if i == len(parts) - 1:
            node.value[part], node.keys[part] = new, place
        elif part not in node.value:
            node.value[part], node.keys[part] = Node({}, place, where), place
        node = node.value[part]


def _open(node: Node, part: str, place: Place) -> None:
    """Makes a node hold keys: a bare name is a kind, a bare guidance a weight, one reward a list of one."""
    itself = Node(node.value, node.place, node.where, node.keys)
    if isinstance(node.value, dict):
        if part.isdecimal() and node.where in ("reward", "keep"):
            node.value = [itself]
    elif isinstance(node.value, list) and node.where in ("reward", "keep") and not part.isdecimal():
        if len(node.value) != 1:
            said = f"{node.where} is a list of {len(node.value)}; write {node.where}.0.{part}, or another number"
            raise JobMistakes([Mistake("--set", None, None, node.where, said)])
        (only,) = node.value
        node.value, node.keys, node.place = only.value, only.keys, only.place
        _open(node, part, place)
    elif not isinstance(node.value, list) or not part.isdecimal():
        bare = "path" if node.where == "data" else "kind"
        key = bare if isinstance(node.value, str) else "weight" if node.where == "model.guidance" else None
        node.value, node.keys = ({key: itself}, {key: node.place}) if key and node.value is not None else ({}, {})
        node.place = itself.place if key else place


def _index(items: Sequence[Node], part: str, key: str) -> int:
    if part.isdecimal() and len(part) < 10 and int(part) < len(items):
        return int(part)
    remedy = f"give a number from 0 to {len(items) - 1}" if items else "set the whole list"
    raise JobMistakes([Mistake("--set", None, None, key, f"{part!r} is not in this list of {len(items)}; {remedy}")])
