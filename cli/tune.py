"""genbo tune: from a job to a run folder with a verdict in it.

    plan -> climb, a checkpoint a step -> answer -> held-out evaluation of both sides -> tuned/ -> report

A run that ends otherwise says how in `status.json` and by its exit code. A gradient that is not finite
three times in a row, or exactly zero three times in a row, ends it with 4: nothing can be concluded, so
nothing is exported.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genbo.cli.errors import ArtifactRefused, Diverged, GenboError, OutOfMemory, Preempted, UserMistake
from genbo.cli.run import (
    Checkpoint,
    Run,
    Signals,
    fault,
    folder_in_place,
    kinds,
    opened,
    read_json,
    sha256,
    sha256_of,
    storage,
    strict,
    to_json,
    version,
    without_secrets,
    write_json,
)
from genbo.cli.watch import Quiet, watch

if TYPE_CHECKING:
    from genbo.bilevel.tune import Step
    from genbo.cli.assemble import Assembled
    from genbo.cli.job import Job
    from genbo.cli.plan import Plan
    from genbo.cli.result import HeldOut, Names, Tuned

Document = dict[str, Any]
PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "open-clip-torch", "numpy")
SPARE_BYTES = 50_000_000  # for checkpoints, evaluation and report


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
    def phi(self) -> dict[str, Any]:
        return {name: value["tuned"] for name, value in self.document["phi"].items()}


def tune(
    job: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = True,
) -> Result:
    """Run a job, a file or a dict, as `genbo tune` does; raises `GenboError` where that would exit."""
    from genbo.cli.job import read_job
    from genbo.cli.plan import plan

    read = read_job(job, overrides)
    document = carry_out(
        read, plan(read), resume=resume, overwrite=overwrite, quiet=quiet, reproduce=command(job, overrides)
    )
    return Result(Path(read.output), document)


def run(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    as_json: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
) -> int:
    """The command; returns its exit code, or raises a `GenboError` that carries one."""
    from genbo.cli.job import read_job
    from genbo.cli.plan import plan
    from genbo.cli.show import last_lines

    job = read_job(path, overrides)
    planned = plan(job)
    if dry_run:
        say_plan(planned, as_json=as_json)
        return 0
    if not quiet:
        say_plan(planned, as_json=False, to_stderr=True)
    document = carry_out(
        job, planned, resume=resume, overwrite=overwrite, quiet=quiet, reproduce=command(path, overrides)
    )
    if as_json:
        sys.stdout.write(to_json(document).decode())
    else:
        print(last_lines(document, Path(job.output)))
    return 0


def command(path: str | Path | Mapping[str, Any], overrides: Sequence[str]) -> str:
    """What to type to have the same run again."""
    job = "job.yaml" if isinstance(path, Mapping) else str(path)
    return shlex.join(["genbo", "tune", job, *(part for text in overrides for part in ("--set", text))])


def say_plan(planned: Plan, *, as_json: bool, to_stderr: bool = False) -> None:
    if as_json:
        sys.stdout.write(to_json(planned.document()).decode())
    else:
        print(planned.text(), file=sys.stderr if to_stderr else sys.stdout)


# -- the run -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What every stage needs."""

    run: Run
    job: Job
    assembled: Assembled
    planned: Plan
    screen: Quiet
    signals: Signals
    reproduce: str
    notes: tuple[str, ...]

    def stop_if_asked(self) -> None:
        """Ends the run between two safe points when a signal has come."""
        if self.signals.received is not None:
            where = f"stopped by a signal after step {self.run.last_step}"
            raise Preempted(f"{where}; the same command with --resume goes on", exit_code=self.signals.exit_code)


def carry_out(job: Job, planned: Plan, *, resume: bool, overwrite: bool, quiet: bool, reproduce: str) -> Document:
    """The whole run, or the rest of it; returns the object of `report.json`."""
    from genbo.cli.assemble import assemble
    from genbo.cli.figures import duration
    from genbo.cli.speed import guessed_s

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
                    expected = duration(guessed_s(assembled, planned.image_forwards))
                    screen.note(f"time: about {expected}, by one call of the network")
                return whole(Work(run, job, assembled, planned, screen, signals, reproduce, notes))


def finished(run: Run) -> Document | None:
    """The report of a run that has come to its end, good or bad; a bad one is raised again."""
    place = run.path / "status.json"
    status = read_json(place) if place.is_file() else {}
    if status.get("state") == Diverged.state:
        raise Diverged(status["reason"])
    report = run.path / "report.json"
    return dict(read_json(report)) if status.get("state") == "done" and report.is_file() else None


@contextmanager
def endings(run: Run) -> Iterator[None]:
    """Every end gets its name in `status.json`."""
    try:
        with storage(), named():
            yield
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
    from genbo.rewards import Refused as RewardRefused

    try:
        yield
    except (Refused, RewardRefused) as problem:
        raise ArtifactRefused(str(problem)) from problem
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
        raise OutOfMemory(
            f"out of memory ({first_line(problem)}); "
            "go on with --resume and --set model.batch=..., half of what it was",
            resumable=True,
        ) from problem


def is_out_of_memory(problem: Exception) -> bool:
    """By type, and for what the allocators raise as a bare RuntimeError, by their own words."""
    import torch

    words = ("cuda error: out of memory", "cuda out of memory", "can't allocate memory", "not enough memory")
    text = str(problem).lower()
    by_type = isinstance(problem, (torch.OutOfMemoryError, MemoryError))
    return by_type or (isinstance(problem, RuntimeError) and any(word in text for word in words))


def first_line(problem: BaseException) -> str:
    return (str(problem).strip().split("\n")[0] or type(problem).__name__)[:300]


def whole(work: Work) -> Document:
    """All stages in order; each finds what an earlier process has left of it."""
    from genbo.cli import result
    from genbo.cli.speed import record_speed

    last = climb(work)
    problem, records = work.assembled.problem, work.run.journal.records
    if gave_up(last):
        reason = why_given_up(records)
        tuned = result.last_good(problem, records)
        conclude(work, tuned, None, {**last.state.cost, "elapsed_s": last.elapsed_s}, "diverged", reason)
        raise Diverged(reason)
    tuned = result.tuned_of(problem, records)
    held_out = evaluate(work, tuned, last)
    sides = (held_out.start, held_out.tuned)
    cost = {key: spent + sum(side.cost[key] for side in sides) for key, spent in last.state.cost.items()}
    elapsed_s = last.elapsed_s + sum(side.elapsed_s for side in sides)
    document = conclude(work, tuned, held_out, {**cost, "elapsed_s": elapsed_s}, "done", None)
    record_speed(work.job, cost.get("image_forwards", 0), elapsed_s)
    work.run.status("done", document["headline"], last_step=work.run.last_step, resumable=False)
    return document


def climb(work: Work) -> Checkpoint:
    """Steps until the budget is spent; what a step saw is on the disk before the next begins."""
    from genbo.bilevel.tune import tune as steps_of

    run, a = work.run, work.assembled
    last = where_it_stood(work)
    run.last_step = last.state.steps
    work.screen.begin(run.journal.records)
    began = time.monotonic() - last.elapsed_s
    steps = steps_of(a.problem, a.estimator, a.optimizer, a.prompts, a.budget, a.seed, last.state)
    work.stop_if_asked()
    while not out_of_time(work, last):
        step = next(steps, None)
        if step is None:
            break
        fault("step.computed")
        last = keep(work, step, time.monotonic() - began)
        work.stop_if_asked()
    return last


def where_it_stood(work: Work) -> Checkpoint:
    """The newest checkpoint that holds, and the journal put back to it; else the beginning."""
    from genbo.bilevel.tune import begin

    run, problem = work.run, work.assembled.problem
    found = run.checkpoints.newest()
    for file in run.checkpoints.skipped:
        work.screen.note(f"{file} is damaged and was skipped: going on from an older checkpoint")
    first = begin(problem)
    if found is None:
        found = Checkpoint(first, b"", 0.0)
    for name in (name for name, kind in kinds().items() if kind == "tensor"):
        has, wanted = getattr(found.state, name).shape, getattr(first, name).shape
        if has != wanted:
            raise ArtifactRefused(f"the checkpoint's tensor {name!r} is {tuple(has)}, not {tuple(wanted)}")
    run.journal.restore(found.steps)
    return found


def keep(work: Work, step: Step, elapsed_s: float) -> Checkpoint:
    """The step into the journal, then the checkpoint that follows it."""
    run, names = work.run, names_of(work.assembled)
    record = record_of(step, work.assembled, names, elapsed_s)
    run.journal.append(record)
    last = Checkpoint(step.state, run.journal.data, elapsed_s)
    run.checkpoints.save(last)
    run.last_step = step.state.steps
    text = f"step {run.last_step} of {work.assembled.budget.steps}"
    run.status("running", text, last_step=run.last_step, resumable=True)
    work.screen.step(strict(record), time_left(work, last.state.cost, elapsed_s))
    return last


def record_of(step: Step, assembled: Assembled, names: Names, elapsed_s: float) -> Document:
    """A line of `steps.jsonl`."""
    return {
        "step": step.index,
        "phi": assembled.problem.spoken(step.phi),
        "value": step.value,
        "value_se": step.value_se,
        "scores": dict(zip((*names.rewards, *names.constraints), step.scores.tolist(), strict=True)),
        "gaps": dict(zip(names.constraints, step.gaps.tolist(), strict=True)),
        "multipliers": dict(zip(names.constraints, step.multipliers.tolist(), strict=True)),
        "u": step.u.tolist(),
        "grad": step.grad.tolist(),
        "grad_se": step.grad_se.tolist(),
        "status": step.status,
        "cost": step.state.cost,
        "elapsed_s": round(elapsed_s, 3),
    }


def names_of(assembled: Assembled) -> Names:
    from genbo.cli.result import Names

    return Names(tuple(assembled.reward_names), tuple(assembled.constraint_names))


def out_of_time(work: Work, last: Checkpoint) -> bool:
    minutes = work.job.budget.minutes
    return minutes is not None and last.state.steps > 0 and last.elapsed_s >= 60 * minutes


def time_left(work: Work, cost: Mapping[str, int], elapsed_s: float) -> float | None:
    """The plan's images that are not drawn yet, at the pace so far."""
    done = cost.get("image_forwards", 0)
    if not done:
        return None
    left = elapsed_s / done * max(0, work.planned.image_forwards - done)
    minutes = work.job.budget.minutes
    return left if minutes is None else min(left, max(0.0, 60 * minutes - elapsed_s))


def gave_up(last: Checkpoint) -> bool:
    from genbo.bilevel.tune import PATIENCE

    return last.state.wasted >= PATIENCE


def why_given_up(records: Sequence[Document]) -> str:
    tried = ", ".join(f"{name} {_short(value)}" for name, value in records[-1]["phi"].items())
    if records[-1]["status"] == "flat":
        names = " and ".join(records[-1]["phi"])
        return (
            f"the reward does not change with {names} near {tried}: the gradient is exactly zero. "
            "Start elsewhere, or take a reward that depends on it"
        )
    return (
        f"the reward or its gradient is not finite at {tried}, three steps in a row; "
        "the last good value is kept. Narrow the bounds, lower the optimizer's lr, or set model.dtype: fp32"
    )


def _short(value: float | list[float]) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{min(value):.3g} to {max(value):.3g}"


# -- the end -------------------------------------------------------------------------------------------------


def evaluate(work: Work, tuned: Tuned, last: Checkpoint) -> HeldOut:
    """Start and tuned on the same prompts and seeds, which tuning never saw."""
    from genbo.cli.heldout import evaluate_side
    from genbo.cli.result import HeldOut
    from genbo.diffusion.seed import batch_of

    run, a = work.run, work.assembled
    batch = batch_of(a.held_out, work.job.evaluate.samples, a.seed.child("evaluate"))
    sides = []
    for name, phi in (("start", a.problem.first()), ("tuned", tuned.phi)):
        run.status("running", f"held-out evaluation of {name}", last_step=run.last_step, resumable=True)
        between = counting(work, name, len(batch), last)
        sides.append(evaluate_side(run.path / "evaluation", name, a.problem, phi, batch, run.digest, between))
        work.stop_if_asked()
    return HeldOut(sides[0], sides[1], batch.prompts, a.held_out_is_fresh_prompts)


def counting(work: Work, side: str, total: int, last: Checkpoint) -> Callable[[], None]:
    """Called after each chunk: moves the bar, and stops where a signal asks for it."""
    size = max(1, work.assembled.problem.process.batch)
    done = 0

    def between() -> None:
        nonlocal done
        done = min(total, done + size)
        cost = work.assembled.problem.process.meter.as_dict()
        pace = {"image_forwards": last.state.cost.get("image_forwards", 0)}
        left = time_left(work, pace, last.elapsed_s)
        drawn = cost["image_forwards"] - pace["image_forwards"]
        if left is not None and pace["image_forwards"]:
            left = max(0.0, left - last.elapsed_s / pace["image_forwards"] * drawn)
        work.screen.evaluating(side, done, total, left)
        work.stop_if_asked()

    return between


def conclude(
    work: Work,
    tuned: Tuned,
    held_out: HeldOut | None,
    cost: Mapping[str, float],
    status: str,
    reason: str | None,
) -> Document:
    """`tuned/`, `report.json` and `report.html`."""
    from genbo.cli import result
    from genbo.cli.report import write_report

    run, a = work.run, work.assembled
    found = result.Findings(
        problem=a.problem,
        names=names_of(a),
        records=run.journal.records,
        tuned=tuned,
        held_out=held_out,
        cost=cost,
        planned=planned_cost(work.planned),
        estimator={"kind": a.estimator_name, "reason": a.estimator_reason},
        job=work.job.document(),
        environment=read_json(run.path / "environment.json"),
        reproduce=work.reproduce,
        status=status,
        reason=reason,
        notes=work.notes,
    )
    document = without_secrets(strict({**result.document_of(found), "use": use_of(work, tuned)}))
    if held_out is not None:
        export_tuned(work, tuned, document)
    fault("report.begin")
    write_json(run.path / "report.json", document)
    fault("report.json")
    write_report(run.path, document)
    fault("report.html")
    return dict(document)


def planned_cost(planned: Plan) -> dict[str, float]:
    return {key: getattr(planned, key) for key in ("denoiser_calls", "image_forwards", "reward_images")}


def export_tuned(work: Work, tuned: Tuned, document: Document) -> None:
    from genbo.diffusion.tuned import export

    held_out = document["held_out"]
    about = {
        "genbo": version(),
        "tuned": {name: value["tuned"] for name, value in document["phi"].items()},
        "start": {name: value["start"] for name, value in document["phi"].items()},
        "held_out": {key: held_out[key] for key in ("verdict", "difference", "interval", "samples", "prompts")},
        "reproduce": document["reproduce"],
    }
    with folder_in_place(work.run.path / "tuned") as beside:
        export(work.assembled.problem.at(tuned.phi), beside, about)


def use_of(work: Work, tuned: Tuned) -> Document:
    """What to paste: the plain diffusers call where it can express the values, and genbo's own."""
    from genbo.diffusion.tuned import settings

    folder = f"{work.job.output}/tuned"
    said = settings(work.assembled.problem.at(tuned.phi))
    if not hasattr(work.assembled.problem.process.model, "pipeline"):
        return {"folder": folder, "settings": said, "diffusers": None, "genbo": None}
    arguments = diffusers_arguments(said)
    load = f'pipeline = DiffusionPipeline.from_pretrained("{folder}")'
    plain = f"from diffusers import DiffusionPipeline\n\n{load}\nimage = pipeline(prompt, {arguments}).images[0]"
    own = f'import genbo\n\npipeline = genbo.load("{folder}")\nimages = pipeline([prompt], samples=4, seed=0)'
    return {"folder": folder, "settings": said, "diffusers": plain if arguments else None, "genbo": own}


def diffusers_arguments(said: Mapping[str, Any]) -> str | None:
    """The arguments of a diffusers call, or None where it has none for these values."""
    rule = said["guidance"]
    names = {"weight": "guidance_scale", "rescale": "guidance_rescale"}
    if rule["kind"] not in ("plain", "rescaled") or not all(isinstance(rule[k], float) for k in names if k in rule):
        return None
    if rule["weight"] <= 1:
        return None  # diffusers switches guidance off there
    values = [f"{names[key]}={float(f'{rule[key]:.4g}')}" for key in names if key in rule]
    eta = [f"eta={said['sampler']['eta']}"] if said["sampler"].get("eta") else []
    return ", ".join([*values, f"num_inference_steps={said['sampler']['steps']}", *eta])


# -- on what it ran ------------------------------------------------------------------------------------------


def on_what(run: Run, assembled: Assembled, screen: Quiet) -> tuple[str, ...]:
    """Writes `environment.json`; on a resumed run, says what has changed, and refuses other inputs."""
    environment = environment_of(assembled)
    changed = run.write_environment(environment)
    other = [text for text in changed if text.startswith("inputs.")]
    if other:
        raise UserMistake(f"{run.path} was begun with other inputs ({'; '.join(other)}); begin again with --overwrite")
    warn_of_space(run, assembled, screen)
    if not changed:
        return ()
    note = f"Resumed on other ground ({'; '.join(changed)}): results need not be equal bit for bit."
    screen.note(note)
    return (note,)


def environment_of(assembled: Assembled) -> Document:
    """Versions, device and the hashes of everything that went in."""
    import platform
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    import torch

    packages = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            packages[name] = installed(name)
    model = assembled.problem.process.model
    device = torch.device(model.device)
    return {
        "genbo": version(),
        "python": platform.python_version(),
        "packages": packages,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "batch": assembled.problem.process.batch,
        "dtype": str(model.dtype).removeprefix("torch."),
        "inputs": inputs_of(assembled),
    }


def inputs_of(assembled: Assembled) -> Document:
    """sha256 of prompts and of every file of the model and the rewards."""
    problem = assembled.problem
    lists = {"prompts": assembled.prompts, "held_out": assembled.held_out}
    hashes = {name: sha256("\n".join(prompts).encode()) for name, prompts in lists.items()}
    parts: dict[str, object] = {"model": problem.process.model}
    names = names_of(assembled)
    parts |= dict(zip((*names.rewards, *names.constraints), problem.scorers, strict=True))
    return {**hashes, **{name: files for name, part in parts.items() if (files := files_of(part))}}


def files_of(part: object) -> dict[str, str]:
    """The files of an opened model or reward that knows its folder."""
    folder = getattr(part, "folder", None)
    if folder is None or not Path(folder).is_dir():
        return {}
    files = [
        f for f in sorted(Path(folder).rglob("*")) if f.is_file() and f.suffix in (".json", ".txt", ".safetensors")
    ]
    return {str(f.relative_to(folder)).replace(os.sep, "/"): sha256_of(f) for f in files}


def warn_of_space(run: Run, assembled: Assembled, screen: Quiet) -> None:
    folder = getattr(assembled.problem.process.model, "folder", None)
    sizes = (f.stat().st_size for f in Path(folder).rglob("*") if f.is_file()) if folder else ()
    wanted, free = sum(sizes) + SPARE_BYTES, shutil.disk_usage(run.path).free
    if free < wanted:
        has, needs = (f"{math.ceil(n / 1e6)} MB" for n in (free, wanted))
        screen.note(f"warning: {run.path} has {has} free, and the run may need {needs}")
