"""The problem of each combination of choices: the same network, rewards and meter, with what was chosen in its place.

A prediction that is chosen has a network of its own, which is trained like the job's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from genbo.cli.errors import UserMistake
from genbo.cli.job import catalog
from genbo.cli.job.choices import PREDICTION, Chosen, Value
from genbo.cli.job.job import Job

if TYPE_CHECKING:
    from genbo.bilevel.problem import Problem
    from genbo.bilevel.protocols import Tunable
    from genbo.bilevel.training.schedule_response import ScheduleResponse
    from genbo.bilevel.variants import Variants
    from genbo.diffusion.process import Process


def variants_of(job: Job, start: Problem, learn: Callable[[Job], ScheduleResponse] | None) -> Variants:
    """Every combination of the job's choices; `learn` gives the untrained network of a variant, where there is one."""
    from genbo.bilevel.variants import Variants

    made: dict[tuple[str, ...], Problem] = {}
    learning: dict[Value, ScheduleResponse] = {}

    def make(words: Mapping[str, str]) -> Problem:
        place = tuple(words.values())
        if place not in made:
            chosen = {name: choice.value(words[name]) for name, choice in job.choices.items()}
            made[place] = _variant(job, start, chosen, learn, learning)
        return made[place]

    words = {name: choice.words for name, choice in job.choices.items()}
    return Variants(start, words, words_of(job.tuning.starts()), make)


def words_of(chosen: Chosen) -> dict[str, str]:
    """Values as a searcher knows them."""
    return {name: catalog.spoken(value) for name, value in chosen.items()}


def _variant(
    job: Job,
    start: Problem,
    chosen: Chosen,
    learn: Callable[[Job], ScheduleResponse] | None,
    learning: dict[Value, ScheduleResponse],
) -> Problem:
    from genbo.diffusion.process import process_of

    variant, own = job.variant(chosen), start.process
    network, model = start.learning, own.model
    prediction = chosen.get(PREDICTION)
    if prediction is not None and learn is not None and prediction != job.tuning.starts()[PREDICTION]:
        if prediction not in learning:
            learning[prediction] = learn(variant)
            learning[prediction].trainer.meter = own.meter
        network, model = learning[prediction], learning[prediction].model()
    process = process_of(model, variant.model.sampler.options, variant.model.guidance.options, batch=own.batch)
    process = replace(process, meter=own.meter, room=own.room)
    tunables = tuple(in_place(process, tunable) for tunable in job.tune.values())
    return replace(start, process=process, tunables=tunables, learning=network, student=own)


def in_place(process: Process, tunable: Tunable) -> Tunable:
    """The tunable itself, where its options must see the process first."""
    try:
        return tunable.of(process)
    except ValueError as problem:
        raise UserMistake(f"tune.{tunable.name}: {problem}") from problem
