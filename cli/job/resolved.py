"""What a job says, with every default filled in and no mistakes in it.

A job's `document` can be read back to an equal job.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, SkipValidation

from genbo.bilevel.lower.denoising import Denoising
from genbo.bilevel.objective import MEAN, Objective
from genbo.bilevel.protocols import Chooser, Estimator, Facts, Optimizer, Tunable
from genbo.bilevel.trials import usual_trials
from genbo.cli.job import catalog
from genbo.cli.job.choices import ROOMS, Choice, TuneJob, below, chosen_kind
from genbo.cli.job.choices import Chosen as Values
from genbo.cli.job.grammar import SECTIONS
from genbo.cli.job.hardware import likely_half
from genbo.cli.job.kind import FROZEN, Kind
from genbo.cli.job.section import Level
from genbo.cli.job.sections.budget import BudgetJob
from genbo.cli.job.sections.evaluate import EvaluateJob
from genbo.cli.job.sections.finetune import WeightsJob
from genbo.cli.job.sections.keep import KeepJob
from genbo.cli.job.sections.lower import LowerJob
from genbo.cli.job.sections.model import ModelJob
from genbo.cli.job.sections.prompts import Prompts
from genbo.cli.job.sections.reward import RewardJob
from genbo.cli.job.sections.search import SearchJob
from genbo.diffusion.data import Data
from genbo.diffusion.kinds import declared
from genbo.rewards._traits import RewardOptions, RewardTraits


@dataclass(frozen=True)
class Chosen:
    """An estimator, and why it is this one."""

    name: str
    options: Estimator[Any, Any, Any]
    reason: str


class Job(BaseModel):
    """A job without mistakes."""

    model_config = FROZEN

    version: Literal[1] = 1
    model: ModelJob
    prompt_list: Prompts
    tuning: SkipValidation[TuneJob]
    reward: tuple[RewardJob, ...]
    objective: Objective = MEAN
    data: Data | None = None
    lower: LowerJob | None = None
    finetune: WeightsJob | None = None
    keep: tuple[KeepJob, ...] = ()
    search: SearchJob | None = None
    estimator: Kind[Estimator[Any, Any, Any]]
    optimizer: Kind[Optimizer]
    budget: BudgetJob
    evaluate: EvaluateJob
    seed: int = 0
    output: str = "runs/tune"

    @property
    def tune(self) -> dict[str, Tunable]:
        """The numbers that are tuned, by their keys."""
        return self.tuning.tunables

    @property
    def choices(self) -> dict[str, Choice]:
        """What is chosen beside them, by its key."""
        return self.tuning.choices

    def variant(self, chosen: Values) -> Job:
        """The job with these values of its choices in place of its own."""
        parts = {
            part: chosen_kind(getattr(self.model, part), room, below(chosen, part)) for part, room in ROOMS.items()
        }
        lower, own = self.lower, below(chosen, "lower")
        if lower is not None and own:
            lower = lower.model_copy(update={"options": chosen_kind(lower, "lower", own).options})
        return self.model_copy(update={"model": self.model.model_copy(update=parts), "lower": lower})

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
    def scored(self) -> tuple[Kind[RewardOptions], ...]:
        """Every reward that tuning looks at, but those of a lower level."""
        return (*self.reward, *self.keep, *self.steering)

    @property
    def steering(self) -> tuple[Kind[RewardOptions], ...]:
        """The rewards that steer the samples."""
        return self.model.steer.reward if self.model.steer else ()

    @property
    def steps(self) -> int:
        """Of the sampler."""
        return int(self.model.sampler.options.steps)

    @property
    def tilts(self) -> bool:
        """Whether the lower level is a law at a strength lambda, which is searched for."""
        return self.lower is not None and self.lower.tilts

    @property
    def trains(self) -> bool:
        """Whether the lower level trains the network that is sampled."""
        return self.lower is not None and self.lower.trains

    @property
    def training(self) -> Denoising | None:
        """The options of a lower level that trains the network."""
        return self.lower.training if self.lower is not None else None

    @property
    def level(self) -> Level:
        """The lower level, as far as other keys depend on it."""
        if self.lower is None or not self.lower.tilts:
            return Level(exists=self.lower is not None)
        return Level(exists=True, tilts=True, free=self.lower.options.traits.free)

    @property
    def parameters(self) -> int:
        return sum(tunable.size(self.steps) for tunable in self.tune.values())

    def document(self) -> dict[str, Any]:
        """The job in plain YAML values, with every default; `read_job` gives an equal job back."""
        written = {s.key: s.written(getattr(self, s.field), self.level) for s in SECTIONS}
        searches = self.search is not None and not self.tilts
        unused = ("optimizer", "estimator") if searches else ()  # nothing follows a gradient
        return {key: value for key, value in written.items() if value is not None and key not in unused}

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
            constrained=bool(self.keep) and not self.tilts,
            slope=self.lower.options.traits.estimator if self.lower and self.tilts else None,
            coupled=self.training is not None and self.training.coupled,
            differentiable_reward=all(declared(RewardTraits, r.options).differentiable for r in rewards),
            differentiable_model=self.model.traits.differentiable,
            steered=self.model.steer is not None,
            half_precision=likely_half(self.model.options) if half_precision is None else half_precision,
            schedule=self._is_of_schedule,
            candidates=self.work_of_samples // usual_trials(self.parameters),
        )

    @property
    def auto_search(self) -> tuple[str, str] | None:
        """The kind of the searcher that auto takes for such a job, and the reason; None where it follows a gradient."""
        return self.estimator.options.search(self.facts()) if isinstance(self.estimator.options, Chooser) else None

    @property
    def _is_of_schedule(self) -> bool:
        """Whether the numbers of a noise schedule, each within bounds, are all that is tuned."""
        bounds = [pair for tunable in self.tune.values() for pair in tunable.bounds_of(self.steps)]
        return self.trains and set(self.tune) == {"noise_schedule"} and None not in bounds

    @property
    def work_of_samples(self) -> int:
        """How many samplings the budget buys: a search takes one of each sample, a coordinate of a gradient two."""
        each = 1 if self.search is not None else 2 * self.parameters
        return self.budget.steps * self.budget.samples * each

    def chosen(self, half_precision: bool | None = None) -> Chosen:
        """The estimator itself where the job names one, else what `auto` chooses."""
        if self.search is not None and not self.tilts:
            found = self.auto_search
            reason = found[1] if found and found[0] == self.search.kind else "a search needs no gradient"
            return Chosen(self.search.kind, self.search.value, reason)
        if not isinstance(self.estimator.options, Chooser):
            return Chosen(self.estimator.kind, self.estimator.options, "the job says so")
        name, options, reason = self.estimator.options.choose(self.facts(half_precision))
        return Chosen(name, catalog.options_of("estimators", name)(**options), reason)
