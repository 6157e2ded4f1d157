"""What a job will cost, before anything is loaded: network calls and their rows, images scored, memory, time.

    training    = the network's own steps before the first of tuning, where the job trains one
    tuning      = the first step + (steps - 1) x a later step, as the estimator says that it draws
    evaluation  = the held-out samples at the start, and again tuned
    a search for lambda = its first bank; the held-out bank
    rows        = samples x members x sum over the steps of (2 where guided, 1 where the weight is 1)

The counts are exact: a run's own meter shows the same, unless it ends early or tunes where guidance is on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from genbo.bilevel.lower.finetune import Finetune
from genbo.bilevel.problem import calls, samples_per_call
from genbo.bilevel.tunables.guidance import EDGE
from genbo.cli.figures import duration
from genbo.cli.fits import remarks
from genbo.cli.job import NO_PROMPT, Chosen, Job, WeightsJob, likely_device
from genbo.cli.memory import Memory, memory
from genbo.cli.speed import expected_s, record_speed

__all__ = ["Cost", "Plan", "expected_s", "plan", "record_speed"]

BATCH_ON_CPU, BATCH_ON_GPU = 32, 128
ROUNDING = 1e-9  # as near to 1 as a weight must be for the sampler to leave the unconditional half out
ELSEWHERE = 0.0012345678  # how far a coordinate is moved here, where only "somewhere else" matters

Member = frozenset[int] | None
Guided = list[list[bool]]  # a member an entry, in it a step an entry


@dataclass(frozen=True)
class Cost:
    """The same three counts as the run's meter."""

    denoiser_calls: int = 0
    image_forwards: int = 0
    reward_images: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: int) -> Cost:
        return Cost(*(getattr(self, f.name) * times for f in fields(self)))

    def document(self) -> dict[str, int]:
        return dict(vars(self))


@dataclass(frozen=True)
class Plan:
    """The cost of a job, where it comes from, and what is worth saying about it."""

    training: Cost
    tuning: Cost
    evaluation: Mapping[str, Cost]
    steps: int
    chosen: Chosen
    parameters: int
    batch: int
    device: str
    memory: Memory | None
    expected_s: float | None
    inexact: str | None
    warnings: tuple[str, ...]

    @property
    def total(self) -> Cost:
        return sum(self.evaluation.values(), self.training + self.tuning)

    @property
    def denoiser_calls(self) -> int:
        return self.total.denoiser_calls

    @property
    def image_forwards(self) -> int:
        return self.total.image_forwards

    @property
    def reward_images(self) -> int:
        return self.total.reward_images

    def document(self) -> dict[str, Any]:
        """For programs."""
        return {
            "estimator": self.chosen.name,
            "estimator_reason": self.chosen.reason,
            "parameters": self.parameters,
            "steps": self.steps,
            "batch": self.batch,
            "device": self.device,
            "training": self.training.document(),
            "tuning": self.tuning.document(),
            "evaluation": {name: cost.document() for name, cost in self.evaluation.items()},
            "total": self.total.document(),
            "exact": self.inexact is None,
            "inexact": self.inexact,
            "memory_bytes": self.memory.total if self.memory else None,
            "memory_rule": self.memory.rule if self.memory else None,
            "expected_s": self.expected_s,
            "warnings": list(self.warnings),
        }

    def text(self) -> str:
        """For a person, without colours."""
        from io import StringIO

        from rich.console import Console

        out = StringIO()
        self.show(Console(file=out, width=100, color_system=None))
        return out.getvalue().rstrip()

    def show(self, console: Any) -> None:
        """A table of the counts, then a line each for estimator, memory and time."""
        from rich.table import Table

        table = Table(title="Plan", title_justify="left", box=None, pad_edge=False, header_style="bold")
        for name in ("", "network calls", "image forwards", "images scored"):
            table.add_column(name, justify="right" if name else "left")
        rows = [(f"evaluation: {name.replace('_', ' ')}", cost) for name, cost in self.evaluation.items()]
        first = [("training", self.training)] if self.training != Cost() else []
        for name, cost in [*first, ("tuning", self.tuning), *rows, ("total", self.total)]:
            numbers = [f"{number:,}" for number in vars(cost).values()]
            table.add_row(name, *numbers, style="bold" if name == "total" else None)
        console.print(table)
        for name, text in self._lines():
            console.print(f"{name:<10} {text}", markup=False, highlight=False)

    def _lines(self) -> Iterator[tuple[str, str]]:
        yield "estimator", f"{self.chosen.name}: {self.chosen.reason}"
        without = "not estimated: the network in training decides" if self.training != Cost() else "little"
        yield "memory", f"about {_bytes(self.memory.total)} ({self.memory.rule})" if self.memory else without
        unknown = "unknown until measured: genbo check --measure"
        yield "time", f"about {duration(self.expected_s)}" if self.expected_s is not None else unknown
        if self.inexact:
            yield "counts", self.inexact
        for warning in self.warnings:
            yield "note", warning


def plan(job: Job) -> Plan:
    """The plan of a job; imports no torch and loads nothing."""
    device = likely_device(job.model.options)
    batch = batch_of(job, device)
    chosen = job.chosen()
    counter: _Counter | _Searching = (_Searching if job.tilts else _Counter)(job, chosen.options, batch)
    training, tuning, evaluation = counter.training(), counter.tuning(), counter.evaluation()
    return Plan(
        training=training,
        tuning=tuning,
        evaluation=evaluation,
        steps=counter.tuning_steps(),
        chosen=chosen,
        parameters=job.parameters,
        batch=batch,
        device=device,
        memory=memory(job, counter.rows(), counter.differentiated),
        expected_s=expected_s(job, sum(evaluation.values(), training + tuning).image_forwards),
        inexact=counter.inexact(),
        warnings=tuple(counter.warnings()),
    )


def batch_of(job: Job, device: str) -> int:
    """Images a network call: as the job says, or by the device."""
    if job.model.batch != "auto":
        return int(job.model.batch)
    return BATCH_ON_GPU if device.startswith("cuda") else BATCH_ON_CPU


class _Counter:
    """Counts what the loop and the evaluation will draw."""

    def __init__(self, job: Job, estimator: Any, batch: int) -> None:
        self.job, self.batch = job, batch
        self.steps, self.samples = job.steps, job.budget.samples
        self.estimator, self.lower = estimator, job.lower.options if job.lower else None
        self.rule = job.model.guidance.options
        self.effective_at = getattr(self.rule, "effective_at", None)
        self.draws: list[list[Member]] = estimator.draws(job.parameters)
        self.passes: int = estimator.network_passes()
        self.differentiated = any(member is None for draw in self.draws for member in draw)
        self.common: bool = getattr(estimator, "common", True)  # whether all draws of a step share their samples
        self.lessons = _lessons([*job.reward, *job.keep])
        self.of_levels = any(not hasattr(tunable, "option") for tunable in job.tune.values())
        options = {getattr(tunable, "option", "") for tunable in job.tune.values()}
        self.weight_is_tuned = "weight" in options
        switching = set(vars(self.rule)) - {"weight"} if self.effective_at else set()
        self.switch_is_tuned = bool(options & switching)

    # -- what is guided ------------------------------------------------------------------------------------

    @cached_property
    def numbers(self) -> list[float]:
        """phi as the user wrote it, all tunables joined; 0 for what has no place in the guidance rule."""
        return [n for tunable in self.job.tune.values() for n in _numbers(tunable, self.steps)]

    @cached_property
    def at_start(self) -> list[bool]:
        return self.guided(self.numbers)

    @cached_property
    def moved(self) -> list[bool]:
        """Anywhere else: no coordinate is where it began, and none is at 1 by chance."""
        return self.guided([_away(number) for number in self.numbers])

    def guided(self, numbers: Sequence[float]) -> list[bool]:
        """Which steps compute the unconditional half at these phi."""
        return self._guided(self._options(numbers))

    def _guided(self, options: Mapping[str, list[float]]) -> list[bool]:
        steps = len(next(iter(options.values())))
        effective = self.effective_at or (lambda step, steps, now: now["weight"])
        at = [{name: values[i] for name, values in options.items()} for i in range(steps)]
        return [abs(effective(i, steps, now) - 1) > ROUNDING for i, now in enumerate(at)]

    def _options(self, numbers: Sequence[float]) -> dict[str, list[float]]:
        """Every number of the rule, a value a step, with phi in its place."""
        options, at = self._fixed, 0
        for tunable in self.job.tune.values():
            size = tunable.size(self.steps)
            if hasattr(tunable, "option"):
                options = {**options, tunable.option: tunable.spread(numbers[at : at + size], self.steps)}
            at += size
        return options

    @property
    def _fixed(self) -> dict[str, list[float]]:
        """The same as the job's model has it."""
        fixed = {n: v for n, v in vars(self.rule).items() if isinstance(v, (int, float, list))}
        return {n: v if isinstance(v, list) else [v] * self.steps for n, v in fixed.items()}

    def _member(self, member: Member, first: bool) -> list[bool]:
        """Which steps of one member are guided: what is differentiated always is."""
        if member is None:
            touched = self.weight_is_tuned or self.switch_is_tuned
            return [True] * self.steps if touched else self.at_start
        if not first:
            return self.moved
        inside = [self._inside(i) for i in range(len(self.numbers))]
        return self.guided([_away(n) if i in member else n for i, n in enumerate(inside)])

    def _inside(self, index: int) -> float:
        """A start as the link gives it back: one that stands on a bound begins a little inside."""
        for tunable in self.job.tune.values():
            size = tunable.size(self.steps)
            if index < size and not hasattr(tunable, "option"):
                return 0.0
            if index < size:
                low, high = tunable.bounds
                edge = EDGE * (high - low)
                return float(min(max(tunable.numbers(self.steps)[index], low + edge), high - edge))
            index -= size
        raise IndexError(index)

    # -- what it costs -------------------------------------------------------------------------------------

    def step(self, number: int) -> Cost:
        """One step of tuning; what a step in the middle costs is known from the second."""
        other = 0 if self.common else len(self.draws) - 1  # draws whose samples no other has
        first, later = self._students
        drawn = (later if number else first) + self.taught(self._new(number)) + self.taught(self.samples) * other
        return drawn + self._answered + self._minibatches(getattr(self.lower, "steps_of_update", 0))

    def _new(self, number: int) -> int:
        """Samples of this step that no step before has drawn."""
        pool = self.job.budget.pool
        return self.samples if pool is None else min(self.samples, max(0, pool - number * self.samples))

    def taught(self, samples: int) -> Cost:
        """Of drawing the teachers of so many samples."""
        costs = (Cost(calls(samples, 1, self.batch, steps), samples * rows) for steps, rows in self._teachers)
        return sum(costs, Cost())

    @cached_property
    def _teachers(self) -> list[tuple[int, int]]:
        """The steps of every teacher, and the rows that they take of a sample."""
        found = []
        for steps in self.lessons:
            options = {n: [v[i * self.steps // steps] for i in range(steps)] for n, v in self._fixed.items()}
            found.append((steps, sum(1 + guided for guided in self._guided(options))))
        return found

    @cached_property
    def _students(self) -> tuple[Cost, Cost]:
        """Of what the first step draws at phi, and every later one."""
        return self._drawn(first=True), self._drawn(first=False)

    def _drawn(self, *, first: bool) -> Cost:
        total = Cost()
        for draw in self.draws:
            total += self._cost([self._member(member, first) for member in draw], self.samples, draw == [None])
        if self.differentiated and self.parts:
            total += self._cost([self.at_start if first else self.moved], self.samples) * getattr(
                self.estimator, "direct_parts", 1
            )
        if any(keep.relative_to_start for keep in self.job.keep):
            total += self._cost([self.at_start], self.samples)
        return total

    def tuning(self) -> Cost:
        return sum((self.step(number) for number in range(self.tuning_steps())), Cost())

    def evaluation(self) -> dict[str, Cost]:
        sides = {"start": self.at_start, "tuned": self.moved}
        found = {name: self._cost([guided], self.job.evaluate.samples) for name, guided in sides.items()}
        found["start"] += self.taught(self.job.evaluate.samples)
        if self.lower is None or not self.lower.coupled:
            return found
        each = self._minibatches(self.lower.pretrain + self.lower.steps_of_update * self.job.budget.steps)
        return {"networks_from_scratch": each * len(sides), **found}

    # -- a network in training -----------------------------------------------------------------------------

    def training(self) -> Cost:
        return self._minibatches(self.lower.pretrain) if self.lower else Cost()

    def _minibatches(self, steps: int) -> Cost:
        return Cost(steps, steps * self.lower.batch) if self.lower else Cost()

    @cached_property
    def _answered(self) -> Cost:
        """Of the lower levels that tell how a network answers: their steps, and the looks at the upper objective."""
        solves, tilted = (getattr(self.estimator, name, 0) for name in ("solves", "tilted_solves"))
        lower = self.lower
        if not solves or lower is None:
            return Cost()
        looks: int = tilted * -(-lower.z_steps // lower.z_refresh)
        there = self._cost([self.at_start], self.samples)
        back = Cost(2 * there.denoiser_calls, 2 * there.image_forwards, there.reward_images)
        first = there if self.parts else Cost()
        return self._minibatches(solves * (lower.z_steps + lower.z_batches)) + (back + first) * looks

    @property
    def parts(self) -> bool:
        """Whether a set that is judged as a whole goes through the network in parts, and so twice where it is live."""
        scored = (*self.job.reward, *self.job.keep)
        return self.samples > self.batch and any(hasattr(r.options, "of_sets") for r in scored)

    def _cost(self, members: Guided, samples: int, differentiated: bool = False) -> Cost:
        """Of drawing the samples in all these members at once, and scoring them."""
        networks = calls(samples, len(members), self.batch, 1)
        passes = [self._passes(members[0], i) if differentiated else 1 for i in range(self.steps)]
        rows = sum(passes[i] * (1 + guided[i]) for guided in members for i in range(self.steps))
        return Cost(networks * sum(passes), samples * rows, samples * len(members))

    def _passes(self, guided: list[bool], step: int) -> int:
        """How often a step is computed: before phi has touched anything there is nothing to go back for."""
        return self.passes if self.of_levels or any(guided[: step + 1]) else 1

    def rows(self) -> int:
        """Images in the largest call, without their unconditional halves."""
        drawn = [(len(draw), self.samples) for draw in self.draws] + [(1, self.job.evaluate.samples)]
        return max(m * min(samples, samples_per_call(self.batch, m)) for m, samples in drawn)

    def tuning_steps(self) -> int:
        """Steps until the budget of steps or of network calls is spent."""
        steps, limit = self.job.budget.steps, self.job.budget.denoiser_calls
        if limit is None:
            return steps
        spent = 0
        for number in range(steps):
            spent += self.step(number).denoiser_calls
            if spent >= limit:
                return number + 1
        return steps

    def inexact(self) -> str | None:
        """Why the counts may differ from the run's own, if they may."""
        if self.switch_is_tuned:
            return "rows are estimated at the start: where guidance is switched on is itself tuned"
        if self.job.budget.minutes is not None:
            return f"at most: the run also ends after {self.job.budget.minutes:g} minutes"
        return None

    def warnings(self) -> Iterator[str]:
        yield from _warnings(self.job)
        if self.samples < len(set(self.job.prompts)):
            yield f"each step draws {self.samples} of the {len(set(self.job.prompts))} prompts"
        if self.job.evaluate.samples < len(set(self.job.held_out)):
            held_out = len(set(self.job.held_out))
            yield f"{self.job.evaluate.samples} held-out samples do not reach all {held_out} prompts"


def _numbers(tunable: Any, steps: int) -> list[float]:
    """phi at the start, or zeros for what has no place in the guidance rule: where it starts, the model knows."""
    numbers: list[float] = tunable.numbers(steps) if hasattr(tunable, "option") else [0.0] * tunable.size(steps)
    return numbers


def _lessons(rewards: Sequence[Any]) -> list[int]:
    """The steps of every teacher; those that draw the same draw once."""
    lessons = {lesson for reward in rewards if (lesson := getattr(reward.options, "lesson", None))}
    return [steps for steps, _ in lessons]


class _Searching:
    """Counts what a search for lambda will draw: the network is called for the banks alone, for no lambda."""

    differentiated = False

    def __init__(self, job: Job, estimator: Any, batch: int) -> None:
        assert job.lower is not None
        self.job, self.batch, self.lower = job, batch, job.lower.options
        rule = job.model.guidance.options
        own = {name: value for name, value in vars(rule).items() if isinstance(value, (int, float, list))}
        effective = getattr(rule, "effective_at", None) or (lambda step, steps, now: now["weight"])
        at = [{n: v[i] if isinstance(v, list) else v for n, v in own.items()} for i in range(job.steps)]
        self.guided = [abs(effective(i, job.steps, now) - 1) > ROUNDING for i, now in enumerate(at)]

    @property
    def samples(self) -> int:
        """A prompt, in the first bank; none where everything is known on paper."""
        return int(getattr(self.lower, "samples", 0))

    def tuning_steps(self) -> int:
        return self.job.budget.steps

    def training(self) -> Cost:
        return Cost()

    def tuning(self) -> Cost:
        return self._cost(len(self.job.prompts) * self.samples) if self.lower.free else Cost()

    def evaluation(self) -> dict[str, Cost]:
        if not self.samples or not self.lower.free:
            return {}
        prompts, samples = held_out_bank(self.job)
        found = {"held_out": self._cost(len(prompts) * samples)}
        if self.job.finetune:
            found |= self._weights(self.job.finetune)
        return found

    def _weights(self, weights: WeightsJob) -> dict[str, Cost]:
        """Of fine-tuning at every factor, and of the samples of each and of the pretrained model."""
        options, laws = weights.options, 1 + len(weights.also)
        pairs = min(self.job.evaluate.samples, PAIRS)
        paths = self._cost(min(pairs, PATHS)) * 2  # the tuned and the pretrained network at every step
        drawn = self._cost(pairs) * (laws + 1) + Cost(paths.denoiser_calls, paths.image_forwards) * laws
        return {"fine_tuning": self._training(options) * laws, "weights": drawn}

    def _training(self, options: Finetune) -> Cost:
        rows = options.batch
        if options.method == "gradient":
            each = self._cost(rows)
            passes = 3 * each.denoiser_calls, 3 * each.image_forwards  # there, the pretrained one, and once again back
            return Cost(*passes, rows) * options.steps
        networks = calls(rows, 1, self.batch, 1) * (1 + options.anchor)
        share = sum(1 + guided for guided in self.guided) / len(self.guided)
        return Cost(networks, round(rows * share) * (1 + options.anchor)) * options.steps

    def _cost(self, samples: int) -> Cost:
        rows = sum(1 + guided for guided in self.guided)
        return Cost(calls(samples, 1, self.batch, self.job.steps), samples * rows, samples)

    def rows(self) -> int:
        return self.batch

    def inexact(self) -> str | None:
        if not self.lower.free:
            law = self._cost(len(self.job.prompts) * self.samples).image_forwards
            return f"not counted: every lambda calls the network anew, {law:,} image forwards and their gradients a law"
        if self.job.finetune and self.job.finetune.options.method == "gradient":
            return "estimated: fine-tuning by gradients goes there, by the pretrained model, and back by each step"
        if self.job.budget.steps == 1 or not self.samples:
            return None
        return f"the first bank; up to {self.job.budget.steps - 1} more are drawn where its samples cannot speak"

    def warnings(self) -> Iterator[str]:
        yield from _warnings(self.job)
        prompts, samples = held_out_bank(self.job)
        if len(prompts) < len(self.job.held_out):
            listed = f"{len(prompts)} of the {len(self.job.held_out)} held-out prompts"
            yield f"lambda is judged on {samples} samples each of {listed}; more evaluate.samples are more prompts"


PAIRS, PATHS = 128, 64  # held-out samples of each set of weights, at most, and those whose paths are followed


def held_out_bank(job: Job) -> tuple[tuple[str, ...], int]:
    """The prompts of the held-out bank, and samples of each: as many as the search has, or it could not say as much."""
    assert job.lower is not None
    samples = min(job.evaluate.samples, getattr(job.lower.options, "samples", job.evaluate.samples))
    number = min(len(job.held_out), job.evaluate.samples // samples)
    return job.held_out[:number], job.evaluate.samples // number


def _warnings(job: Job) -> Iterator[str]:
    yield from remarks(job)
    if getattr(job.model.options, "folder", job) is None:
        name = job.model.options.pretrained
        yield f"{name} is not here: the run begins by fetching it (or `hf download {name}`)"
    if job.budget.steps == 1 and not job.tilts:
        yield "budget.steps is 1: the last step is measured and not taken, so nothing moves"
    if job.prompts == NO_PROMPT:
        return
    if job.evaluate.prompts is None:
        yield "evaluate.prompts is not set: the tuning prompts are evaluated with fresh seeds"
    elif shared := set(job.held_out) & set(job.prompts):
        number = "a prompt is" if len(shared) == 1 else f"{len(shared)} prompts are"
        yield f"{number} both tuned on and held out: the verdict is on new seeds there, not on new prompts"


def _away(number: float) -> float:
    return number + ELSEWHERE * (1 + abs(number))


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"
