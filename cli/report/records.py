"""`report.json`, `status.json` and a line of `steps.jsonl` as typed records: every key that is written.

The number under `schema` is `SCHEMA` of the run folder. Reading is lenient: a key that an earlier genbo did not write
has a default, and a key that is not known here is kept as it is. Strict reading is
`RunReport.model_validate(document, extra="forbid")`. `document()` gives back exactly the keys that were set, as JSON.

Numbers that are not finite are null in JSON, hence `None` here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from genbo.cli.errors import ArtifactRefused
from genbo.cli.run.json_files import Document, strict
from genbo.cli.run.layout import SCHEMA

Number = Annotated[int | float, WithJsonSchema({"type": "number"})]  # an integer stays one
Numbers = list[Number]
Interval = tuple[Number | None, Number | None]
Verdict = Literal["better", "no measurable difference", "worse"]
Level = Literal["good", "note", "warning"]
Read = TypeVar("Read", bound="Record")


class Record(BaseModel):
    """What all records share."""

    model_config = ConfigDict(extra="allow", populate_by_name=True, protected_namespaces=())

    def document(self) -> Document:
        """The JSON object, with the keys that were set and no others."""
        found: Document = strict(self.model_dump(exclude_unset=True, by_alias=True))
        return found

    def given(self) -> dict[str, Any]:
        """The fields that were set, as they are: what a record with more keys is made from."""
        return {name: value for name, value in self if name in self.model_fields_set}

    @classmethod
    def read(cls, document: Self | Mapping[str, object], place: Path | str) -> Self:
        """A record from an object in a file; `ArtifactRefused` with the place of the first thing that is wrong."""
        try:
            return cls.model_validate(document)
        except ValidationError as problem:
            first = problem.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ArtifactRefused(f"{place} cannot be read: {where}: {first['msg']}") from problem


class Remark(Record):
    """A sentence of the trust list."""

    level: Level
    text: str


# -- steps.jsonl -----------------------------------------------------------------------------------------------


class StepRecord(Record):
    """A step of a climb, or a round of a search for lambda, whose keys begin at `kind`."""

    step: int = 0
    phi: dict[str, Number | Numbers | None] = Field(default_factory=dict)
    value: Number | None = None
    value_se: Number | None = None
    scores: dict[str, Number | None] = Field(default_factory=dict)
    gaps: dict[str, Number | None] = Field(default_factory=dict)
    multipliers: dict[str, Number | None] = Field(default_factory=dict)
    u: list[Number | None] = Field(default_factory=list)
    grad: list[Number | None] = Field(default_factory=list)
    grad_se: list[Number | None] = Field(default_factory=list)
    objective: Number | None = None  # of a search's candidate: the value less what missed constraints cost
    choices: dict[str, str | Number | bool] = Field(default_factory=dict)  # what was chosen, of a search with choices
    rungs: list[Number | None] = Field(default_factory=list)  # its objectives where a pruner looked at it
    width: Number = 0.0  # half the distance in u between the points of a difference; 0 where there is none
    direct: list[Number | None] | None = None  # of a network in training: the sampler's part of the gradient
    indirect: list[Number | None] | None = None  # and the part of the network's answer
    apart: Number | None = None  # relative distance of the gradients at gamma and 2 gamma
    race: dict[str, Any] = Field(default_factory=dict)  # members, ahead and ahead_se of a lap; or why it is needless
    status: str = "ok"  # ok | flat | non_finite | raced | unusable
    kind: str | None = None
    verdict: str | None = None
    log_se: Number | None = None
    after: str | None = None
    reason: str | None = None
    target: Number | None = None
    samples: int | None = None
    shifted: bool = False
    cost: dict[str, int] = Field(default_factory=dict)
    elapsed_s: Number = 0.0


class Status(Record):
    """`status.json`."""

    schema_: int = Field(SCHEMA, alias="schema")
    state: str
    reason: str | None = None
    last_step: int = 0
    resumable: bool = False
    report: str | None = None  # sha256 of report.json, of a run that is done


# -- report.json: the answer -----------------------------------------------------------------------------------


class PhiValue(Record):
    """A hyperparameter: where it started, where it ended, and how sure that is."""

    start: Number | Numbers
    tuned: Number | Numbers
    se: Number | list[Number | None] | None = None
    interval: Interval | list[Interval | None] | None = None  # of 95 %
    kind: str | list[str | None] | None = (
        None  # interior | lower_bound | upper_bound | undetermined | unsettled | fixed
    )
    bounds: tuple[Number, Number] | None = None
    labels: list[str] | None = None  # names of the numbers of a schedule's family
    start_curve: list[Numbers] | None = None  # t, and the log-SNR at each
    tuned_curve: list[Numbers] | None = None
    start_log_snr: Numbers | None = None  # where the sampler's steps stop
    tuned_log_snr: Numbers | None = None
    start_over_steps: Numbers | None = None  # the value that the sampler sees at each step
    tuned_over_steps: Numbers | None = None

    @property
    def kinds(self) -> list[str | None]:
        """One for each number; none where an earlier genbo wrote none."""
        return self.kind if isinstance(self.kind, list) else [] if self.kind is None else [self.kind]


class Combination(Record):
    """The one combination of two numbers that the path determines."""

    of: dict[str, Number]
    value: Number | None = None
    se: Number | None = None


class AnswerRecord(Record):
    """How the answer was found, and what of it is not determined."""

    method: str
    undetermined: list[dict[str, Number]] = Field(default_factory=list)  # directions, the largest part 1
    combination: Combination | None = None
    coupled: list[str] = Field(default_factory=list)  # no error bar, since they move with a number at its bound
    unsettled: dict[str, str] = Field(default_factory=dict)  # and why
    valley: list[tuple[Number, Number]] | None = None
    ellipse: list[tuple[Number, Number]] | None = None
    labels: list[str] = Field(default_factory=list)


# -- report.json: start against tuned --------------------------------------------------------------------------


class PromptGain(Record):
    """The mean difference of a prompt."""

    prompt: str
    difference: Number
    samples: int = 1


class WorstPrompt(Record):
    """The prompt that lost most; its difference is None where it is no number, as a KL may be."""

    prompt: str
    difference: Number | None


class RuinedPrompt(PromptGain):
    """A prompt that is clearly worse."""

    interval: Interval


class PromptMeans(Record):
    """A prompt's mean reward on both sides."""

    prompt: str
    start: Number
    tuned: Number
    samples: int = 1


class ObjectiveRecord(Record):
    """What is maximised over the prompts, where it is not the mean, and the worst prompts of both sides."""

    name: str  # as a job writes it: `worst`, or `cvar: 0.2`
    share: Number  # of the prompts, 0 for the worst alone
    mean: ComparedRow  # the mean over all prompts, which is not what was tuned for
    worst_before: list[PromptMeans] = Field(default_factory=list)  # the lowest at the start, the lowest first
    worst_after: list[PromptMeans] = Field(default_factory=list)  # the lowest of the tuned side


class ComparedRow(Record):
    """Two means of a score, their difference and its 95 % interval; numbers are None where a judge has none.

    What lies over prompts (`gained` to `ruined`) is None in reports that were written before it was counted.
    """

    verdict: Verdict | Literal[""] | None = None
    reason: str | None = None  # of a judge without a verdict
    start: Number | None = None
    tuned: Number | None = None
    difference: Number | None = None
    interval: Interval = (None, None)
    samples: int = 0
    prompts: int = 1
    counted: int | None = None  # what the interval counts: prompts or samples
    gained: int | None = None
    lost: int | None = None
    unchanged: int = 0
    median: Number | None = None
    worst: WorstPrompt | None = None
    ruined: list[RuinedPrompt] = Field(default_factory=list)

    @property
    def is_shaped(self) -> bool:
        """Whether it says how the difference lies over several prompts."""
        return self.prompts > 1 and self.gained is not None


class RewardRow(ComparedRow):
    """A reward, or of a search for lambda a number of both laws, which has no weight."""

    weight: Number | None = None


class KeptRow(ComparedRow):
    """A reward under `keep:` against its level."""

    at_least: Number
    gap: Number | None = None
    held: bool
    broken: bool

    @property
    def outcome(self) -> str:
        return "kept" if self.held else "broken" if self.broken else "within noise"


class HeldOutRow(ComparedRow):
    """The comparison that the verdict is based on."""

    fresh_prompts: bool = False
    by_prompt: list[PromptGain] = Field(default_factory=list)  # from the greatest loss to the greatest gain
    left_out: list[str] = Field(default_factory=list)  # prompts that are tuned on too
    objective: ObjectiveRecord | None = None
