"""What a search for lambda will cost: its banks or the laws that it asks for, the held-out ones, tuned weights.

    bank        samples of the pretrained model: the sampler's steps, once
    pilot       samples that choose where noise is shifted to; by gradients in that noise each step goes there, is
                computed again, and back
    guided law  samples at one lambda: each step goes there and back, and its image is scored
    tuned law   a training at one lambda, and samples of what it came to beside the pretrained model

How many banks or lambdas there are is known only at the end, so there is a least and a most of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from genbo.bilevel.lower._measured_law import WORLD_STEPS
from genbo.bilevel.lower.finetune import LEVEL_ROWS, WORLD_LEVELS, WORLD_ROWS, Finetune
from genbo.bilevel.lower.guided import Guided
from genbo.bilevel.problem import calls
from genbo.bilevel.protocols import GradientCost, LowerSolver
from genbo.bilevel.regularization.rounds import banks_at_most, looks, pilot_parts
from genbo.cli.job.job import Job
from genbo.cli.job.sections.evaluate import PAIRS
from genbo.cli.plan.cost import Cost
from genbo.diffusion.kinds import declared
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.steer import looks as looks_at
from genbo.diffusion.steering.tilt import Tilt
from genbo.rewards._traits import RewardTraits

PATHS = 64  # held-out samples of each set of weights whose paths are followed, at most
LOOKS = 27  # at a loss in one step of L-BFGS, at most: the first, and a line search of 26


class Searching:
    """Counts the least, or with `most` the most, that a search will draw."""

    def __init__(self, job: Job, guided: list[bool], batch: int, *, most: bool) -> None:
        assert job.lower is not None
        self.job, self.guided, self.batch, self.most = job, guided, batch, most
        self.lower: LowerSolver[Any, Any] = job.lower.options
        self.gradient: GradientCost = job.chosen().options.cost(job.parameters)
        self.is_world = not job.model.traits.has_network

    # -- the search ------------------------------------------------------------------------------------------------

    @property
    def samples(self) -> int:
        """A prompt; none where everything is known on paper."""
        return self.lower.drawing.samples

    @property
    def bridge(self) -> bool:
        """Whether noise may be shifted."""
        return self.lower.drawing.bank == "shifted"

    @property
    def learns(self) -> bool:
        """Whether every lambda is a training."""
        return isinstance(self.lower, Finetune)

    @property
    def by_gradients(self) -> bool:
        """Whether shifts are told by gradients in the noise."""
        assert self.job.lower is not None
        rewards = (declared(RewardTraits, reward.options) for reward in self.job.lower.reward)
        return self.job.model.traits.differentiable and all(reward.differentiable for reward in rewards)

    @property
    def differentiated(self) -> bool:
        """Whether a gradient goes back through the network at all."""
        climbs = self.learns or not self.lower.traits.free or self.job.finetune is not None
        shifts = self.bridge and self.rounds > 1 and self.job.search is None
        return climbs or (shifts and self.by_gradients)

    @property
    def rounds(self) -> int:
        """Of the search, at most."""
        return looks_of(self.job)[1]

    def tuning_steps(self) -> int:
        return self.rounds

    def training(self) -> Cost:
        return Cost()

    def tuning(self) -> Cost:
        prompts, (first, rounds) = len(self.job.prompts), looks_of(self.job)
        if not self.samples:
            return Cost()
        if self.job.search is not None:
            return self.bank(prompts, self.samples) * (1 if self.job.search.common else rounds)
        if self.lower.traits.free:
            spent = self.bank(prompts, first)
            for more in banks_at_most(first, rounds) if self.most else ():
                spent += self.fresh(prompts, more)
            return spent
        spent = self.laws(prompts, self.gradient.laws) * (rounds if self.most else 1)
        if self.lower.traits.estimator == "difference":  # the tilt beside it, from samples of the pretrained model
            spent += self.bank(prompts, self.samples)
        return spent + (self.bank(prompts, self.samples) if self.lower.drawing.bank == "plain" else Cost())

    def evaluation(self) -> dict[str, Cost]:
        if not self.samples:
            return {}
        prompts, samples = held_out_bank(self.job)
        if self.lower.traits.free:
            judged = opinions(self.job, len(prompts) * samples, of_sets=False)
            held_out = self.bank(len(prompts), samples) + judged
            if self.most and self.bridge and self.rounds > 1 and self.job.search is None:
                held_out += (
                    self.fresh(len(prompts), samples) + judged
                ) * 2  # for the tuned lambda, and for the start's
        elif self.learns:
            held_out = self.laws(len(prompts), ["y", "y"])
        else:
            held_out = self.laws(len(prompts), ["y", "y"] if self.most else ["y"])  # the best may be the start itself
            if isinstance(self.lower, Guided):  # samples of the pretrained model, for the law beside it
                held_out += self.bank(len(prompts), self.samples)
        found = {"held_out": held_out}
        return found | (self._weights() if self.job.finetune else {})

    def inexact(self) -> str | None:
        """Why there are a least and a most, if there are."""
        rounds = self.rounds
        reasons = []
        if self.job.search is not None:
            rounds = 1  # as many banks as it says
        if self.samples and rounds > 1 and self.lower.traits.free:
            near = ", nearer to it and with pilots, and up to two such of held-out samples" if self.bridge else ""
            reasons.append(f"the search stops when λ* is as precise as asked: up to {rounds - 1} more banks{near}")
        elif self.samples and not self.lower.traits.free:
            if rounds > 1:
                reasons.append(f"the search stops when λ* is as precise as asked: from 1 to {rounds} lambdas")
            elif not self.learns:
                reasons.append("the best lambda may be the start itself, whose law is drawn once")
        trained = [
            *([self.lower] if isinstance(self.lower, Finetune) else []),
            *([self.job.finetune.options] if self.job.finetune else []),
        ]
        if trained and self.is_world:
            reasons.append(
                "the numbers of an exact world are trained by L-BFGS, which ends when nothing is to be gained"
            )
        if any(self._is_uneven(options) for options in trained):
            reasons.append("training draws its steps at random, and some of them are not guided")
        return "; ".join(reasons) or None

    def rows(self) -> int:
        return self.batch

    # -- what is drawn ---------------------------------------------------------------------------------------------

    def drawn(self, samples: int, guided: list[bool] | None = None, *, scored: bool = True) -> Cost:
        """Of drawing so many samples, in calls of the network as full as can be."""
        each = self.guided if guided is None else guided
        networks = calls(samples, 1, self.batch, len(each))
        return Cost(networks, samples * sum(1 + g for g in each), samples if scored else 0)

    def bank(self, prompts: int, samples: int) -> Cost:
        return self.drawn(prompts * samples)

    def fresh(self, prompts: int, samples: int) -> Cost:
        """A later bank; where noise may be shifted, with the pilot that says where to."""
        drawn = self.bank(prompts, samples)
        if not self.bridge:
            return drawn
        for part in pilot_parts(samples):
            once = self.bank(prompts, part)
            drawn += _back(once, again=True) if self.by_gradients else once
        return drawn

    def laws(self, prompts: int, kinds: Sequence[str]) -> Cost:
        """Of laws at a lambda: `y`, or `z` with the upper reward let in."""
        each = self.tuned_law(prompts) if self.learns else self.guided_law(prompts)
        return each * len(kinds)

    def guided_law(self, prompts: int) -> Cost:
        """Each step there and back, with the image in sight scored; or passes of the reward's tangent after a first."""
        samples, rule = prompts * self.samples, self.lower.rule if isinstance(self.lower, Guided) else Tilt()
        seen, passes = looks_at(rule, len(self.guided))
        steered = _back(self.drawn(samples, scored=False)) * max(1, passes)
        first = self.drawn(samples, scored=False) if passes else Cost()
        return first + steered + Cost(reward_images=samples * (1 + seen))

    def tuned_law(self, prompts: int) -> Cost:
        """A training, and its law as it is measured."""
        samples = prompts * self.samples
        path = self.drawn(samples, self._noisy) + self.drawn(samples, self._noisy, scored=False)
        assert isinstance(self.lower, Finetune)
        own = self.lower.method == "weighted" and not self._is_noisy
        return self.taught(self.lower) + path + (self.drawn(samples, scored=False) if own else Cost())

    # -- training --------------------------------------------------------------------------------------------------

    def _weights(self) -> dict[str, Cost]:
        """Of fine-tuning at every factor, and of the samples of each and of the pretrained model."""
        assert self.job.finetune is not None
        options: Finetune = self.job.finetune.options
        laws, pairs = 1 + len(self.job.finetune.also), min(self.job.evaluate.samples, PAIRS)
        tuned = self.drawn(pairs)
        paths = self.drawn(min(pairs, PATHS), scored=False) * 2  # the tuned and the pretrained network
        seen = self.drawn(pairs) + (tuned + paths) * laws + opinions(self.job, pairs) * (laws + 1)
        if self.job.data is not None and self.job.data.of_model:
            seen += self.drawn(pairs, scored=False)
        if self.job.held_out_is_fresh_prompts:  # the tuning prompts as well, on fresh seeds
            seen += (tuned + opinions(self.job, pairs, of_sets=False)) * (laws + 1)
        return {"fine_tuning": self.taught(options) * laws, "weights": seen}

    def taught(self, options: Finetune) -> Cost:
        """Of one training, from its first step to its last."""
        looks = options.steps if not self.is_world else options.steps * LOOKS if self.most else 1
        return self._look(options) * looks + self._level_weights(options)

    def _level_weights(self, options: Finetune) -> Cost:
        """Of the estimate of how much each noise level counts: as many rows of each."""
        if options.method != "weighted" or options.levels == "even" or self.is_world:
            return Cost()
        rows = LEVEL_ROWS * len(self.guided)
        return Cost(calls(rows, 1, self.batch, 1), rows + LEVEL_ROWS * sum(self.guided))

    def _look(self, options: Finetune) -> Cost:
        """Of a loss and its gradient."""
        rows = self._rows(options)
        if options.method == "adjoint":
            return self._match(rows, options)
        if options.method == "gradient":
            path = self.drawn(rows, self._noisy)
            later = rows * sum(1 + guided for guided in self._noisy[1:])  # the first step begins from noise alone
            passes = (
                4 * path.denoiser_calls,
                4 * path.image_forwards,
            )  # the pretrained network beside it, and both again
            return Cost(*passes, rows, path.image_forwards + later)
        networks, own = calls(rows, 1, self.batch, 1), rows + self._guided_of(rows)
        anchor = Cost(networks, own) if options.anchor else Cost()
        return Cost(networks, own, 0, own) + anchor

    def _match(self, rows: int, options: Finetune) -> Cost:
        """Of a path there, of the pretrained chain there and back beside it, and of its regression there and back."""
        steps = WORLD_LEVELS if self.is_world else options.path_steps
        same = len(set(self.guided)) == 1
        guided = self.guided if steps is None or not same else [self.guided[0]] * steps
        path = self.drawn(rows, guided)
        regression = calls(rows * len(guided), 1, self.batch, 1)
        passes = (2 * path.denoiser_calls + regression, 3 * path.image_forwards)
        return Cost(*passes, rows, 2 * path.image_forwards)

    def _guided_of(self, rows: int) -> int:
        """Of rows whose steps are drawn at even distances from a random start, those that are guided."""
        levels, guided = len(self.guided), sum(self.guided)
        least, most = guided * (rows // levels), guided * -(-rows // levels)
        every = rows if guided == levels else 0
        return every or (min(rows, most) if self.most else least)

    def _is_uneven(self, options: Finetune) -> bool:
        uneven = self._rows(options) % len(self.guided) > 0
        return options.method == "weighted" and len(set(self.guided)) > 1 and uneven

    def _rows(self, options: Finetune) -> int:
        """Of a look at the loss; an exact world is cheap."""
        return max(options.batch, WORLD_ROWS[options.method]) if self.is_world else options.batch

    @property
    def _noisy(self) -> list[bool]:
        """What is guided of a path under DDIM with eta = 1, which has more steps in an exact world."""
        own: Mapping[str, Any] = vars(self.job.model.guidance.options)
        same = all(len(set(value)) == 1 for value in own.values() if isinstance(value, list))
        steps = max(self.job.steps, WORLD_STEPS) if same and self.is_world else self.job.steps
        return self.guided if steps == self.job.steps else [self.guided[0]] * steps

    @property
    def _is_noisy(self) -> bool:
        """Whether the job's own sampler is that DDIM already."""
        sampler = self.job.model.sampler
        return isinstance(sampler.options, Ddim) and sampler.options.eta == 1 and len(self._noisy) == self.job.steps


def _back(once: Cost, *, again: bool = False) -> Cost:
    """The same, gone back through; with checkpoints each step is computed again on the way."""
    times = 2 if again else 1
    return Cost(times * once.denoiser_calls, times * once.image_forwards, once.reward_images, once.image_forwards)


def looks_of(job: Job) -> tuple[int, int]:
    """Samples a prompt of the search's first bank, and its rounds at most."""
    assert job.lower is not None
    samples, rounds = job.lower.options.drawing.samples, job.budget.steps
    return looks(samples, rounds, len(job.prompts)) if job.budget.precision else (samples, rounds)


def held_out_bank(job: Job) -> tuple[tuple[str, ...], int]:
    """The prompts of the held-out bank, and samples of each: as many as the search has, or it could not say as much."""
    assert job.lower is not None
    samples = min(job.evaluate.samples, job.lower.options.drawing.samples or job.evaluate.samples)
    number = min(len(job.held_out), job.evaluate.samples // samples)
    return job.held_out[:number], job.evaluate.samples // number


def opinions(job: Job, samples: int, *, of_sets: bool = True) -> Cost:
    """Of what the judges look at: every image once more for each of them; samples that are weighted have no set."""
    return Cost(reward_images=samples * sum(of_sets or not judge.of_sets for judge in job.evaluate.judges))
