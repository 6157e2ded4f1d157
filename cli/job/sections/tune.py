"""`tune`: the hyperparameters that are tuned, each with its start and its bounds."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from genbo.cli.job import catalog, forms
from genbo.cli.job.kind import Kind
from genbo.cli.job.paths import with_paths
from genbo.cli.job.reader import Reader
from genbo.cli.job.section import Entry, Level, Section
from genbo.cli.job.sections.model import MODEL
from genbo.cli.job.yaml_nodes import Node, below, node_of_value

EXAMPLES = {"noise_schedule": "family: cosine", "timesteps": "start: karras"}  # how to write a tunable


class TuneSection(Section[dict[str, Any]]):
    key = "tune"
    missing = "missing; say what to tune, like tune: {guidance: {start: 1.0}}"

    def read(self, reader: Reader) -> dict[str, object] | None:
        MODEL.of(reader)
        node = reader.at("tune")
        if node is None or not reader.mapping(node, "guidance: {start: 1.0}", empty=False):
            return None
        assert isinstance(node.value, dict)
        found = {key: _tunable(reader, node, key, child) for key, child in node.value.items()}
        _note_no_effect(reader, node, set(found))
        return found if all(value is not None for value in found.values()) else None

    def described(self) -> Entry:
        """A key for each tunable, and `guidance.<option>` for each number of any rule."""
        models = {name: catalog.model_of("tunables", name) for name in catalog.kinds("tunables")}
        entries: dict[str, Any] = {name: (model | None, None) for name, model in models.items()}
        rules = [catalog.hints_of(catalog.options_of("guidance", kind)) for kind in catalog.kinds("guidance")]
        numbers = {name for hints in rules for name, hint in hints.items() if catalog.words(hint).startswith("number")}
        for option in sorted(numbers - {"weight"}):
            default = Field(default=None, alias=f"guidance.{option}")
            entries[f"guidance_{option}"] = (models["guidance"] | None, default)
        return forms.mapping("Tune", **entries), ...

    def written(self, value: dict[str, Any], level: Level) -> Any:
        return {name: catalog.document_of("tunables", tunable) for name, tunable in value.items()}


def tunable_options(rule: Kind) -> list[str]:
    """The numeric options of a guidance rule."""
    return [
        name
        for name, value in vars(rule.options).items()
        if isinstance(value, (int, float, list)) and not isinstance(value, bool)
    ]


def _note_no_effect(reader: Reader, node: Node, keys: set[str]) -> None:
    """An option of the rule does nothing where the weight is 1, and its gradient is nothing too."""
    weight = reader.rule.options.weight if reader.rule else None
    weights = weight if isinstance(weight, list) else [weight]
    if weight is None or "guidance" in keys or any(w != 1 for w in weights):
        return
    for key in sorted(key for key in keys if key.startswith("guidance.")):
        message = "has no effect where the guidance weight is 1; set model.guidance.weight, or tune guidance"
        reader.note(node, message, place=node.keys.get(key), where=below(node.where, key))


def _tunable(reader: Reader, parent: Node, key: str, node: Node) -> Any:
    """The tunable of one key: `name`, or `guidance.<option>`."""
    name, _, option = key.partition(".")
    rule, names = reader.rule, catalog.kinds("tunables")
    if name not in names:
        message = f"unknown tunable {name!r}{catalog.nearest(name, names)}"
        return reader.note(parent, message, place=parent.keys.get(key), where=node.where)
    if not reader.mapping(node, EXAMPLES.get(name, "start: 1.0, bounds: [0, 20]")):
        return None
    of_rule = name == "guidance"  # the only one that may be an option of something else
    if option and not of_rule:
        message = f"{name} has no options to tune; write {name}:"
        return reader.note(parent, message, place=parent.keys.get(key), where=node.where)
    if of_rule and rule and not _has_option(reader, parent, key, option, node, rule):
        return None
    given = {"option": option} if option else {}
    node = _bounded(node, option, rule)
    values = reader.validated(catalog.model_of("tunables", name), node)
    if values is None:
        return None
    tunable = catalog.build("tunables", name, with_paths(values, reader.base), **given)
    wrong = tunable.mistakes(reader.steps) if reader.steps else []
    reader.sentences(node, wrong)
    outside = not wrong and of_rule and rule is not None and not _inside(reader, tunable, node, option, rule)
    return None if wrong or outside else tunable


def _has_option(reader: Reader, parent: Node, key: str, option: str, node: Node, rule: Kind) -> bool:
    """Whether the guidance rule has the option that `guidance.<option>` names."""
    numeric = tunable_options(rule)
    if key == "guidance" or (option in numeric and option != "weight"):
        return True
    if option == "weight":
        message = "the guidance weight is tuned as guidance; write guidance: for guidance.weight:"
    else:
        others = [name for name in numeric if name != "weight"]
        no_other = "; choose another rule under model.guidance, or tune guidance"
        remedy = catalog.nearest(option, others) if others else no_other
        message = f"the guidance rule {rule.kind} has no numeric option {option!r}{remedy}"
    reader.note(parent, message, place=parent.keys.get(key), where=node.where)
    return False


def _bounded(node: Node, option: str, rule: Kind | None) -> Node:
    """With the option's own domain as bounds, where it is finite and the job gives none."""
    assert isinstance(node.value, dict)
    if not option or rule is None or "bounds" in node.value:
        return node
    low, high = catalog.limits(catalog.hints_of(type(rule.options))[option])
    if low is None or high is None:
        return node
    bounds = node_of_value([float(low), float(high)], node.place.source, below(node.where, "bounds"))
    return Node({**node.value, "bounds": bounds}, node.place, node.where, node.keys)


def _inside(reader: Reader, tunable: Any, node: Node, option: str, rule: Kind) -> bool:
    """Whether the bounds keep the option inside its own domain."""
    hint = catalog.hints_of(type(rule.options))[option or "weight"]
    low, high = catalog.limits(hint)
    if (low is None or tunable.bounds[0] >= low) and (high is None or tunable.bounds[1] <= high):
        return True
    message = f"{option} must be {catalog.words(hint).removeprefix('number ')}; set bounds inside that"
    reader.note(node.find(["bounds"]), message, where=below(node.where, "bounds"))
    return False


TUNE = TuneSection()
