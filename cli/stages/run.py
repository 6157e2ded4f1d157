"""A run from its job to its verdict, stage by stage.

    plan -> climb, a checkpoint a step -> answer    -> held-out evaluation of both sides -> tuned/ -> report
         or search for lambda, a bank a round

A run that ends otherwise says how in `status.json` and by its exit code. A gradient that is not finite
three times in a row, or exactly zero three times in a row, ends it with 4: nothing can be concluded, so
nothing is exported.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from genbo.cli.errors import Diverged
from genbo.cli.run.folder import Run, opened
from genbo.cli.run.job_digest import judges_in
from genbo.cli.run.signals import Signals
from genbo.cli.run.status import read_report, read_status
from genbo.cli.stages.context import Context
from genbo.cli.stages.endings import endings
from genbo.cli.stages.progress import watch
from genbo.cli.stages.provenance import on_what

if TYPE_CHECKING:
    from genbo.cli.job.job import Job
    from genbo.cli.plan.counts import Plan
    from genbo.cli.stages.build import Assembled, Loaded

Document = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """A finished run: its folder and what `report.json` says."""

    folder: Path
    document: Document

    @property
    def verdict(self) -> str | None:
        verdict: str | None = self.document["verdict"]
        return verdict

    @property
    def judges(self) -> dict[str, str | None]:
        """The verdict of each judge, by its name."""
        return {name: row["verdict"] for name, row in self.document.get("judges", {}).items()}

    @property
    def phi(self) -> dict[str, Any]:
        return {name: value["tuned"] for name, value in self.document["phi"].items()}


class Tuning:
    """A run under way: its steps as they are made, and its result.

    Iterating gives each step once it is safe on the disk, a dict as a line of `steps.jsonl`: `phi` by name, `value` and
    `value_se` of the reward, `grad` and `grad_se` in the coordinates `u`, `cost` so far. Nothing runs between two steps
    that are asked for; the run goes on to its verdict when the last has been given. `result` runs what is left of it.
    A run that is left half way is there to be resumed.
    """

    def __init__(self, folder: Path, stages: Generator[Document, None, Document]) -> None:
        self.folder, self._stages = folder, stages
        self._found: Result | None = None

    def __iter__(self) -> Iterator[Document]:
        return self

    def __next__(self) -> Document:
        if self._found is not None:
            raise StopIteration
        try:
            return next(self._stages)
        except StopIteration as end:
            self._found = Result(self.folder, end.value)
            raise StopIteration from None

    def result(self) -> Result:
        """Of the whole run; raises `GenboError` where `genbo tune` would exit with an error."""
        for _ in self:
            pass
        assert self._found is not None
        return self._found

    def close(self) -> None:
        """Leave the run as it is, to be resumed; so does leaving a `with` block."""
        self._stages.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def stages_of(
    job: Job,
    planned: Plan,
    *,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    reproduce: str,
    loaded: Loaded | None = None,
    then: Callable[[Context, Document], None] | None = None,
) -> Generator[Document, None, Document]:
    """The whole run, or the rest of it, step by step; returns the object of `report.json`.

    `loaded` has a model and rewards that an earlier run has opened already. `then` is called at the end, while the run
    folder is still open; with it, a run that has ended is looked at once more.
    """
    from genbo.cli.stages import ascent, lambda_search
    from genbo.cli.stages.build import assemble

    with (
        Signals() as signals,
        opened(Path(job.output), job.document(), resume=resume, overwrite=overwrite) as run,
    ):
        ended = finished(run)
        if ended is not None and then is None:
            watch(0, quiet=quiet).note(f"{run.path} has ended already: nothing is left to do")
            return ended
        with endings(run):
            run.status("running", "loading", last_step=run.last_step, resumable=True)
            assembled = assemble(job, loaded)
            with watch(planned.steps if job.tilts else assembled.budget.steps, quiet=quiet) as screen:
                notes = on_what(run, assembled, screen)
                if planned.expected_s is None and planned.memory is not None:
                    screen.note(_time_by_one_call(assembled, planned))
                whole = lambda_search.whole if job.tilts else ascent.whole
                context = Context(run, job, assembled, planned, screen, signals, reproduce, notes)
                document = yield from whole(context)
                if then is not None:
                    then(context, document)
                return document


def finished(run: Run) -> Document | None:
    """The report of a run that has come to its end, good or bad; a bad one is raised again."""
    status = read_status(run.path) or {}
    if status.get("state") == Diverged.state:
        raise Diverged(str(status["reason"]))
    document = read_report(run.path) if status.get("state") == "done" else None
    if document is None or judges_in(document["job"]) != judges_in(run.document):
        return None  # other judges look once more
    return document


def _time_by_one_call(assembled: Assembled, planned: Plan) -> str:
    """How long the run will take, by one call of the network: no earlier run has shown it."""
    from genbo.cli.plan.throughput import guessed_s
    from genbo.cli.report.number_format import duration

    process, prompt = assembled.problem.process, assembled.prompts[0]
    least, most = map(duration, guessed_s(process, prompt, planned.total_at_least, planned.total))
    expected = f"about {most}" if least == most else f"from about {least} to {most}"
    return f"time: {expected}, by one call of the network"
