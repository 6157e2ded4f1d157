"""Training the network of a job: before the climb, and from scratch under a schedule held fixed.

    runs/x/ network/ {start, tuned, ...}.safetensors        weights, averages and AdamW's state, as far as they came

A kill loses a block of steps. Minibatches are named by the step, so what goes on ends where an undisturbed run would.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from genbo.cli.job.choices import PREDICTION, Value
from genbo.cli.job.job import Job
from genbo.cli.run.chunk_cache import ChunkCache
from genbo.cli.run.faults import fault
from genbo.cli.run.tensors import read_tensors, words_in, write_tensors
from genbo.cli.stages.context import Context

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.problem import Problem
    from genbo.bilevel.training.network_trainer import NetworkTrainer
    from genbo.bilevel.training.schedule_response import ScheduleResponse
    from genbo.schedules.schedule import Schedule

OFTEN = 200  # steps of training after which the network is kept
Document = dict[str, Any]


def kept_networks(context: Context) -> ChunkCache:
    """Where networks are kept, and what they cost so far."""
    meter = context.assembled.problem.process.meter
    return ChunkCache(
        context.run.path / "network", {"job": context.run.digest}, meter, lambda *_: context.stop_if_asked()
    )


def before(context: Context, kept: ChunkCache) -> None:
    """The network trained under the schedule that the job starts at, and one for each prediction to choose from."""
    learning = response_of(context.assembled.problem)
    pretrain = learning.trainer.options.pretrain
    trained(context, kept, learning.trainer, learning.start, "start", pretrain, "training the network")
    for value in others(context.job):
        another = response_of(context.assembled.at({**context.job.tuning.starts(), PREDICTION: value}))
        what = f"training the network that predicts {value}"
        trained(context, kept, another.trainer, another.start, f"prediction-{value}", pretrain, what)


def others(job: Job) -> list[Value]:
    """Predictions to choose from beside the job's own."""
    choice = job.choices.get(PREDICTION)
    return [] if choice is None else [value for value in choice.values if value != choice.start]


def from_scratch(context: Context, kept: ChunkCache, phi: Tensor, name: str) -> NetworkTrainer:
    """A new network, trained under the schedule at phi for as many steps as the job's budget gives its own in all."""
    from genbo.cli.stages.build import trainer_of

    assert context.assembled.data is not None
    learning, options = response_of(context.assembled.problem), context.assembled.lower
    learner = trainer_of(context.job, context.assembled.data)
    learner.meter = context.assembled.problem.process.meter
    steps = options.pretrain + options.steps_of_update * context.job.budget.steps
    what = f"training anew under the schedule at {name.removeprefix('scratch-')}"
    trained(context, kept, learner, learning.schedule(phi), name, steps, what)
    return learner


def response_of(problem: Problem) -> ScheduleResponse:
    from genbo.bilevel.training.schedule_response import ScheduleResponse

    learning = problem.learning
    assert isinstance(learning, ScheduleResponse)
    return learning


def trained(
    context: Context, kept: ChunkCache, learner: NetworkTrainer, schedule: Schedule, name: str, steps: int, what: str
) -> None:
    """`steps` of training, in blocks; found again where an earlier process has left them."""
    place, words = kept.folder / f"{name}.safetensors", {**kept.words, "name": name, "steps": steps}
    kept.folder.mkdir(exist_ok=True)
    found = read_tensors(place, words)
    so_far: Document = {"cost": {}, "elapsed_s": 0.0}
    if found is not None:
        so_far = words_in(place)
        kept.add(so_far)
        learner.load(found)
    meter, seed = kept.meter, context.assembled.seed.child("network")
    while learner.steps < steps:
        spent, began = meter.as_dict(), time.monotonic()
        block = min(OFTEN - learner.steps % OFTEN, steps - learner.steps)
        loss = learner.train(schedule, block, seed.child(learner.steps))
        cost = {key: value - spent[key] for key, value in meter.as_dict().items()}
        now: Document = {"cost": cost, "elapsed_s": time.monotonic() - began}
        kept.count(now)
        total = {key: value + so_far["cost"].get(key, 0) for key, value in cost.items()}
        so_far = {"cost": total, "elapsed_s": so_far["elapsed_s"] + now["elapsed_s"]}
        write_tensors(place, {k: v.cpu().contiguous() for k, v in learner.state().items()}, {**words, **so_far})
        fault("network.block")
        left = (steps - learner.steps) * so_far["elapsed_s"] / learner.steps
        context.screen.drawing(f"{what} (loss {loss:.3g})", learner.steps, steps, left)
        context.stop_if_asked()
