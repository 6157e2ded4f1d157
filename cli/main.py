"""The commands and their options. A command imports its own file when it is called, so --help is fast."""

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
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the job, such as budget.steps=5. Repeatable."),
]
Code = Annotated[
    list[Path] | None,
    typer.Option("--allow-code", metavar="FILE.py", help="Allow the job to run this Python file. Repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


@app.command()
def init(
    kind: Annotated[
        str, typer.Argument(help="What to tune: guidance, regularization, timesteps or noise-schedule.")
    ] = "guidance",
) -> None:
    """Print a commented job to start from: genbo init > job.yaml"""
    from genbo.cli.commands import init as command

    raise typer.Exit(command.run(kind))


@app.command()
def check(
    job: Job,
    set_: Set = None,
    as_json: Json = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Load the model and time it to estimate the duration.")
    ] = False,
    allow_code: Code = None,
) -> None:
    """Print all mistakes of a job, or the job with its defaults and its expected cost."""
    from genbo.cli.commands import check as command

    raise typer.Exit(command.run(job, set_ or (), as_json=as_json, measure=measure, allow_code=allow_code or ()))


@app.command()
def tune(
    job: Job,
    set_: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an earlier run that was stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the output of an earlier run first.")] = False,
    as_json: Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the job and print the plan; run nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress on stderr.")] = False,
    allow_code: Code = None,
) -> None:
    """Run a job and write a run folder with a report and the tuned model."""
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other; give one of them")
    from genbo.cli.commands import tune as command

    options = {"as_json": as_json, "dry_run": dry_run, "quiet": quiet}
    code = allow_code or ()
    raise typer.Exit(command.run(job, set_ or (), resume=resume, overwrite=overwrite, allow_code=code, **options))


@app.command()
def batch(
    jobs: Annotated[list[Path], typer.Argument(metavar="JOB.yaml...", help="Job files.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the output of earlier runs first.")] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress on stderr.")] = False,
    allow_code: Code = None,
) -> None:
    """Run several jobs one after the other and print one table. A failed job does not stop the others."""
    from genbo.cli.commands import batch as command

    options = [flag for flag, wanted in (("--overwrite", overwrite), ("--quiet", quiet)) if wanted]
    raise typer.Exit(command.run(jobs, options, as_json=as_json, allow_code=allow_code or ()))


@app.command()
def compare(
    job: Job,
    set_: Set = None,
    with_: Annotated[
        str,
        typer.Option(
            "--with",
            metavar="KINDS",
            help="Searchers to compare with, separated by commas; two_point and one_point are those of the paper.",
        ),
    ] = "grid,random,tpe,gp,cmaes",
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Runs of each tuner, with seeds of their own.")] = 3,
    budget: Annotated[
        float,
        typer.Option("--budget", min=0.001, max=100.0, help="What each may spend, as a share of the job's budget."),
    ] = 1.0,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="Candidates of each search; fewer get more samples each.")
    ] = None,
    phi: Annotated[
        list[Path] | None,
        typer.Option("--phi", metavar="FILE.yaml", help="Compare fixed values, like guidance: 2.5; two files or more."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Draw new noise for each candidate of a search.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The folder to write to.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a comparison that was stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Run again what is there already.")] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress on stderr.")] = False,
    allow_code: Code = None,
) -> None:
    """Compare the job's tuner with grid, random and Bayesian search at equal work, on the same held-out samples."""
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other; give one of them")
    from genbo.cli.commands import compare as command

    if phi and len(phi) < 2:
        raise typer.BadParameter("--phi compares two files or more; give another one")
    kinds = [kind.strip() for kind in with_.split(",") if kind.strip()]
    options = {"fresh": fresh, "resume": resume, "overwrite": overwrite, "as_json": as_json, "quiet": quiet}
    code = command.run(
        job,
        set_ or (),
        kinds=kinds,
        repeats=repeats,
        share=budget,
        trials=trials,
        phi=phi or (),
        output=output,
        allow_code=allow_code or (),
        **options,
    )
    raise typer.Exit(code)


@app.command()
def show(run: Run, as_json: Json = False) -> None:
    """Print the result of a run."""
    from genbo.cli.commands import show as command

    raise typer.Exit(command.run(run, as_json=as_json))


@app.command()
def report(
    run: Run,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write.")] = None,
) -> None:
    """Write the HTML report of a run again and print its path."""
    from genbo.cli.report import html as command

    raise typer.Exit(command.run(run, output))


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder or a model folder.", show_default=False)],
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", help="A prompt. Repeatable. Omit it if the model takes none."),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, help="Images per prompt.")] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same images.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The folder to write to.")] = None,
    allow_code: Code = None,
) -> None:
    """Draw images with the tuned values."""
    from genbo.cli.commands import sample as command

    code = allow_code or ()
    raise typer.Exit(command.run(run, prompt or (), samples=samples, seed=seed, output=output, allow_code=code))


@app.command()
def score(
    images: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder with images.", show_default=False)],
    reward: Annotated[
        list[str],
        typer.Option(
            "--reward",
            "-r",
            metavar="REWARD",
            help="A reward as in a job, such as '{kind: clip, pretrained: emoji-clip}'. Repeatable.",
        ),
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="Prompts: a text file with one per line in the order of the file names, or a .csv or .json table.",
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="One prompt for all images.")] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Images that set rewards compare with: a folder, or `data` as in a job."),
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="Also print one row per image.")] = False,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a CSV table on stdout.")] = False,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per batch.")] = 16,
    device: Annotated[str, typer.Option("--device", help="The device: auto, cpu, cuda or cuda:0.")] = "auto",
    allow_code: Code = None,
) -> None:
    """Score the images in a folder with any rewards, with error bars."""
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
def list_(
    room: Annotated[str | None, typer.Argument(help="A section, such as rewards. Omit it to list all.")] = None,
) -> None:
    """List what a job can use: models, samplers, rewards, estimators and so on, with their options."""
    from genbo.cli.commands import list as command

    raise typer.Exit(command.run(room))


@app.command()
def schema(of: Annotated[str, typer.Argument(help="job, report, status or step")] = "job") -> None:
    """Print the JSON schema of a job, for editors, or of what a run writes: genbo schema > job.schema.json"""
    if of == "job":
        from genbo.cli.job import schema as command

        raise typer.Exit(command.run())
    from genbo.cli.report import records_schema

    raise typer.Exit(records_schema.run(of))


@app.command()
def doctor() -> None:
    """Check the installation: versions, devices and bundled files."""
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


FOLDERS = ("tune", "batch")  # commands whose result is a folder: what they print only summarises it


def main() -> NoReturn:
    """The entry point. An expected error prints a sentence and sets an exit code; anything else is a bug and shows."""
    settle()
    code = _code()
    if (problem := lost()) and code == 0 and sys.argv[1:2] not in [[name] for name in FOLDERS]:
        print(f"what was printed did not arrive on stdout: {problem.strerror}; send it elsewhere", file=sys.stderr)
        code = StorageFailed.exit_code
    sys.exit(code)


def _code() -> int | str | None:
    from genbo.diffusion.refused import Refused

    try:
        app()
    except SystemExit as end:
        return end.code
    except GenboError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except Refused as error:
        print(error, file=sys.stderr)
        return 3
    return 0
