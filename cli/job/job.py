"""A job: what a YAML file says, with every default filled in and every mistake found at once.

Relative paths of models, rewards and prompts are resolved against the folder of the job file; `output` is
relative to the current folder. A job's `document` can be read back to an equal job.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt
from pydantic import BaseModel, ConfigDict

from genbo.bilevel.problem import Facts
from genbo.cli.errors import ArtifactRefused
from genbo.cli.job import catalog
from genbo.cli.job.user_code import Allowed
from genbo.cli.job.yaml_nodes import MAX_BYTES, JobMistakes, Mistake, node_of_text, node_of_value
from genbo.diffusion.damage import names_in
from genbo.diffusion.data import Data

__all__ = ["Job", "JobMistakes", "Mistake", "read_job"]

MAX_STEPS = 10_000
REWARD_WEIGHTS = ("open_clip_model.safetensors", "model.safetensors")  # in the folder of a reward
NO_PROMPT = ("",)  # of a model that is told nothing
MAX_SAMPLES = 1_000_000
FROZEN = ConfigDict(frozen=True, arbitrary_types_allowed=True, extra="forbid")


# -- what a job is ---------------------------------------------------------------------------------------


class Kind(BaseModel):
    """A file of a room with its options: `options` is the room's own object."""

    model_config = FROZEN

    kind: str
    options: Any

    def document(self, room: str) -> dict[str, Any]:
        return {"kind": self.kind, **catalog.document_of(room, self.options)}


class ModelJob(Kind):
    """`batch` is how many images go through the network in one call."""

    sampler: Kind
    guidance: Kind
    batch: int | Literal["auto"] = "auto"


class RewardJob(Kind):
    """A part of what is maximised; `name` is its kind, numbered where a kind stands twice."""

    name: str
    weight: float = 1.0


class JudgeJob(Kind):
    """A reward that looks at held-out images alone; `name` is that of its weights, or else its kind."""

    name: str


class LowerJob(Kind):
    """What the sampled law is tuned for at every lambda: `reward` is maximised, lambda KL(p || p_pretrained) paid.

    Or, with no reward, how the network itself is trained.
    """

    reward: tuple[RewardJob, ...] = ()


class WeightsJob(BaseModel):
    """Fine-tuning at the lambda that was found, and at `also` times it for comparison."""

    model_config = FROZEN

    options: Any
    also: tuple[float, ...] = (0.1, 10.0)

    def document(self) -> dict[str, Any]:
        return {**catalog.document_of("lower", self.options), "also": list(self.also)}


class KeepJob(Kind):
    """What must stay at or above a level: `at_least`, or the start's own level plus `at_least`."""

    name: str
    at_least: float
    relative_to_start: bool


class BudgetJob(BaseModel):
    """`samples` a step; `steps`, `denoiser_calls` or `minutes`, whichever is reached first, ends the tuning.

    With a `pool` the samples of all steps come from that many, in turn. With `lower:` a step is a round.
    """

    model_config = catalog.STRICT

    steps: Annotated[int, Ge(1), Lt(MAX_STEPS + 1)] = 20
    samples: Annotated[int, Ge(2), Lt(MAX_SAMPLES + 1)] = 64
    pool: Annotated[int, Ge(2), Lt(MAX_SAMPLES + 1)] | None = None
    denoiser_calls: Annotated[int, Ge(1)] | None = None
    minutes: Annotated[float, Gt(0)] | None = None


class Prompts(BaseModel):
    """Prompts, and the name of the bundled list where they are one."""

    model_config = FROZEN

    texts: tuple[str, ...]
    bundled: str | None = None

    def document(self) -> str | list[str]:
        return self.bundled or list(self.texts)


class EvaluateJob(BaseModel):
    """The held-out comparison; without prompts of its own it takes the tuning prompts with fresh seeds.

    `judges` are rewards that tuning never sees; each gives an opinion of its own on the same images.
    """

    model_config = FROZEN | ConfigDict(strict=True)

    prompts: Prompts | None = None
    samples: Annotated[int, Ge(2), Lt(MAX_SAMPLES + 1)] = 128
    judges: tuple[JudgeJob, ...] = ()

    def document(self) -> dict[str, Any]:
        judges = {"judges": [judge.document("rewards") for judge in self.judges]} if self.judges else {}
        return {"prompts": self.prompts.document() if self.prompts else None, "samples": self.samples, **judges}


@dataclass(frozen=True)
class Chosen:
    """An estimator, and why it is this one."""

    name: str
    options: Any
    reason: str


class Job(BaseModel):
    """A job without mistakes."""

    model_config = FROZEN

    model: ModelJob
    prompt_list: Prompts
    tune: dict[str, Any]
    reward: tuple[RewardJob, ...]
    data: Data | None = None
    lower: LowerJob | None = None
    finetune: WeightsJob | None = None
    keep: tuple[KeepJob, ...] = ()
    estimator: Kind
    optimizer: Kind
    budget: BudgetJob
    evaluate: EvaluateJob
    seed: int = 0
    output: str = "runs/tune"

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.prompt_list.texts

    @property
    def held_out(self) -> tuple[str, ...]:
        """The prompts of the evaluation: those of its list that nothing is tuned on, or all where there are none."""
        tuned_on = set(self.prompts)
        return tuple(text for text in self.listed if text not in tuned_on) or self.listed

    @property
    def listed(self) -> tuple[str, ...]:
        """The evaluation's list as it is written."""
        return (self.evaluate.prompts or self.prompt_list).texts

    @property
    def left_out(self) -> tuple[str, ...]:
        """Prompts of that list that are tuned on as well, where they are left out of the evaluation."""
        judged_on = set(self.held_out)
        return tuple(dict.fromkeys(text for text in self.listed if text not in judged_on))

    @property
    def held_out_is_fresh_prompts(self) -> bool:
        return not set(self.held_out) & set(self.prompts)

    @property
    def steps(self) -> int:
        """Of the sampler."""
        return int(self.model.sampler.options.steps)

    @property
    def tilts(self) -> bool:
        """Whether the lower level is a law at a strength lambda, which is searched for."""
        return self.lower is not None and hasattr(self.lower.options, "slope")

    @property
    def trains(self) -> bool:
        """Whether the lower level trains the network that is sampled."""
        return self.lower is not None and hasattr(self.lower.options, "trains")

    @property
    def parameters(self) -> int:
        return sum(tunable.size(self.steps) for tunable in self.tune.values())

    def document(self) -> dict[str, Any]:
        """The job in plain YAML values, with every default; `read_job` gives an equal job back."""
        model, unused = self.model, self._unused()
        document = {
            "version": 1,
            "model": {
                **model.document("models"),
                "sampler": model.sampler.document("samplers"),
                "guidance": model.guidance.document("guidance"),
                "batch": model.batch,
            },
            "prompts": self.prompt_list.document(),
            "tune": {name: catalog.document_of("tunables", tunable) for name, tunable in self.tune.items()},
            "reward": _weighted(self.reward),
            "data": catalog.plain(self.data),
            "lower": self._lower(),
            "finetune": self.finetune.document() if self.finetune else "none",
            "keep": [{**k.document("rewards"), "at_least": _spoken_level(k)} for k in self.keep],
            "estimator": self.estimator.document("estimators"),
            "optimizer": self.optimizer.document("optimizers"),
            "budget": {key: value for key, value in self.budget.model_dump().items() if f"budget.{key}" not in unused},
            "evaluate": self.evaluate.document(),
            "seed": self.seed,
            "output": self.output,
        }
        return {key: value for key, value in document.items() if key not in unused}

    def _lower(self) -> dict[str, Any] | None:
        if self.lower is None:
            return None
        reward = {"reward": _weighted(self.lower.reward)} if self.lower.reward else {}
        return {**self.lower.document("lower"), **reward}

    def _unused(self) -> set[str]:
        """Keys that say nothing in this job."""
        found = set() if self.data else {"data"}
        if self.prompts == NO_PROMPT:
            found |= {"prompts"}
        if self.lower is None or not self.tilts:
            return {*found, "finetune", *([] if self.lower else ["lower"])}
        return {*found, "budget.samples", "budget.pool", "keep", *(["optimizer"] if self.lower.options.free else [])}

    def digest(self) -> str:
        """The sha256 of the canonical JSON of the document without its output."""
        document = {key: value for key, value in self.document().items() if key != "output"}
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def facts(self, half_precision: bool | None = None) -> Facts:
        """What the estimator may know; the precision is guessed where the model has not been opened."""
        rewards = [*self.reward, *self.keep]
        return Facts(
            parameters=self.parameters,
            slope=self.lower.options.slope if self.lower and self.tilts else None,
            coupled=self.trains and self.lower is not None and self.lower.options.coupled,
            differentiable_reward=all(getattr(r.options, "differentiable", True) for r in rewards),
            differentiable_model=getattr(self.model.options, "differentiable", True),
            half_precision=likely_half(self.model.options) if half_precision is None else half_precision,
        )

    def chosen(self, half_precision: bool | None = None) -> Chosen:
        """The estimator itself where the job names one, else what `auto` chooses."""
        choose = getattr(self.estimator.options, "choose", None)
        if choose is None:
            return Chosen(self.estimator.kind, self.estimator.options, "the job says so")
        name, options, reason = choose(self.facts(half_precision))
        return Chosen(name, catalog.options_of("estimators", name)(**options), reason)


def _weighted(rewards: Sequence[RewardJob]) -> list[dict[str, Any]]:
    return [{**r.document("rewards"), "weight": r.weight} for r in rewards]


def _spoken_level(keep: KeepJob) -> float | str:
    if not keep.relative_to_start:
        return keep.at_least
    if not keep.at_least:
        return "start"
    return f"start {'-' if keep.at_least < 0 else '+'} {abs(keep.at_least)!r}"


def likely_gpu() -> bool:
    """Whether a GPU is likely to be there, told without torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    return not hidden and (Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists())


def likely_device(options: Any) -> str:
    """The device of a model's options, guessed where they say auto."""
    device = str(getattr(options, "device", "cpu"))
    return ("cuda" if likely_gpu() else "cpu") if device == "auto" else device


def likely_half(options: Any) -> bool:
    """Whether the network will run in half precision."""
    dtype = getattr(options, "dtype", "fp32")
    return dtype in ("bf16", "fp16") or (dtype == "auto" and likely_device(options).startswith("cuda"))


# -- reading ---------------------------------------------------------------------------------------------


def read_job(source: Path | str | Mapping[str, Any], overrides: Sequence[str] = (), code: Allowed | None = None) -> Job:
    """The job in a file or a dict, with `a.b=c` overrides on top; or JobMistakes, with all of them.

    `code` is what it may run of the user's own: without it, nothing. Raises `ArtifactRefused` where weights are
    damaged, as far as their headers tell.
    """
    from genbo.cli.job.overrides import override
    from genbo.cli.job.reading import Reading

    if isinstance(source, Mapping):
        root, base = node_of_value(dict(source)), Path.cwd()
    else:
        path = Path(source)
        root, base = node_of_text(read_text(path), str(path)), path.absolute().parent
    mistakes: list[Mistake] = []
    for text in overrides:
        try:
            override(root, text)
        except JobMistakes as found:
            mistakes += found.mistakes
    job = Reading(base, mistakes, code or {}).job(root)
    if mistakes or job is None:
        raise JobMistakes(mistakes)
    if damages := _damages(job):
        raise ArtifactRefused("; ".join(damages))
    return job


def _damages(job: Job) -> list[str]:
    """What of the files of models and rewards is damaged, by their headers."""
    model: Any = job.model.options
    found: list[str] = model.damages() if hasattr(model, "damages") else []
    for file in dict.fromkeys(file for reward in (*job.reward, *job.keep) for file in _weights_of(reward.options)):
        try:
            names_in(file)
        except ValueError as error:
            found.append(f"{error}; fetch or export it again")
    return found


def _weights_of(reward: Any) -> list[Path]:
    """The safetensors that a reward would open, of those on this machine."""
    own, folder = getattr(reward, "file", None), getattr(reward, "folder", None)
    asked = [own, *(folder / name for name in REWARD_WEIGHTS)] if isinstance(folder, Path) else [own]
    return [file for file in asked if isinstance(file, Path) and file.suffix == ".safetensors" and file.is_file()]


def read_text(path: Path) -> str:
    """The text of a job file; at most MAX_BYTES are read."""

    def refuse(message: str, line: int | None = None, column: int | None = None) -> JobMistakes:
        return JobMistakes([Mistake(str(path), line, column, "", message)])

    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise refuse("there is no such file; `genbo init > job.yaml` writes one") from None
    except IsADirectoryError:
        raise refuse("this is a folder; give the job file in it") from None
    except (OSError, ValueError) as error:
        raise refuse(f"cannot be read ({getattr(error, 'strerror', None) or error}); correct the path") from None
    if len(data) > MAX_BYTES:
        raise refuse("larger than 1 MB; put long lists of prompts into a text file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise refuse("this byte is not UTF-8; save the file as UTF-8", line, column) from None
