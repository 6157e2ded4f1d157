"""The command line, a line a command. Each imports its own file when it is called, so --help is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from genbo.cli.errors import GenboError, StorageFailed
from genbo.cli.run.streams import lost, settle

ABOUT = "Tunes a diffusion model's guidance, regularization and schedules by first-order bilevel optimization."

app = typer.Typer(
    name="genbo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Job = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job file.", show_default=False)]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a value of the job, like budget.steps=5; may be repeated."),
]
Code = Annotated[
    list[Path] | None,
    typer.Option("--allow-code", metavar="FILE.py", help="Let the job run this file of your own; may be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, for programs.")]


@app.command()
def init(kind: Annotated[str, typer.Argument(help="What to tune.")] = "guidance") -> None:
    """Print a commented job to begin with: genbo init > job.yaml"""
    from genbo.cli.commands import init as command

    raise typer.Exit(command.run(kind))


@app.command()
def check(
    job: Job,
    set_: Set = None,
    as_json: Json = False,
    measure: Annotated[bool, typer.Option("--measure", help="Load the model and time it, for the plan.")] = False,
    allow_code: Code = None,
) -> None:
    """Every mistake of a job with line and column; else the job with its defaults, and what it will cost."""
    from genbo.cli.commands import check as command

    raise typer.Exit(command.run(job, set_ or (), as_json=as_json, measure=measure, allow_code=allow_code or ()))


@app.command()
def tune(
    job: Job,
    set_: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run was stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete what an earlier run left there.")] = False,
    as_json: Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and plan, and run nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
    allow_code: Code = None,
) -> None:
    """Tune what the job says, and leave a run folder with a report."""
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other; give one of them")
    from genbo.cli.commands import tune as command

    options = {"as_json": as_json, "dry_run": dry_run, "quiet": quiet}
    code = allow_code or ()
    raise typer.Exit(command.run(job, set_ or (), resume=resume, overwrite=overwrite, allow_code=code, **options))


@app.command()
def batch(
    jobs: Annotated[list[Path], typer.Argument(metavar="JOB.yaml...", help="Job files.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete what earlier runs left.")] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
    allow_code: Code = None,
) -> None:
    """Tune several jobs, each in turn, and print one table; goes on past a failed one."""
    from genbo.cli.commands import batch as command

    options = [flag for flag, wanted in (("--overwrite", overwrite), ("--quiet", quiet)) if wanted]
    raise typer.Exit(command.run(jobs, options, as_json=as_json, allow_code=allow_code or ()))


@app.command()
def show(run: Run, as_json: Json = False) -> None:
    """The result of a run in the terminal."""
    from genbo.cli.commands import show as command

    raise typer.Exit(command.run(run, as_json=as_json))


@app.command()
def report(
    run: Run,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write it.")] = None,
) -> None:
    """Write the HTML report of a run again, and print where it is."""
    from genbo.cli.report import html as command

    raise typer.Exit(command.run(run, output))


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a model's.", show_default=False)],
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", help="What to show; may be repeated. None where the model takes none."),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, help="Images a prompt.")] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same images.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write them.")] = None,
) -> None:
    """Images with the tuned values."""
    from genbo.cli.commands import sample as command

    raise typer.Exit(command.run(run, prompt or (), samples=samples, seed=seed, output=output))


@app.command()
def score(
    images: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of images.", show_default=False)],
    reward: Annotated[
        list[str],
        typer.Option(
            "--reward",
            "-r",
            metavar="REWARD",
            help="As in a job, like '{kind: clip, pretrained: emoji-clip}'; repeatable.",
        ),
    ],
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="A prompt a line by order of file names, or a .csv or .json of both."),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="One prompt for all images.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Images to compare a whole set with: a folder, or as in a job.")
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="A row for each image as well.")] = False,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="A table for a spreadsheet on stdout.")] = False,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images scored at once.")] = 16,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:0.")] = "auto",
    allow_code: Code = None,
) -> None:
    """How good the images of a folder are, by any rewards, with error bars."""
    from genbo.cli.commands import score as command

    raise typer.Exit(
        command.run(
            images,
            reward,
            prompts=prompts,
            prompt=prompt,
            data=data,
            each=each,
            as_json=as_json,
            as_csv=as_csv,
            batch=batch,
            device=device,
            allow_code=allow_code or (),
        )
    )


@app.command("list")
def list_(room: Annotated[str | None, typer.Argument(help="One of the rooms, like rewards.")] = None) -> None:
    """What a job may name: models, rewards, estimators, ... with their options."""
    from genbo.cli.commands import list as command

    raise typer.Exit(command.run(room))


@app.command()
def schema(of: Annotated[str, typer.Argument(help="job, report, status or step")] = "job") -> None:
    """The JSON schema of a job, for editors, or of what a run writes: genbo schema > job.schema.json"""
    if of == "job":
        from genbo.cli.job import schema as command

        raise typer.Exit(command.run())
    from genbo.cli.report import records_schema

    raise typer.Exit(records_schema.run(of))


@app.command()
def doctor() -> None:
    """What is installed and whether it works together."""
    from genbo.cli.commands import doctor as command

    raise typer.Exit(command.run())


def _version(wanted: bool) -> None:
    if wanted:
        from genbo import __version__

        print(f"genbo {__version__}")
        raise typer.Exit


@app.callback(help=ABOUT)
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""


FOLDERS = ("tune", "batch")  # commands whose work is a folder: what they print tells of it, and is no more


def main() -> NoReturn:
    """The entry point. A named end is a sentence and an exit code; anything else is a bug, and is shown."""
    settle()
    code = _code()
    if (problem := lost()) and code == 0 and sys.argv[1:2] not in [[name] for name in FOLDERS]:
        print(f"what was printed did not arrive on stdout: {problem.strerror}; send it elsewhere", file=sys.stderr)
        code = StorageFailed.exit_code
    sys.exit(code)


def _code() -> int | str | None:
    from genbo.diffusion.refused import Refused
    from genbo.rewards import Refused as RewardRefused

    try:
        app()
    except SystemExit as end:
        return end.code
    except GenboError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except (Refused, RewardRefused) as error:
        print(error, file=sys.stderr)
        return 3
    return 0
