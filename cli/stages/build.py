"""A job -> the objects that are tuned with. Everything heavy is imported and loaded here, and only here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from genbo.cli.job.choices import Chosen
from genbo.cli.job.job import Job, Kind
from genbo.diffusion.kinds import declared
from genbo.diffusion.traits import ModelTraits, Origin
from genbo.rewards._traits import Comparing, RewardOptions

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.candidate_value import CandidateValue
    from genbo.bilevel.loop import Budget
    from genbo.bilevel.problem import Problem
    from genbo.bilevel.protocols import Estimator, Optimizer
    from genbo.bilevel.regularization.tilted import LawEstimator
    from genbo.bilevel.scoring import Reward
    from genbo.bilevel.training.network_trainer import NetworkTrainer
    from genbo.bilevel.training.schedule_response import ScheduleResponse
    from genbo.bilevel.trials import Pruner, Searcher
    from genbo.bilevel.tunables.regularization import Regularization
    from genbo.bilevel.variants import Variants
    from genbo.diffusion.data import Images, Splits
    from genbo.diffusion.process import Model
    from genbo.diffusion.seed import Seed
    from genbo.schedules.schedule import Schedule


@dataclass(frozen=True)
class Assembled:
    """A problem and the means to follow it."""

    problem: Problem
    estimator: Estimator[Any, Any, Any]  # of samples, or of the law at lambda: `slope`
    estimator_name: str
    estimator_reason: str
    optimizer: Optimizer
    searcher: Searcher | None  # chooses candidates in place of the optimizer
    pruner: Pruner | None  # and this stops some of them early
    variants: Variants  # the problem of each combination of choices, the first of them `problem`
    budget: Budget
    prompts: tuple[str, ...]
    held_out: tuple[str, ...]
    held_out_is_fresh_prompts: bool
    seed: Seed
    reward_names: tuple[str, ...]
    constraint_names: tuple[str, ...]
    judge: Problem  # the same with its judges, and its distances to data against the share that is for the report alone
    judge_names: tuple[str, ...] = ()
    weight_judges: tuple[tuple[str, Any], ...] = ()  # of all samples together: in a search for lambda, of weights alone
    data: Splits | None = None
    lower: Any = None  # a lower solver's options
    lower_rewards: tuple[tuple[float, Reward], ...] = ()
    lower_names: tuple[str, ...] = ()

    def at(self, chosen: Chosen) -> Problem:
        """The problem with these choices, and the job's own of those that are not named."""
        from genbo.cli.stages.variants import words_of

        return self.variants.at({**self.variants.first, **words_of(chosen)})

    def judge_at(self, chosen: Chosen) -> Problem:
        """The same with its judges."""
        here = self.at(chosen)
        return replace(
            self.judge, process=here.process, tunables=here.tunables, student=here.student, learning=here.learning
        )

    @property
    def strength(self) -> Regularization:
        """The one thing that a search for lambda tunes."""
        (tunable,) = self.problem.tunables
        return cast("Regularization", tunable)

    @property
    def candidate_value(self) -> CandidateValue:
        """What a search measures, where it is one of samples at phi."""
        return cast("CandidateValue", self.estimator)

    @property
    def slope(self) -> LawEstimator:
        """The estimator, where it is one of lambda."""
        return cast("LawEstimator", self.estimator)


class Loaded:
    """The model and the rewards of jobs that differ in neither: what is opened by the first is there for the others."""

    def __init__(self) -> None:
        self.model: Model | None = None
        self.opened: _Opened | None = None

    def model_of(self, job: Job) -> Model:
        """Opened at the first call."""
        if self.model is None:
            self.model = _for_as_long(job).open()
        return self.model

    def rewards_on(self, model: Model) -> _Opened:
        """Of the device of the model; a network in training is another for every job, on the same device."""
        if self.opened is None:
            self.opened = _Opened(model)
        return self.opened


def assemble(job: Job, loaded: Loaded | None = None) -> Assembled:
    """Open the model and the rewards, where they are not loaded yet, and put everything together."""
    from genbo.bilevel.problem import Constraint, Problem
    from genbo.bilevel.protocols import cannot_follow
    from genbo.cli.errors import UserMistake
    from genbo.cli.plan.counts import batch_of
    from genbo.cli.stages.variants import in_place, variants_of
    from genbo.diffusion.process import process_of
    from genbo.diffusion.seed import Seed
    from genbo.diffusion.steer import Climbed

    data = job.data.open() if job.data and not job.data.of_model else None
    learning = _learning(job, data) if data and job.model.learns else None
    loaded = loaded or Loaded()
    model: Model = learning.model() if learning else loaded.model_of(job)
    batch = batch_of(job, model.device.type)
    for chosen_parts in job.tuning.every():
        _suits(job.variant(chosen_parts), model)
    process = process_of(model, job.model.sampler.options, job.model.guidance.options, batch=batch)
    if learning:
        learning.trainer.meter = process.meter
    opened = loaded.rewards_on(model)
    if steer := job.model.steer:
        climbed = [Climbed(r.weight, opened(r), r.options) for r in steer.reward]
        process = process.steered(climbed, steer.strength, steer.rule.options)
    tuned, judged = (_against(opened, split) for split in ((data.validation, data.test) if data else (None, None)))
    below = job.lower.reward if job.lower else ()
    half = is_half(model)
    chosen = job.chosen(half)
    if reason := cannot_follow(chosen.options, job.facts(half)):
        raise UserMistake(f"estimator: {reason}")
    tunables = tuple(in_place(process, t) for t in job.tune.values())

    def problem(of: Callable[[Kind[RewardOptions]], Reward]) -> Problem:
        rewards = tuple((r.weight, of(r)) for r in job.reward)
        constraints = tuple(Constraint(k.name, of(k), k.at_least, k.relative_to_start) for k in job.keep)
        return Problem(process, tunables, rewards, constraints, learning=learning, objective=job.objective)

    steered, judge = problem(tuned), problem(judged)
    together = [j for j in job.evaluate.judges if job.tilts and j.of_sets]
    alone = [j for j in job.evaluate.judges if j not in together]
    drawn = job.data is not None and job.data.of_model  # what they compare with is drawn when it is needed
    return Assembled(
        problem=steered,
        judge=replace(judge, teachers=steered.teachers, judges=tuple(map(judged, alone))),
        judge_names=tuple(j.name for j in alone),
        weight_judges=tuple((j.name, (opened if drawn else judged)(j)) for j in together),
        data=data,
        estimator=chosen.options,
        estimator_name=job.search.kind if job.search else chosen.name,
        estimator_reason=chosen.reason,
        optimizer=job.optimizer.options,
        searcher=job.search.options if job.search else None,
        pruner=job.search.pruner.options if job.search and job.search.pruner else None,
        variants=variants_of(job, steered, (lambda variant: _learning(variant, data)) if data and learning else None),
        budget=_budget(job),
        prompts=job.prompts,
        held_out=job.held_out,
        held_out_is_fresh_prompts=job.held_out_is_fresh_prompts,
        seed=Seed(job.seed),
        reward_names=tuple(r.name for r in job.reward),
        constraint_names=tuple(k.name for k in job.keep),
        lower=job.lower.options if job.lower else None,
        lower_rewards=tuple((r.weight, opened(r)) for r in below),
        lower_names=tuple(r.name for r in below),
    )


def _budget(job: Job) -> Budget:
    """Of the loop; work is counted from its first step, and training comes before that."""
    from genbo.bilevel.loop import Budget
    from genbo.cli.plan.counts import plan

    own, before = job.budget, 0
    if own.work is not None and job.trains:
        training = plan(job).training
        before = training.image_forwards + 2 * training.image_backwards
    work = None if own.work is None else own.work + before
    return Budget(own.steps, own.samples, own.denoiser_calls, own.pool, work)


def trainer_of(job: Job, data: Splits) -> NetworkTrainer:
    """The job's own network before any training, on the device where it will be."""
    from genbo.bilevel.training.network_trainer import NetworkContext

    learning, training = job.model.learning, job.training
    assert learning is not None and training is not None
    network = learning.open(data.train)
    train = data.train.to(network.device)
    labels = train.labels if network.classes else None
    context = NetworkContext(network.module, train.signed(), labels, network.classes)
    return training.begin(context)


def _learning(job: Job, data: Splits) -> ScheduleResponse:
    """The lower level that trains the network under the schedule that is tuned."""
    from genbo.bilevel.training.schedule_response import ScheduleResponse
    from genbo.bilevel.tunables.noise_schedule import NoiseSchedule

    sizes = {name: tunable.size(job.steps) for name, tunable in job.tune.items()}
    ((name, tunable),) = ((name, it) for name, it in job.tune.items() if isinstance(it, NoiseSchedule))
    at = sum(list(sizes.values())[: list(sizes).index(name)])

    def schedule(phi: Tensor) -> Schedule:
        return tunable.schedule(phi[..., at : at + sizes[name]])

    return ScheduleResponse(trainer_of(job, data), schedule, tunable.schedule(tunable.first(job.steps)))


def _against(opened: _Opened, split: Images | None) -> Callable[[Kind[RewardOptions]], Reward]:
    """Opens rewards; one of sets is given the data that it compares with."""

    def of(kind: Kind[RewardOptions]) -> Reward:
        reward: Any = opened(kind)
        if isinstance(reward, Comparing):
            assert split is not None, "a reward that compares with data is refused where a job has none"
            reward = reward.against(split.pixels)
        return cast("Reward", reward)

    return of


def _for_as_long(job: Job) -> Any:
    """The model's options, where how long the job is decides what is worth its while."""
    from genbo.cli.plan.counts import plan

    compiled_for = job.model.traits.compiled_for
    return compiled_for(plan(job).denoiser_calls) if compiled_for else job.model.options


def _suits(job: Job, model: Model) -> None:
    """What `check` says of a folder, of one that came from the hub just now."""
    from genbo.cli.errors import UserMistake

    if job.model.traits.hub_id is None:
        return
    options: Any = job.model.options
    here = declared(ModelTraits, replace(options, pretrained=str(declared(Origin, model).folder)))
    for key, reason in here.misfits(job.model.sampler.options, job.model.guidance.options, frozenset(job.tune)):
        raise UserMistake(f"{key if key == 'tune' else f'model.{key}'}: {reason}")


def is_half(model: Model) -> bool:
    """Whether the network itself runs in half precision."""
    import torch

    return model.dtype in (torch.float16, torch.bfloat16)


class _Opened:
    """Opens rewards on the model's device, the same options once."""

    def __init__(self, model: Model) -> None:
        self.device = model.device
        self.known: list[tuple[Any, Reward]] = []

    def __call__(self, kind: Kind[RewardOptions]) -> Reward:
        for options, known in self.known:
            if options == kind.options:
                return known
        reward: Reward = kind.options.open(self.device)
        self.known.append((kind.options, reward))
        return reward
