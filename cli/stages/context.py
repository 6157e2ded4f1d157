"""What the stages of a run share: its objects, its pace, and its end in `tuned/`, `report.json` and `report.html`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genbo.cli.errors import Preempted
from genbo.cli.run.folder import Run, Signals, fault, folder_in_place, strict, version, without_secrets, write_json
from genbo.cli.stages.progress import Quiet
from genbo.diffusion.kinds import class_of

if TYPE_CHECKING:
    from genbo.cli.job.job import Job
    from genbo.cli.plan.counts import Plan
    from genbo.cli.report.lambda_summary import Searched
    from genbo.cli.report.summary import HeldOut, Names, Tuned
    from genbo.cli.stages.build import Assembled
    from genbo.diffusion.network import Network
    from genbo.diffusion.process import Process

Document = dict[str, Any]


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


# -- pace ----------------------------------------------------------------------------------------------------


def time_left(work: Work, cost: Mapping[str, int], elapsed_s: float) -> float | None:
    """The plan's images that are not drawn yet, at the pace so far; a network's first training has its own clock.

    None where nobody knows how many there are.
    """
    if work.planned.total_at_least.image_forwards < work.planned.image_forwards and work.job.budget.minutes is None:
        return None
    forwards = cost.get("image_forwards", 0)
    timed = forwards - work.planned.training.image_forwards
    if timed <= 0:
        return None
    left = elapsed_s / timed * max(0, work.planned.image_forwards - forwards)
    minutes = work.job.budget.minutes
    return left if minutes is None else min(left, max(0.0, 60 * minutes - elapsed_s))


def counting(
    work: Work, side: str, total: int, cost: Mapping[str, int], elapsed_s: float
) -> Callable[[str, int, int], None]:
    """Called after each chunk of `total` images: moves the bar, and stops where a signal asks for it."""
    paced = cost.get("image_forwards", 0)

    def between(name: str, done: int, chunks: int) -> None:
        left = time_left(work, cost, elapsed_s)
        drawn = work.assembled.problem.process.meter.image_forwards - paced
        if left is not None and paced:
            left = max(0.0, left - elapsed_s / paced * drawn)
        work.screen.evaluating(side, round(total * done / chunks), total, left)
        work.stop_if_asked()

    return between


# -- the end -------------------------------------------------------------------------------------------------


def names_of(assembled: Assembled) -> Names:
    from genbo.cli.report.summary import Names

    return Names(tuple(assembled.reward_names), tuple(assembled.constraint_names), tuple(assembled.judge_names))


def judges_said(work: Work) -> Document | None:
    """Who the judges are, by their options and their files."""
    from genbo.cli.stages.provenance import judges_of

    judges = work.job.evaluate.judges
    return {"kinds": [j.document("rewards") for j in judges], "files": judges_of(work.assembled)} if judges else None


def conclude(
    work: Work,
    tuned: Tuned,
    held_out: HeldOut | None,
    cost: Mapping[str, float],
    status: str,
    reason: str | None,
    search: Searched | None = None,
    process: Process | None = None,
) -> Document:
    """`tuned/`, `report.json` and `report.html`; `process` is what draws tuned samples, where it is known better."""
    from genbo.cli.report import summary
    from genbo.cli.report.html import write_report

    run, a = work.run, work.assembled
    process = process or a.problem.at(tuned.phi)
    found = summary.Findings(
        problem=a.problem,
        names=names_of(a),
        records=run.journal.records,
        tuned=tuned,
        held_out=held_out,
        cost=cost,
        planned=planned_cost(work.planned),
        estimator={"kind": a.estimator_name, "reason": a.estimator_reason},
        job=work.job.document(),
        environment=run.environment,
        reproduce=work.reproduce,
        status=status,
        reason=reason,
        notes=(*work.notes, *_drawn_otherwise(work, process)),
        search=search,
        left_out=work.job.left_out if held_out is not None or search is not None else (),
    )
    said = {**summary.document_of(found), "use": use_of(work, process)}
    said["cost"] |= {"planned_at_least": work.planned.total_at_least.document(), "inexact": work.planned.inexact}
    document = without_secrets(strict(said))
    if document["held_out"] is not None:
        weights = search.weights if search else None
        export_tuned(work, weights.tuned if weights else process, document)
    fault("report.begin")
    write_json(run.path / "report.json", document)
    fault("report.json")
    write_report(run.path, document)
    fault("report.html")
    return dict(document)


def counted(cost: Mapping[str, int], *parts: Mapping[str, int]) -> dict[str, int]:
    """The counts that every part of a run has kept; one that was begun by an earlier genbo may lack some."""
    return {key: value for key, value in cost.items() if all(key in part for part in parts if part)}


def _drawn_otherwise(work: Work, process: Process) -> Iterator[str]:
    """Where a reader's own diffusers would draw something else: a scheduler that was replaced, what it cannot do."""
    from genbo.diffusion.tuned import beyond_diffusers

    remarks = getattr(work.job.model.options, "remarks", None)
    yield from (f"Of the scheduler: {said}." for said in (remarks(process.sampler, 1.0) if remarks else ()))
    if beyond := beyond_diffusers(process):
        yield f"A plain diffusers call does not draw what was judged ({'; '.join(beyond)}): genbo.load does."


def planned_cost(planned: Plan) -> dict[str, float]:
    """The most, where the plan is a range."""
    return dict(planned.total.document())


def export_tuned(work: Work, process: Process, document: Document) -> None:
    from genbo.diffusion.tuned import export, export_bytes

    held_out = document["held_out"]
    about = {
        "genbo": version(),
        "tuned": {name: value["tuned"] for name, value in document["phi"].items()},
        "start": {name: value["start"] for name, value in document["phi"].items()},
        "held_out": {key: held_out[key] for key in ("verdict", "difference", "interval", "samples", "prompts")},
        "reproduce": document["reproduce"],
    }
    with folder_in_place(work.run.path / "tuned", export_bytes(process)) as beside:
        export(process, beside, about)


def use_of(work: Work, process: Process) -> Document:
    """What to paste: the plain diffusers call where it can express the values, and genbo's own."""
    from genbo.diffusion.tuned import KEPT_OPTIONS, settings

    folder = f"{work.job.output}/tuned"
    model: Any = process.model
    said = settings(process)
    if hasattr(model, "module"):
        return {"folder": folder, "settings": said, **use_of_network(model, process, folder)}
    if not hasattr(model, "pipeline"):
        return {"folder": folder, "settings": said, "diffusers": None, "genbo": None}
    stops = model.arguments(process.sampler, process.grid) if "timesteps" in said else None
    prompt = model.prompted(process.sampler)
    hidden = prompt is None or ("timesteps" in said and stops is None)
    arguments = None if hidden else diffusers_arguments(said, stops, model.names)
    load = f'pipeline = DiffusionPipeline.from_pretrained("{folder}")'
    beside = [f"{name}={getattr(model.options, name)!r}" for name in KEPT_OPTIONS if getattr(model.options, name)]
    if model.options.height or model.options.width:
        beside += [f"{name}={value!r}" for name, value in model.of_size.items()]
    call = ", ".join(filter(None, [prompt, arguments, *beside]))
    plain = f"from diffusers import DiffusionPipeline\n\n{load}\nimage = pipeline({call}).images[0]"
    own = f'import genbo\n\npipeline = genbo.load("{folder}")\nimages = pipeline([prompt], samples=4, seed=0)'
    return {"folder": folder, "settings": said, "diffusers": plain if arguments else None, "genbo": own}


def use_of_network(network: Network, process: Process, folder: str) -> Document:
    """The same of a network of one's own: a DDIMPipeline, which takes no classes."""
    own = f'import genbo\n\npipeline = genbo.load("{folder}")\nimages = pipeline({{}}, samples=16, seed=0)'
    if network.classes:
        return {"diffusers": None, "genbo": own.format(f'["{network.classes[0]}"]')}
    load = f'pipeline = DDIMPipeline.from_pretrained("{folder}")'
    traits = process.sampler.traits
    told = "".join(f", {name}={value}" for name, value in traits.call(process.sampler).items() if value)
    call = f"images = pipeline(batch_size=16, num_inference_steps={process.steps}{told}).images"
    plain = f"from diffusers import DDIMPipeline\n\n{load}\n{call}"
    ddim = traits.in_diffusers and traits.levels_of == "ddim"
    return {"diffusers": plain if ddim else None, "genbo": own.format('[""]')}


NAMES = {"weight": "guidance_scale", "rescale": "guidance_rescale"}


def diffusers_arguments(
    said: Mapping[str, Any], stops: Mapping[str, list[float]] | None = None, names: Mapping[str, str] = NAMES
) -> str | None:
    """The arguments of a diffusers call, or None where it has none for these values; `stops` take the steps' place.

    `names` are those that the pipeline's call has for our numbers.
    """
    rule, told = said["guidance"], said.get("told", {})
    numbers = {name: value for name, value in {**rule, **told}.items() if name != "kind"}
    known = class_of("genbo.diffusion.guidance", rule["kind"]).traits.in_diffusers
    if not known or not all(isinstance(n, float) for n in numbers.values()):
        return None
    if rule["weight"] == 1:
        numbers = {"weight": 1.0, **told} if "weight" in names else told  # the rule does nothing
    elif rule["weight"] < 1:
        return None  # diffusers switches guidance off there
    if not set(numbers) <= set(names):
        return None
    values = [f"{names[name]}={float(f'{number:.7g}')}" for name, number in numbers.items()]
    eta = [f"eta={said['sampler']['eta']}"] if said["sampler"].get("eta") else []
    steps = [
        f"{name}={numbers}" for name, numbers in (stops or {"num_inference_steps": said["sampler"]["steps"]}).items()
    ]
    return ", ".join([*values, *steps, *eta])
