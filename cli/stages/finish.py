"""The end of a run: `tuned/`, `report.json` and `report.html`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from genbo.cli.run.atomic import folder_in_place
from genbo.cli.run.faults import fault
from genbo.cli.run.json_files import strict, write_json
from genbo.cli.run.redaction import without_secrets
from genbo.cli.run.versions import version
from genbo.cli.stages.context import Context, names_of

if TYPE_CHECKING:
    from genbo.cli.plan.counts import Plan
    from genbo.cli.report.lambda_summary import Searched
    from genbo.cli.report.summary import HeldOut, Tuned
    from genbo.diffusion.process import Process

Document = dict[str, Any]


def conclude(
    context: Context,
    tuned: Tuned,
    held_out: HeldOut | None,
    cost: Mapping[str, float],
    status: str,
    reason: str | None,
    search: Searched | None = None,
    process: Process | None = None,
) -> Document:
    """`tuned/`, `report.json` and `report.html`; `process` is what draws tuned samples, where it is known better."""
    from genbo.cli.report import summary, usage
    from genbo.cli.report.html import write_report

    run, a = context.run, context.assembled
    process = process or a.at(tuned.choices).at(tuned.phi)
    found = summary.Findings(
        problem=a.problem,
        tuned_problem=a.at(tuned.choices),
        names=names_of(a),
        records=run.journal.records,
        tuned=tuned,
        held_out=held_out,
        cost=cost,
        planned=planned_cost(context.planned),
        estimator={"kind": a.estimator_name, "reason": a.estimator_reason},
        job=context.job.document(),
        environment=run.environment,
        reproduce=context.reproduce,
        status=status,
        reason=reason,
        notes=(*context.notes, *_drawn_otherwise(context, process)),
        search=search,
        left_out=context.job.left_out if held_out is not None or search is not None else (),
    )
    result = {**summary.document_of(found), "use": usage.use_of(process, f"{context.job.output}/tuned")}
    result["cost"] |= {
        "planned_at_least": context.planned.total_at_least.document(),
        "inexact": context.planned.inexact,
    }
    document = without_secrets(strict(result))
    if document["held_out"] is not None:
        weights = search.weights if search else None
        export_tuned(context, weights.tuned if weights else process, document)
    fault("report.begin")
    write_json(run.path / "report.json", document)
    fault("report.json")
    write_report(run.path, document)
    fault("report.html")
    return dict(document)


def counted(cost: Mapping[str, int], *parts: Mapping[str, int]) -> dict[str, int]:
    """The counts that every part of a run has kept; one that was begun by an earlier genbo may lack some."""
    return {key: value for key, value in cost.items() if all(key in part for part in parts if part)}


def _drawn_otherwise(context: Context, process: Process) -> Iterator[str]:
    """Where a reader's own diffusers would draw something else: a scheduler that was replaced, what it cannot do."""
    from genbo.diffusion.tuned import beyond_diffusers

    remarks = context.job.model.traits.remarks(process.sampler, 1.0)
    yield from (f"Of the scheduler: {remark}." for remark in remarks)
    if beyond := beyond_diffusers(process):
        yield f"A plain diffusers call does not draw what was judged ({'; '.join(beyond)}): genbo.load does."


def planned_cost(planned: Plan) -> dict[str, float]:
    """The most, where the plan is a range."""
    return dict(planned.total.document())


def export_tuned(context: Context, process: Process, document: Document) -> None:
    from genbo.diffusion.tuned import export, export_bytes

    held_out = document["held_out"]
    about = {
        "genbo": version(),
        **{
            side: {name: value[side] for name, value in {**document["phi"], **document.get("choices", {})}.items()}
            for side in ("tuned", "start")
        },
        "held_out": {key: held_out[key] for key in ("verdict", "difference", "interval", "samples", "prompts")},
        "reproduce": document["reproduce"],
    }
    with folder_in_place(context.run.path / "tuned", export_bytes(process)) as beside:
        export(process, beside, about)
