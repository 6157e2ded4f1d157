"""`evaluate`: the held-out comparison, its prompts, its samples and its judges."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, Lt
from pydantic import BaseModel, ConfigDict, Field

from genbo.cli.job import forms
from genbo.cli.job.kind import FROZEN, Kind
from genbo.cli.job.reader import Part, Reader, distinct, without
from genbo.cli.job.section import Entry, Level, Section
from genbo.cli.job.sections.budget import MAX_SAMPLES
from genbo.cli.job.sections.prompts import WRITTEN, Prompts, read_prompts
from genbo.cli.job.yaml_nodes import Node
from genbo.diffusion.kinds import declared
from genbo.rewards._traits import RewardOptions, RewardTraits

PAIRS = 128  # held-out samples of each set of weights that a search for lambda tunes, at most


class JudgeJob(Kind[RewardOptions]):
    """A reward that looks at held-out images alone; `name` is that of its weights, or else its kind."""

    name: str

    @property
    def of_sets(self) -> bool:
        """Whether it looks at all samples together."""
        return declared(RewardTraits, self.options).of_sets


class EvaluateJob(BaseModel):
    """The held-out comparison; without prompts of its own it takes the tuning prompts with fresh seeds.

    `judges` are rewards that tuning never uses; each scores the same held-out images, and is reported by itself.
    """

    model_config = FROZEN | ConfigDict(strict=True)

    prompts: Prompts | None = None
    samples: Annotated[int, Ge(2), Lt(MAX_SAMPLES + 1)] = 128
    judges: tuple[JudgeJob, ...] = ()


class EvaluateSection(Section[EvaluateJob]):
    key = "evaluate"

    def read(self, reader: Reader) -> EvaluateJob | None:
        node = reader.at_or("evaluate", {})
        if not reader.mapping(node, "samples: 128"):
            return None
        bare, prompts = without(node, "prompts")
        bare, judges = without(bare, "judges")
        values = reader.validated(EvaluateJob, bare, also=("prompts", "judges"))
        found = _judges(reader, judges)
        own = prompts if prompts is not None and prompts.value is not None else None
        texts = read_prompts(reader, own) if own else None
        if values is None or found is None or (texts is None and own is not None):
            return None
        return values.model_copy(update={"prompts": texts, "judges": found})

    def described(self) -> Entry:
        evaluate = forms.mapping(
            "Evaluate",
            prompts=(WRITTEN | None, None),
            samples=(Annotated[int, Ge(2)], 128),
            judges=(forms.one_or_many(forms.room("rewards")) | None, None),
        )
        return evaluate, Field(default_factory=dict)

    def written(self, value: EvaluateJob, level: Level) -> Any:
        judges = {"judges": [judge.document("rewards") for judge in value.judges]} if value.judges else {}
        return {"prompts": value.prompts.document() if value.prompts else None, "samples": value.samples, **judges}


def _judges(reader: Reader, node: Node | None) -> tuple[JudgeJob, ...] | None:
    """One reward or a list of them, each called by its weights where these have a name."""
    written = node is not None and node.value is not None
    found = reader.many(node, lambda one: _judge(reader, one)) if node is not None and written else []
    return None if found is None else tuple(JudgeJob.model_construct(**j) for j in distinct(found, reader.names))


def _judge(reader: Reader, node: Node) -> Part | None:
    bare, weight = without(node, "weight")
    if weight is not None:
        reader.note(weight, "judges are reported one by one and never summed; delete the weight")
    kind = reader.kind(bare, "rewards", "a judge")
    return {**kind.__dict__, "name": _name(kind)} if kind else None


def _name(kind: Kind[RewardOptions]) -> str:
    """A reward by the name of its weights, where they have one: two CLIPs must be told apart."""
    traits = declared(RewardTraits, kind.options)
    written = traits.model or traits.pretrained
    return written.rstrip("/").split("/")[-1].removeprefix("local-dir:") or kind.kind


EVALUATE = EvaluateSection()
