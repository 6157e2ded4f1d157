"""genbo compare: the tuner of a job against searchers, at equal work, on the same held-out samples."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genbo.cli.errors import UserMistake
from genbo.cli.job.job import read_job
from genbo.cli.job.sections.output import file_on
from genbo.cli.job.user_code import allowed, announce
from genbo.cli.plan.entrants import Entrants, entrants_of, fixed
from genbo.cli.run.json_files import to_json, write_json

if TYPE_CHECKING:
    from genbo.cli.job.job import Job
    from genbo.cli.report.contest import ComparisonRecord

WITH = ("grid", "random", "tpe", "gp", "cmaes")
RECORD, PAGE = "comparison.json", "comparison.html"


def run(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    kinds: Sequence[str] = WITH,
    repeats: int = 3,
    share: float = 1.0,
    trials: int | None = None,
    fresh: bool = False,
    phi: Sequence[Path] = (),
    output: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    as_json: bool = False,
    quiet: bool = False,
    allow_code: Sequence[Path] = (),
) -> int:
    """The command; every run that has ended is kept, so a comparison that was stopped goes on."""
    code = allowed(allow_code)
    announce(code)
    job = read_job(path, overrides, code)
    place = _place(output or Path(f"{job.output}-compare"))
    if place.exists() and any(place.iterdir()) and not (resume or overwrite):
        raise UserMistake(f"{place} is there already; use --resume, --overwrite, or another --output")
    if phi and job.tilts:
        raise UserMistake("--phi compares no lambdas; genbo tune draws the curve, and its report has every lambda")
    if phi:
        repeats, entrants = 1, fixed(path, overrides, phi, place, code)
    elif job.tilts and repeats == 1:
        raise UserMistake("over lambda the interval counts repeats, so one leaves none; set --repeats to 2 or more")
    else:
        entrants = entrants_of(job, kinds, place, share=share, trials=trials, common=not fresh)
    record = compared(job, entrants, repeats, place, common=not fresh, overwrite=overwrite, quiet=quiet)
    if as_json:
        sys.stdout.write(to_json(record.document()).decode())
    else:
        _print(record, place)
    return 0


def _place(path: Path) -> Path:
    """The folder to write to, which need not be there."""
    if (file := file_on(path)) is not None:
        raise UserMistake(f"{file} is a file, and a comparison needs a folder; choose another name")
    return path


def compared(
    job: Job, entrants: Entrants, repeats: int, place: Path, *, common: bool, overwrite: bool, quiet: bool
) -> ComparisonRecord:
    """All runs of a comparison, and its record, which is written with its page."""
    from genbo.cli.report.contest import record_of, write_page
    from genbo.cli.run.folder import make_folder
    from genbo.cli.stages.compare import runs_of

    make_folder(place)
    runs: dict[str, list[Mapping[str, Any]]] = {entrant.name: [] for entrant in entrants.each}
    for entrant, number, figures in runs_of(entrants, repeats, overwrite=overwrite, quiet=True):
        runs[entrant.name].append(figures)
        if not quiet:
            print(_line(entrant.name, number, repeats, figures), file=sys.stderr, flush=True)
    plans = {e.name: (_trials(e.job, runs[e.name]), _samples(e.job)) for e in entrants.each}
    record = record_of(
        runs,
        plans,
        own=entrants.each[0].name,
        work=entrants.work,
        common=common,
        left_out=entrants.left_out,
        job=job.document(),
    )
    write_json(place / RECORD, record.document())
    write_page(record, place / PAGE)
    return record


def _trials(job: Job, runs: Sequence[Mapping[str, Any]]) -> int:
    """As planned; of a search that ended when its work was spent, as many as the longest of its runs had."""
    made = [run["trials"] for run in runs if "trials" in run]
    return max(made) if job.budget.work is not None and made else job.budget.steps


def _samples(job: Job) -> int:
    """Of a step or a trial; of a search for lambda those of its bank, a prompt."""
    return job.lower.options.drawing.samples if job.tilts and job.lower is not None else job.budget.samples


def _line(name: str, number: int, repeats: int, figures: Mapping[str, Any]) -> str:
    """What a run came to, as it ends."""
    from statistics import fmean

    from genbo.cli.report import number_format

    where = f"{name}, repeat {number + 1} of {repeats}"
    if "failed" in figures:
        return f"{where}: failed: {figures['failed']}"
    if not figures["way"]:
        return f"{name}: score {number_format.number(fmean(figures['tuned']))}"
    gain = fmean(figures["tuned"]) - fmean(figures["start"])
    seconds = number_format.duration(figures["elapsed_s"])
    return f"{where}: gain {number_format.number(gain, sign=True)} in {seconds}"


def _print(record: ComparisonRecord, place: Path) -> None:
    from rich.console import Console

    from genbo.cli.report.contest import notes, table_of

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 140)
    console.print(record.headline, style="bold")
    console.print(table_of(record))
    for note in notes(record):
        console.print(note, style="dim")
    console.print(f"page: {place / PAGE}", soft_wrap=True)
