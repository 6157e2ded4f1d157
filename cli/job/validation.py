"""Turns the errors of pydantic into one sentence for each place, with a remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from genbo.cli.job import catalog
from genbo.cli.job.yaml_nodes import Node, Place, below

Sentence = tuple[Node, Place | None, str, str]


def sentences_of(error: ValidationError, model: type[BaseModel], node: Node, also: Sequence[str]) -> Iterator[Sentence]:
    """pydantic's errors as (node, place, key, sentence), one for each place."""
    seen = set()
    for found in error.errors(include_url=False):
        loc = [key for key in found["loc"] if not str(key).startswith("<")]
        fields = _fields_at(model, found["loc"][:-1])
        kind, key = found["type"], str(loc[-1]) if loc else ""
        if kind == "extra_forbidden":
            parent = node.find(loc[:-1])
            known = [*fields, *(also if len(loc) == 1 else ())]
            message = f"unknown key{catalog.nearest(key, known) or '; this kind takes no options, so delete it'}"
            yield parent, parent.keys.get(key), below(parent.where, key), message
        elif kind == "missing":
            parent = node.find(loc[:-1])
            hint = catalog.words(fields[key].rebuild_annotation()) if key in fields else "a value"
            yield parent, None, below(parent.where, key), f"missing; write {key}: <{_plain_words(hint)}>"
        else:
            at = node.find(loc)
            if at.where not in seen:
                seen.add(at.where)
                yield at, None, at.where, _sentence(found, at)


def _fields_at(model: type[BaseModel], loc: Sequence[str | int]) -> dict[str, Any]:
    """The fields of the model that stands at `loc`."""
    for key in loc:
        nested = catalog.MODELS.get(str(key))
        if nested is None and key in model.model_fields:
            annotation = model.model_fields[str(key)].annotation
            nested = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
        model = nested or model
    return dict(model.model_fields)


def _plain_words(hint: str) -> str:
    return hint.replace(" | ", " or ")


_EXPECTED = {
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "string_type": "a text; put it in quotes",
    "bool_type": "true or false",
    "list_type": "a list in [ ]",
    "dict_type": "a mapping in { }",
    "model_type": "a mapping in { }",
    "finite_number": "a finite number",
    "none_required": "null",
}


def _sentence(found: Any, at: Node) -> str:
    context = found.get("ctx", {})
    match found["type"]:
        case "literal_error":
            allowed = re.findall(r"'([^']*)'", context["expected"])
            near = catalog.nearest(str(at.value), allowed) if isinstance(at.value, str) else ""
            hint = near if near.startswith("; did") else ""
            return f"must be one of {', '.join(allowed)}, not {shown(at)}{hint}"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal" as kind:
            words = kind.replace("_equal", "").replace("_", " ")
            limit = catalog.spoken(next(iter(context.values())))
            return f"must be {words} {'or equal to ' if kind.endswith('equal') else ''}{limit}, not {shown(at)}"
        case "too_short" | "too_long":
            count = context.get("min_length", context.get("max_length"))
            return f"must have {count} entries, not {context['actual_length']}"
    expected = _EXPECTED.get(found["type"])
    if expected is None:
        return f"{found['msg'][0].lower()}{found['msg'][1:]}, not {shown(at)}"
    words, _, remedy = expected.partition("; ")
    return f"must be {words}, not {shown(at)}{'; ' + remedy if remedy else ''}"


def shown(node: Node) -> str:
    """A value as it is shown in a message, at most 40 characters."""
    match node.value:
        case None:
            return "nothing"
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case str():
            return repr(node.value if len(node.value) <= 40 else node.value[:37] + "...")
    return catalog.spoken(node.value)[:40]
