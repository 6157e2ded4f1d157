"""Whether `model.steer` is compatible with the rest of a job."""

from __future__ import annotations

from collections.abc import Iterator

from genbo.cli.job.resolved import Job
from genbo.cli.job.yaml_nodes import Node


def steered(job: Job, root: Node) -> Iterator[tuple[Node, str, str | None]]:
    """Steering needs a model that steps and has a gradient, and strength something that is steered."""
    if job.model.steer is None:
        if "steer.strength" in job.tune:
            message = "nothing is steered; add model.steer: {reward: ..., strength: 1.0}, or delete this"
            yield root.find(["tune", "steer.strength"]), message, None
        return
    where = root.find(["model", "steer"])
    if not job.model.traits.differentiable:
        yield where, f"{job.model.kind} draws by its own call, which cannot be steered; delete this", None
    if job.tilts:
        message = "lambda is searched for with the model as it is; delete this, or take lower: {kind: guided}"
        yield where, message, None
    elif job.trains:
        yield where, "steering is for a pretrained model, and this job trains its own; delete this", None
