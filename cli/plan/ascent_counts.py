"""What steps along a gradient will cost: what the loop and the held-out evaluation draw, and a network's training.

training    = the network's own steps before the first of tuning, where the job trains one
tuning      = the first step + (steps - 1) x a later step, as the estimator says that it draws
evaluation  = the held-out samples at the start, and again tuned
rows        = samples x members x sum over the steps of (2 where guided, 1 where the weight is 1)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from genbo.bilevel.problem import calls, samples_per_call
from genbo.bilevel.protocols import GradientCost, of_rule
from genbo.bilevel.tunables.guidance import EDGE, NUDGED
from genbo.cli.job.job import Job
from genbo.cli.plan.cost import Cost
from genbo.cli.plan.lambda_counts import opinions
from genbo.diffusion.kinds import declared
from genbo.diffusion.steer import looks
from genbo.rewards._traits import RewardTraits

ROUNDING = 1e-9  # as near to 1 as a weight must be for the sampler to leave the unconditional half out
ELSEWHERE = 0.0012345678  # how far a coordinate is moved here, where only "somewhere else" matters
OWN_CALLS, OWN_ROWS = 3, 4  # of a black box a step, at most: unconditional, conditional, perturbed ones, for each stage
Member = frozenset[int] | None
Guided = list[list[bool]]  # a member an entry, in it a step an entry


class Stepping:
    """Counts what the loop and the evaluation will draw; the least, or the `most`, where that is not known."""

    def __init__(self, job: Job, estimator: Any, batch: int, *, most: bool) -> None:
        self.job, self.batch, self.most = job, batch, most
        self.is_blackbox = job.model.kind == "blackbox"
        self.steps, self.samples = job.steps, job.budget.samples
        self.estimator, self.lower = estimator, job.training
        self.rule = job.model.guidance.options
        self.gradient: GradientCost = estimator.cost(job.parameters)
        self.draws, self.passes = self.gradient.draws, self.gradient.network_passes
        self.differentiated = any(member is None for draw in self.draws for member in draw)
        self.lessons = _lessons([*job.reward, *job.keep])
        self.of_levels = any(tunable.rule_option is None for tunable in job.tune.values())
        options = {tunable.rule_option for tunable in job.tune.values()}
        self.weight_is_tuned = "weight" in options
        self.switch_is_tuned = bool(options & set(self.rule.traits.switches))

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
        if self.switch_is_tuned:
            return [self.most] * self.steps
        return self.guided([_away(number) for number in self.numbers])

    def guided(self, numbers: Sequence[float]) -> list[bool]:
        """Which steps compute the unconditional half at these phi."""
        return self._guided(self._options(numbers))

    def _guided(self, options: Mapping[str, list[float]]) -> list[bool]:
        steps = len(next(iter(options.values())))
        at = [{name: values[i] for name, values in options.items()} for i in range(steps)]
        return [abs(self.rule.effective_weight(now, i, steps) - 1) > ROUNDING for i, now in enumerate(at)]

    def _options(self, numbers: Sequence[float]) -> dict[str, list[float]]:
        """Every number of the rule, a value a step, with phi in its place."""
        options, at = self._fixed, 0
        for tunable in self.job.tune.values():
            size = tunable.size(self.steps)
            if tunable.rule_option is not None:
                options = {**options, tunable.rule_option: of_rule(tunable).spread(numbers[at : at + size], self.steps)}
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
        if self.switch_is_tuned and member:
            return self.moved
        return self.guided([_away(n) if i in member else n for i, n in enumerate(self._all_inside)])

    @property
    def _all_inside(self) -> list[float]:
        return [self._inside(i) for i in range(len(self.numbers))]

    def _inside(self, index: int) -> float:
        """A start as the link gives it back: one that stands on a bound begins a little inside."""
        for tunable in self.job.tune.values():
            size = tunable.size(self.steps)
            if index < size and tunable.rule_option is None:
                return 0.0
            if index < size:
                low, high = of_rule(tunable).bounds
                return self._begun(tunable.numbers(self.steps)[index], low, high)
            index -= size
        raise IndexError(index)

    def _begun(self, number: float, low: float, high: float) -> float:
        """Where a number begins: a search measures a bound a little inside, steps along a gradient farther inside."""
        edge = EDGE * (high - low)
        inside = float(min(max(number, low + edge), high - edge))
        if self.job.search is not None or inside == number:
            return inside
        return low + NUDGED * (high - low) if number < inside else high - NUDGED * (high - low)

    # -- what it costs -------------------------------------------------------------------------------------

    def step(self, number: int) -> Cost:
        """One step of tuning; what a step in the middle costs is known from the second."""
        other = 0 if self.gradient.shared_samples else len(self.draws) - 1  # draws whose samples no other has
        first, later = self._students
        drawn = (later if number else first) + self.taught(self._new(number)) + self.taught(self.samples) * other
        return drawn + self._answered + self._minibatches(self.lower.steps_of_update if self.lower else 0)

    def _new(self, number: int) -> int:
        """Samples of this step that no step before has drawn."""
        if self.job.search is not None and self.job.search.common:
            return 0 if number else self.samples
        pool = self.job.budget.pool
        return self.samples if pool is None else min(self.samples, max(0, pool - number * self.samples))

    def taught(self, samples: int) -> Cost:
        """Of drawing the teachers of so many samples."""
        return sum((self._teacher(steps, samples) for steps in self.lessons), Cost())

    def _teacher(self, steps: int, samples: int) -> Cost:
        """Of one of so many steps; it is guided as the model is."""
        options = {n: [v[i * self.steps // steps] for i in range(steps)] for n, v in self._fixed.items()}
        rows = sum(1 + guided for guided in self._guided(options))
        drawn = Cost(calls(samples, 1, self.batch, steps), samples * rows)
        return self._steered(drawn, samples, steps)

    @cached_property
    def _students(self) -> tuple[Cost, Cost]:
        """Of what the first step draws at phi, and every later one."""
        return self.students(first=True) + self.levels(), self.students(first=False) + self.levels()

    def levels(self) -> Cost:
        """Of the levels that a step measures at the start."""
        relative = any(keep.relative_to_start for keep in self.job.keep)
        return self._cost([self.at_start], self.samples) if relative else Cost()

    def students(self, *, first: bool) -> Cost:
        """Of what is drawn at phi, in the first step or in a later one."""
        total = Cost()
        for draw in self.draws:
            total += self._cost([self._member(member, first) for member in draw], self.samples, draw == [None])
        if self.differentiated and self.parts:
            total += self._cost([self.at_start if first else self.moved], self.samples) * self.gradient.direct_parts
        return total

    def tuning(self, steps: int | None = None) -> Cost:
        return sum((self.step(number) for number in range(self.tuning_steps() if steps is None else steps)), Cost())

    def evaluation(self) -> dict[str, Cost]:
        stays = self.job.budget.steps <= 1 + self.gradient.idle_steps  # the last step is measured and not taken
        ends_at_start = self.job.search is not None and not self.most
        tuned = self.guided(self._all_inside) if stays else self.at_start if ends_at_start else self.moved
        sides = {"start": self.at_start, "tuned": tuned}
        judged = opinions(self.job, self.job.evaluate.samples)
        if not self.job.budget.steps:  # the start is evaluated, and is what there is of tuned
            del sides["tuned"]
        found = {name: self._cost([guided], self.job.evaluate.samples) + judged for name, guided in sides.items()}
        for steps in _lessons([*self.job.reward, *self.job.keep, *self.job.evaluate.judges]):
            found["start"] += self._teacher(steps, self.job.evaluate.samples)
        if self.lower is None or not self.lower.coupled:
            return found
        each = self._minibatches(self.lower.pretrain + self.lower.steps_of_update * self.job.budget.steps)
        return {"networks_from_scratch": each * len(sides), **found}

    # -- a network in training -----------------------------------------------------------------------------

    def training(self) -> Cost:
        return self._minibatches(self.lower.pretrain) if self.lower else Cost()

    def _minibatches(self, steps: int) -> Cost:
        rows = steps * self.lower.batch if self.lower else 0
        return Cost(steps, rows, 0, rows) if self.lower else Cost()

    @cached_property
    def _answered(self) -> Cost:
        """Of the lower levels that tell how a network answers: their steps, and the looks at the upper objective."""
        solves, tilted = self.gradient.solves, self.gradient.tilted_solves
        lower = self.lower
        if not solves or lower is None:
            return Cost()
        looks: int = tilted * -(-lower.z_steps // lower.z_refresh)
        there = self._cost([self.at_start], self.samples)
        back = Cost(2 * there.denoiser_calls, 2 * there.image_forwards, there.reward_images, there.image_forwards)
        first = there if self.parts else Cost()
        return self._minibatches(solves * (lower.z_steps + lower.z_batches)) + (back + first) * looks

    @property
    def parts(self) -> bool:
        """Whether a set that is judged as a whole goes through the network in parts, and so twice where it is live."""
        scored = (*self.job.reward, *self.job.keep)
        return self.samples > self.batch and any(declared(RewardTraits, r.options).of_sets for r in scored)

    def _cost(self, members: Guided, samples: int, differentiated: bool = False) -> Cost:
        """Of drawing the samples in all these members at once, and scoring them."""
        if self.is_blackbox:
            return self._by_its_own_call(members, samples)
        networks = calls(samples, len(members), self.batch, 1)
        passes = [self._passes(members[0], i) if differentiated else 1 for i in range(self.steps)]
        rows = sum(passes[i] * (1 + guided[i]) for guided in members for i in range(self.steps))
        goes_back = differentiated and self.gradient.goes_back
        back = sum(self._rows_back(members[0], i) for i in range(self.steps)) if goes_back else 0
        drawn = Cost(networks * sum(passes), samples * rows, samples * len(members), samples * back)
        return self._steered(drawn, samples * len(members), self.steps)

    def _steered(self, drawn: Cost, images: int, steps: int) -> Cost:
        """The same where each step goes back from the reward of the image in sight, or passes of its tangent do."""
        steer = self.job.model.steer
        if steer is None:
            return drawn
        seen, passes = looks(steer.rule.options, steps)
        times, back = 1 + passes, drawn.image_forwards * max(1, passes)
        scored = drawn.reward_images + images * seen
        return Cost(drawn.denoiser_calls * times, drawn.image_forwards * times, scored, back)

    def _by_its_own_call(self, members: Guided, samples: int) -> Cost:
        """Members are calls of their own, and how often each asks the network a step is the pipeline's own matter."""
        networks = len(members) * calls(samples, len(members), self.batch, self.steps)
        rows = samples * len(members) * self.steps
        each = (OWN_CALLS, OWN_ROWS) if self.most else (1, 1)
        return Cost(networks * each[0], rows * each[1], samples * len(members))

    def _passes(self, guided: list[bool], step: int) -> int:
        """How often a step is computed: before phi has touched anything there is nothing to go back for."""
        return self.passes if self.of_levels or any(guided[: step + 1]) else 1

    def _rows_back(self, guided: list[bool], step: int) -> int:
        """Rows of a sample that are gone back through: those of a step that is given something phi has touched."""
        return 1 + guided[step] if self.of_levels or any(guided[:step]) else 0

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

    def fewest_steps(self) -> int:
        """Of a run that comes to its end."""
        return min(1, self.job.budget.steps) if self.job.budget.minutes is not None else self.tuning_steps()

    def inexact(self) -> str | None:
        """Why there are a least and a most, if there are."""
        reasons = []
        if self.switch_is_tuned:
            reasons.append("where guidance is switched on is itself tuned, and a step takes one row of a sample or two")
        if self.job.search is not None and self.at_start != self.moved:
            reasons.append("where the start is the best candidate, it is evaluated again, without guidance")
        if self.is_blackbox:
            at_most = f"from 1 to {OWN_CALLS} network calls a step, and from 1 to {OWN_ROWS} rows of a sample"
            reasons.append(f"a black box draws by its own call, {at_most}")
        if self.job.budget.minutes is not None:
            reasons.append(f"the run also ends after {self.job.budget.minutes:g} minutes")
        return "; ".join(reasons) or None


def _numbers(tunable: Any, steps: int) -> list[float]:
    """phi at the start, or zeros for what has no place in the guidance rule: where it starts, the model knows."""
    numbers: list[float] = tunable.numbers(steps) if tunable.rule_option else [0.0] * tunable.size(steps)
    return numbers


def _lessons(rewards: Sequence[Any]) -> list[int]:
    """The steps of every teacher; those that draw the same draw once."""
    lessons = {lesson for reward in rewards if (lesson := declared(RewardTraits, reward.options).lesson)}
    return [steps for steps, _ in lessons]


def _away(number: float) -> float:
    return number + ELSEWHERE * (1 + abs(number))
