"""`tune`: the hyperparameters that are tuned: numbers with their starts and bounds, choices with their values."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from genbo.cli.job import catalog, choice_reading, forms
from genbo.cli.job.choices import Choice, TuneJob
from genbo.cli.job.kind import Kind
from genbo.cli.job.paths import with_paths
from genbo.cli.job.reader import Reader
from genbo.cli.job.section import Entry, Level, Section
from genbo.cli.job.sections.lower import LOWER
from genbo.cli.job.sections.model import MAX_STEPS, MODEL
from genbo.cli.job.yaml_nodes import Node, below, node_of_value

KEYS = {"steer.strength": "steer_strength"}  # of a tunable that is written otherwise than its file is called
EXAMPLES = {"noise_schedule": "family: cosine", "timesteps": "start: karras"}  # how to write a tunable


class TuneSection(Section[TuneJob]):
    key = "tune"
    field = "tuning"
    missing = "missing; say what to tune, like tune: {guidance: {start: 1.0}}"

    def read(self, reader: Reader) -> TuneJob | None:
        MODEL.of(reader)
        node = reader.at("tune")
        if node is None or not reader.mapping(node, "guidance: {start: 1.0}", empty=False):
            return None
        assert isinstance(node.value, dict)
        found = {key: _entry(reader, node, key, child) for key, child in node.value.items()}
        _note_no_effect(reader, node, set(found))
        if any(value is None for value in found.values()):
            return None
        choices = {key: value for key, value in found.items() if isinstance(value, Choice)}
        return TuneJob({key: value for key, value in found.items() if key not in choices}, choices)

    def described(self) -> Entry:
        """A key for each tunable, `guidance.<option>` for each number of any rule, and every choice."""
        models = {name: catalog.model_of("tunables", name) for name in catalog.kinds("tunables")}
        entries: dict[str, Any] = {
            name: (model | None, Field(default=None, alias=written_as(name))) for name, model in models.items()
        }
        rules = [catalog.hints_of(catalog.options_of("guidance", kind)) for kind in catalog.kinds("guidance")]
        numbers = {name for hints in rules for name, hint in hints.items() if catalog.words(hint).startswith("number")}
        for option in sorted(numbers - {"weight"}):
            default = Field(default=None, alias=f"guidance.{option}")
            entries[f"guidance_{option}"] = (models["guidance"] | None, default)
        for name in choice_reading.names():
            entries[name.replace(".", "_")] = (forms.some(_values_of(name)) | None, Field(default=None, alias=name))
        return forms.mapping("Tune", **entries), ...

    def written(self, value: TuneJob, level: Level) -> Any:
        numbers = {name: catalog.document_of("tunables", tunable) for name, tunable in value.tunables.items()}
        return {**numbers, **{name: list(choice.values) for name, choice in value.choices.items()}}


def _values_of(name: str) -> Any:
    """The type of a choice's values, for the schema."""
    part, _, option = name.partition(".")
    if option == "kind":
        return forms.names_of("samplers" if part == "sampler" else part)
    hints = [
        catalog.hints_of(catalog.options_of(room, kind)).get(option)
        for room in ("samplers" if part == "sampler" else "lower",)
        for kind in catalog.kinds(room)
    ]
    return next(catalog.typed(hint) for hint in hints if hint is not None)


def _own(reader: Reader) -> choice_reading.Own | None:
    """The parts of the job that may be chosen; None where the model has a mistake."""
    model, lower = MODEL.of(reader), LOWER.of(reader)
    if model is None:
        return None
    training = lower if lower is not None and lower.trains else None
    return choice_reading.Own({"sampler": model.sampler, "guidance": model.guidance}, training, MAX_STEPS)


def _entry(reader: Reader, parent: Node, key: str, node: Node) -> Any:
    """A tunable, or a choice."""
    if choice_reading.is_choice(key):
        own = _own(reader)
        return own and choice_reading.read_choice(reader, own, parent, key, node)
    return _tunable(reader, parent, key, node)


def written_as(kind: str) -> str:
    """The key of a kind of tunable."""
    return next((key for key, name in KEYS.items() if name == kind), kind)


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
    name, _, option = KEYS.get(key, key).partition(".")
    rule, names = reader.rule, catalog.kinds("tunables")
    if name not in names or key in KEYS.values():
        names = (*(written_as(each) for each in names), *choice_reading.names())
        message = f"unknown tunable {name!r}{catalog.nearest(key, names)}"
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
