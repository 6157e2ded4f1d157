"""`model`: what turns noise into samples, with its sampler, its guidance rule, what steers it, and its batch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from annotated_types import Ge
from pydantic import Field

from genbo.cli.job import catalog, forms
from genbo.cli.job.kind import Kind
from genbo.cli.job.reader import Reader
from genbo.cli.job.section import Entry, Level, Section
from genbo.cli.job.sections._steer import SteerJob, described, read_steer
from genbo.cli.job.validation import shown
from genbo.cli.job.yaml_nodes import Node, below
from genbo.diffusion.kinds import declared
from genbo.diffusion.model_options import LearningOptions, ModelOptions
from genbo.diffusion.process import GuidanceRule, Sampler
from genbo.diffusion.traits import ModelTraits

MAX_STEPS = 10_000
MAX_BATCH = 65_536
OWN = ("sampler", "guidance", "steer", "batch")  # keys of `model` that are no options of its kind


class ModelJob(Kind[ModelOptions]):
    """`batch` is how many images go through the network in one call."""

    sampler: Kind[Sampler]
    guidance: Kind[GuidanceRule]
    steer: SteerJob | None = None
    batch: int | Literal["auto"] = "auto"

    @property
    def traits(self) -> ModelTraits:
        """What the model declares of itself."""
        return declared(ModelTraits, self.options)

    @property
    def learns(self) -> bool:
        """Whether it is a network of one's own, which a lower level trains."""
        return self.traits.learns

    @property
    def learning(self) -> LearningOptions | None:
        """Its options, where it is a network of one's own."""
        return cast("LearningOptions", self.options) if self.learns else None

    @property
    def takes_no_prompt(self) -> bool:
        """Whether its network is conditioned on nothing."""
        return self.traits.takes_no_prompt


class ModelSection(Section[ModelJob]):
    key = "model"

    def read(self, reader: Reader) -> ModelJob | None:
        node = reader.at_or("model", {})
        if not reader.mapping(node, "pretrained: emoji"):
            return None
        assert isinstance(node.value, dict)
        own = {key: node.value.get(key) for key in OWN}
        options = {key: child for key, child in node.value.items() if key not in own}
        kind = reader.kind(Node(options, node.place, node.where, node.keys), "models", "a model", also=OWN)
        sampler = _sampler(reader, node, own["sampler"])
        usual = 1.0 if kind and declared(ModelTraits, kind.options).learns else 5.0
        guidance = _guidance(reader, own["guidance"] or Node(usual, node.place, below(node.where, "guidance")), sampler)
        steps = sampler.options.steps if sampler else None
        steer, batch = read_steer(reader, own["steer"], steps), _batch(reader, own["batch"])
        reader.rule, reader.steps = guidance, steps
        if kind is None or sampler is None or guidance is None or batch is None:
            return None
        return ModelJob.model_construct(**kind.__dict__, sampler=sampler, guidance=guidance, steer=steer, batch=batch)

    def described(self) -> Entry:
        guidance = float | list[float] | forms.room("guidance")
        batch = Literal["auto"] | Annotated[int, Ge(1)]
        own = {"sampler": (forms.room("samplers"), "ddim"), "guidance": (guidance, 5.0), "batch": (batch, "auto")}
        own["steer"] = (described() | None, None)
        return forms.room("models", short=False, **own), Field(default_factory=dict)

    def written(self, value: ModelJob, level: Level) -> Any:
        return {
            **value.document("models"),
            "sampler": value.sampler.document("samplers"),
            "guidance": value.guidance.document("guidance"),
            **({"steer": value.steer.document()} if value.steer else {}),
            "batch": value.batch,
        }


def is_prompted(reader: Reader) -> bool:
    """Whether a model with a mistake in it is one that takes prompts, as far as its kind shows."""
    node = reader.at("model")
    value = node.value if node else None
    kind = value.get("kind") if isinstance(value, dict) else None
    name = kind.value if kind else value if isinstance(value, str) else "diffusers"
    known = isinstance(name, str) and name in catalog.kinds("models")
    return known and not declared(ModelTraits, catalog.options_of("models", str(name))).learns


def _sampler(reader: Reader, model: Node, node: Node | None) -> Kind[Sampler] | None:
    usual = Node("ddim", model.place, below(model.where, "sampler"))
    sampler = reader.kind(node or usual, "samplers", "a sampler")
    if sampler and sampler.options.steps > MAX_STEPS:
        at = (node or model).find(["steps"])
        reader.note(at, f"at most {MAX_STEPS} steps, not {sampler.options.steps}; use fewer")
        return None
    return sampler


def _guidance(reader: Reader, node: Node, sampler: Kind[Sampler] | None) -> Kind[GuidanceRule] | None:
    """A number, a list of one a step, or a rule with its options."""
    if not isinstance(node.value, (dict, str)):
        node = Node({"weight": node}, node.place, node.where)
    rule = reader.kind(node, "guidance", "a guidance rule")
    weight = rule.options.weight if rule else None
    if rule and sampler and isinstance(weight, list) and len(weight) != sampler.options.steps:
        message = f"{len(weight)} numbers for {sampler.options.steps} steps; give one number, or one a step"
        reader.note(node.find(["weight"]), message)
        return None
    return rule


def _batch(reader: Reader, node: Node | None) -> int | str | None:
    value = "auto" if node is None else node.value
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_BATCH):
        return value
    assert node is not None
    reader.note(node, f"must be auto or a whole number from 1 to {MAX_BATCH}, not {shown(node)}; auto fits most")
    return None


MODEL = ModelSection()
