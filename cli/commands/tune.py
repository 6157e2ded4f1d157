"""genbo tune: from a job to a run folder with a verdict in it.

    plan -> climb, a checkpoint a step -> answer    -> held-out evaluation of both sides -> tuned/ -> report
         or search for lambda, a bank a round

A run that ends otherwise says how in `status.json` and by its exit code. A gradient that is not finite
three times in a row, or exactly zero three times in a row, ends it with 4: nothing can be concluded, so
nothing is exported.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from genbo.cli.errors import ArtifactRefused, Diverged, GenboError, OutOfMemory, UserMistake
from genbo.cli.job.user_code import allowed, announce
from genbo.cli.run.disk import storage
from genbo.cli.run.folder import Run, opened
from genbo.cli.run.job_digest import judges_in
from genbo.cli.run.json_files import to_json
from genbo.cli.run.redaction import without_secrets
from genbo.cli.run.signals import Signals
from genbo.cli.run.status import read_report, read_status
from genbo.cli.stages.context import Work
from genbo.cli.stages.progress import watch
from genbo.cli.stages.provenance import on_what
from genbo.diffusion.room import first_line

if TYPE_CHECKING:
    from genbo.cli.job.job import Job
    from genbo.cli.plan.counts import Plan

Document = dict[str, Any]

HALF = "go on with --resume and --set model.batch=..., half of what it was"
SMALLER = "take smaller images, model.dtype: bf16, an estimator without gradients, or a larger GPU"


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


def tune(
    job: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = True,
    allow_code: Sequence[str | Path] = (),
) -> Tuning:
    """A job, a file or a dict, as `genbo tune` runs it: an iterator of its steps, whose `result` is the verdict.

    `overrides` are texts as `--set` takes them; `allow_code` lists the Python files that the job may run. Raises
    `JobMistakes` at once, with all that is wrong with the job; what goes wrong later is raised as it is met.
    """
    from genbo.cli.job.job import read_job
    from genbo.cli.plan.counts import plan

    read = read_job(job, overrides, allowed(allow_code))
    again = command(job, overrides, allow_code)
    stages = stages_of(read, plan(read), resume=resume, overwrite=overwrite, quiet=quiet, reproduce=again)
    return Tuning(Path(read.output), stages)


def run(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    as_json: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    allow_code: Sequence[str | Path] = (),
) -> int:
    """The command; returns its exit code, or raises a `GenboError` that carries one."""
    from genbo.cli.commands.show import last_lines
    from genbo.cli.job.job import read_job
    from genbo.cli.plan.counts import plan

    code = allowed(allow_code)
    announce(code)
    job = read_job(path, overrides, code)
    planned = plan(job)
    if dry_run:
        say_plan(planned, as_json=as_json)
        return 0
    if not quiet:
        say_plan(planned, as_json=False, to_stderr=True)
    again = command(path, overrides, allow_code)
    stages = stages_of(job, planned, resume=resume, overwrite=overwrite, quiet=quiet, reproduce=again)
    document = Tuning(Path(job.output), stages).result().document
    if as_json:
        sys.stdout.write(to_json(document).decode())
    else:
        print(last_lines(document, Path(job.output)))
    return 0


def command(
    path: str | Path | Mapping[str, Any], overrides: Sequence[str], allow_code: Sequence[str | Path] = ()
) -> str:
    """What to type to have the same run again."""
    job = "job.yaml" if isinstance(path, Mapping) else str(path)
    given = [("--set", text) for text in overrides] + [("--allow-code", str(code)) for code in allow_code]
    return shlex.join(["genbo", "tune", job, *(part for pair in given for part in pair)])


def say_plan(planned: Plan, *, as_json: bool, to_stderr: bool = False) -> None:
    if as_json:
        sys.stdout.write(to_json(planned.document()).decode())
    else:
        print(planned.text(), file=sys.stderr if to_stderr else sys.stdout)


# -- the run -------------------------------------------------------------------------------------------------


def stages_of(
    job: Job, planned: Plan, *, resume: bool, overwrite: bool, quiet: bool, reproduce: str
) -> Generator[Document, None, Document]:
    """The whole run, or the rest of it, step by step; returns the object of `report.json`."""
    from genbo.cli.plan.throughput import guessed_s
    from genbo.cli.report.number_format import duration
    from genbo.cli.stages import ascent, lambda_search
    from genbo.cli.stages.build import assemble

    with (
        Signals() as signals,
        opened(Path(job.output), job.document(), resume=resume, overwrite=overwrite) as run,
    ):
        ended = finished(run)
        if ended is not None:
            watch(0, quiet=quiet).note(f"{run.path} has ended already: nothing is left to do")
            return ended
        with endings(run):
            run.status("running", "loading", last_step=run.last_step, resumable=True)
            assembled = assemble(job)
            with watch(assembled.budget.steps, quiet=quiet) as screen:
                notes = on_what(run, assembled, screen)
                if planned.expected_s is None and planned.memory is not None:
                    least, most = map(duration, guessed_s(assembled, planned.total_at_least, planned.total))
                    expected = f"about {most}" if least == most else f"from about {least} to {most}"
                    screen.note(f"time: {expected}, by one call of the network")
                whole = lambda_search.whole if job.tilts else ascent.whole
                return (yield from whole(Work(run, job, assembled, planned, screen, signals, reproduce, notes)))


def finished(run: Run) -> Document | None:
    """The report of a run that has come to its end, good or bad; a bad one is raised again."""
    status = read_status(run.path) or {}
    if status.get("state") == Diverged.state:
        raise Diverged(status["reason"])
    document = read_report(run.path) if status.get("state") == "done" else None
    if document is None or judges_in(document["job"]) != judges_in(run.document):
        return None  # other judges look once more
    return document


@contextmanager
def endings(run: Run) -> Iterator[None]:
    """Every end gets its name in `status.json`."""
    try:
        with storage(run.path), named():
            yield
    except GeneratorExit:
        _leave(run, "preempted", f"left by its caller after step {run.last_step}", resumable=True)
        raise
    except GenboError as problem:
        resumable = problem.resumable or (isinstance(problem, UserMistake) and run.last_step > 0)
        _leave(run, problem.state, str(problem), resumable=resumable)
        raise
    except Exception as problem:
        _leave(run, "failed", f"{type(problem).__name__}: {first_line(problem)}", resumable=True)
        raise


def _leave(run: Run, state: str, reason: str, *, resumable: bool) -> None:
    with suppress(OSError):  # a disk that is full has been reported already
        run.status(state, without_secrets(reason), last_step=run.last_step, resumable=resumable)


@contextmanager
def named() -> Iterator[None]:
    """Errors of the rooms below, as the ends that the contract names."""
    from genbo.diffusion.refused import Refused
    from genbo.diffusion.room import NoRoom, is_out_of_memory
    from genbo.rewards import Refused as RewardRefused

    try:
        yield
    except (Refused, RewardRefused) as problem:  # mended, or passing by itself, it stops a run no more
        raise ArtifactRefused(str(problem), resumable=True) from problem
    except FloatingPointError as problem:  # a lower level left the finite numbers
        raise Diverged(f"{problem}; the last good state is kept", resumable=False) from problem
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
        way_out = SMALLER if isinstance(problem, NoRoom) else HALF
        raise OutOfMemory(f"out of memory ({first_line(problem)}); {way_out}", resumable=True) from problem
