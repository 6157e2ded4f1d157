"""The same noise in more steps: what a sampler of few steps is held against.

A teacher is the process as it stands in the job, with the model's own stops for its steps, so nothing that is tuned
moves it. A sample of it is drawn once, counted by the process' own meter, and kept in memory as the model draws it,
before it is decoded.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from genbo.diffusion.kinds import class_of

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.process import Process, Sampler
    from genbo.diffusion.seed import Batch

KEPT_BYTES = 2**30


@dataclass(frozen=True)
class Lesson:
    """How many steps a teacher takes, and the sampler's kind where it is another than the student's."""

    steps: int
    sampler: str | None = None

    def process(self, student: Process) -> Process:
        """The teacher. A guidance weight a step holds for that step's share of the way."""
        sampler = self.by(student.sampler)
        step = [i * student.steps // self.steps for i in range(self.steps)]
        options, told = (
            {name: value[:, step] for name, value in table.items()} for table in (student.options, student.told)
        )
        steer = student.steer and replace(student.steer, strength=student.steer.strength[:, step])
        grid = student.model.grid(sampler)
        return replace(student, sampler=sampler, options=options, told=told, grid=grid, steer=steer)

    def by(self, own: Sampler) -> Sampler:
        """What the teacher is drawn by, where this is the student's."""
        if self.sampler is None:
            return replace(own, steps=self.steps)  # type: ignore[type-var]
        made: Sampler = class_of("genbo.diffusion.samplers", self.sampler)(steps=self.steps)
        return made


class Teachers:
    """Samples of one student's teachers by lesson, prompt and seed; where memory is full, those used longest ago go."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self.kept_bytes = kept_bytes
        self.student: Process | None = None
        self.known: OrderedDict[tuple[Lesson, str, int], Tensor] = OrderedDict()

    def samples(self, student: Process, lesson: Lesson, batch: Batch) -> Tensor:
        """(N, *shape) on the model's device, without gradients."""
        import torch

        if student is not self.student:
            self.known.clear()
            self.student = student
        names = [(lesson, prompt, seed) for prompt, seed in zip(batch.prompts, batch.seeds, strict=True)]
        self._draw(student, lesson, [name for name in dict.fromkeys(names) if name not in self.known])
        for name in names:
            self.known.move_to_end(name)
        found = torch.stack([self.known[name] for name in names])
        self._forget(len(set(names)), found[0].nbytes)
        return found.to(student.model.device)

    def _draw(self, student: Process, lesson: Lesson, names: list[tuple[Lesson, str, int]]) -> None:
        import torch

        from genbo.diffusion.sample import sample
        from genbo.diffusion.seed import Batch

        missing = Batch(tuple(prompt for _, prompt, _ in names), tuple(seed for *_, seed in names))
        teacher = lesson.process(student) if names else student

        def one(chunk: Batch) -> Tensor:
            with torch.no_grad():
                return sample(teacher, chunk).cpu()

        drawn = (x for part in student.over(missing, one) for x in part)
        for (_, prompt, seed), x in zip(names, drawn, strict=True):
            self.known[lesson, prompt, seed] = x.clone()

    def _forget(self, needed: int, each: int) -> None:
        """Keep what was asked for just now, and of the rest what fits."""
        while len(self.known) > max(needed, self.kept_bytes // max(each, 1)):
            self.known.popitem(last=False)
