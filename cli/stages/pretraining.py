"""Training the network of a job: before the climb, and from scratch under a schedule held fixed.

    runs/x/ network/ {start, tuned, ...}.safetensors        weights, averages and AdamW's state, as far as they came

A kill loses a block of steps. Minibatches are named by the step, so what goes on ends where an undisturbed run would.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from genbo.cli.run.chunk_cache import Kept
from genbo.cli.run.faults import fault
from genbo.cli.run.tensors import read_tensors, words_in, write_tensors
from genbo.cli.stages.context import Work

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.training.network_trainer import NetworkTrainer
    from genbo.bilevel.training.schedule_response import ScheduleResponse
    from genbo.schedules.schedule import Schedule

OFTEN = 200  # steps of training after which the network is kept
Document = dict[str, Any]


def kept_networks(work: Work) -> Kept:
    """Where networks are kept, and what they cost so far."""
    meter = work.assembled.problem.process.meter
    return Kept(work.run.path / "network", {"job": work.run.digest}, meter, lambda *_: work.stop_if_asked())


def before(work: Work, kept: Kept) -> None:
    """The network trained under the schedule that the job starts at."""
    learning = response_of(work)
    pretrain = learning.trainer.options.pretrain
    trained(work, kept, learning.trainer, learning.start, "start", pretrain, "training the network")


def from_scratch(work: Work, kept: Kept, phi: Tensor, name: str) -> NetworkTrainer:
    """A new network, trained under the schedule at phi for as many steps as the job's budget gives its own in all."""
    from genbo.cli.stages.build import trainer_of

    assert work.assembled.data is not None
    learning, options = response_of(work), work.assembled.lower
    learner = trainer_of(work.job, work.assembled.data)
    learner.meter = work.assembled.problem.process.meter
    steps = options.pretrain + options.steps_of_update * work.job.budget.steps
    what = f"training anew under the schedule at {name.removeprefix('scratch-')}"
    trained(work, kept, learner, learning.schedule(phi), name, steps, what)
    return learner


def response_of(work: Work) -> ScheduleResponse:
    from genbo.bilevel.training.schedule_response import ScheduleResponse

    learning = work.assembled.problem.learning
    assert isinstance(learning, ScheduleResponse)
    return learning


def trained(
    work: Work, kept: Kept, learner: NetworkTrainer, schedule: Schedule, name: str, steps: int, what: str
) -> None:
    """`steps` of training, in blocks; found again where an earlier process has left them."""
    place, words = kept.folder / f"{name}.safetensors", {**kept.words, "name": name, "steps": steps}
    kept.folder.mkdir(exist_ok=True)
    found = read_tensors(place, words)
    said: Document = {"cost": {}, "elapsed_s": 0.0}
    if found is not None:
        said = words_in(place)
        kept.add(said)
        learner.load(found)
    meter, seed = kept.meter, work.assembled.seed.child("network")
    while learner.steps < steps:
        spent, began = meter.as_dict(), time.monotonic()
        block = min(OFTEN - learner.steps % OFTEN, steps - learner.steps)
        loss = learner.train(schedule, block, seed.child(learner.steps))
        cost = {key: value - spent[key] for key, value in meter.as_dict().items()}
        now: Document = {"cost": cost, "elapsed_s": time.monotonic() - began}
        kept.count(now)
        total = {key: value + said["cost"].get(key, 0) for key, value in cost.items()}
        said = {"cost": total, "elapsed_s": said["elapsed_s"] + now["elapsed_s"]}
        write_tensors(place, {k: v.cpu().contiguous() for k, v in learner.state().items()}, {**words, **said})
        fault("network.block")
        left = (steps - learner.steps) * said["elapsed_s"] / learner.steps
        work.screen.drawing(f"{what} (loss {loss:.3g})", learner.steps, steps, left)
        work.stop_if_asked()
