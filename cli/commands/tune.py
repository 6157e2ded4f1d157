"""genbo tune: a job file, or a mapping, becomes a run folder with a verdict in it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from genbo.cli.job.user_code import allowed, announce
from genbo.cli.run.json_files import to_json
from genbo.cli.stages.run import Tuning, stages_of

if TYPE_CHECKING:
    from genbo.cli.plan.counts import Plan


def tune(
    job: str | Path | Mapping[str, object],
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
    path: str | Path | Mapping[str, object], overrides: Sequence[str], allow_code: Sequence[str | Path] = ()
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
