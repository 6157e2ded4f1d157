"""Whether what a job is judged by is compatible with the rest of it: samples, prompts and judges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from genbo.cli.job.kind import Kind
from genbo.cli.job.resolved import Job
from genbo.cli.job.yaml_nodes import Node
from genbo.cli.run.seals import sha256_of
from genbo.diffusion.kinds import declared
from genbo.rewards._traits import RewardOptions, RewardTraits

Misfit = tuple[Node, str, str | None]


def evaluated(job: Job, root: Node) -> Iterator[Misfit]:
    """Where a job without steps, which evaluates its start, has nothing to evaluate."""
    if job.budget.steps:
        return
    where = root.find(["budget", "steps"])
    if job.tilts:
        yield where, "a search for lambda takes 1 round at least; the curve that it draws has every lambda", None
    elif job.search is not None:
        yield where, "a search without steps tries nothing; raise it, or delete search", None
    elif job.training is not None and job.training.coupled:
        yield where, "the network is trained along the steps, so at least 1 is needed; raise it", None


def judged(job: Job, root: Node) -> Iterator[Misfit]:
    """Whether held-out samples are enough for an interval: prompts never seen are counted, or seeds of others."""
    prompts = min(len(set(job.held_out)), job.evaluate.samples)
    counted = prompts if job.held_out_is_fresh_prompts and prompts > 1 else job.evaluate.samples - prompts + 1
    if counted >= 2 or job.tilts:
        return
    message = f"{job.evaluate.samples} samples of {prompts} prompts leave no interval; draw more than one of each"
    if job.evaluate.prompts is not None and not job.held_out_is_fresh_prompts:
        message = (
            f"every prompt here is tuned on too, so only new seeds of them can be judged: {message}, or name others"
        )
    yield root.find(["evaluate", "samples"]), message, "evaluate.samples"


def opinions(job: Job, root: Node) -> Iterator[Misfit]:
    """A judge must be a reward that tuning never saw, and there must be samples for it to look at."""
    judges = job.evaluate.judges
    lower = job.lower.options if job.lower and job.tilts else None
    if judges and lower and (lower.traits.on_paper or not lower.traits.free):
        message = "score samples, but this lower level has no samples that all lambdas share"
        yield (
            root.find(["evaluate", "judges"]),
            f"judges {message}; take lower: {{kind: reweight}}, or delete them",
            None,
        )
    tuned = {"reward": [reward for reward in job.reward if reward.weight], "model.steer": job.steering}
    for key, rewards in (tuned | {"keep": job.keep, "lower": job.lower.reward if job.lower else ()}).items():
        for number, judge in enumerate(judges):
            if any(is_same(judge, reward) for reward in rewards):
                message = f"the job is tuned with this reward, under {key}: a judge must be one that tuning never uses"
                yield root.find(["evaluate", "judges", number]), f"{message}; take another, or delete it", None
    for number, judge in enumerate(judges):
        if any(is_same(judge, other) for other in judges[:number]):
            yield root.find(["evaluate", "judges", number]), "this judge is listed twice; delete one of the two", None


WHERE = {"pretrained", "weights", "template", "preprocess"}  # options that leave the network the same


def is_same(one: Kind[RewardOptions], other: Kind[RewardOptions]) -> bool:
    """Whether two rewards are one and the same: by their options, or by the same weights under another name."""
    if one.kind != other.kind or one.options == other.options:
        return one.kind == other.kind
    a, b = ({k: v for k, v in vars(kind.options).items() if k not in WHERE} for kind in (one, other))
    return a == b and _same_files(_weights(one.options), _weights(other.options))


def _weights(options: RewardOptions) -> Path | None:
    """The file of weights that a reward reads, where it lies here."""
    traits = declared(RewardTraits, options)
    file = traits.weights_file
    if file is not None and file.is_file():
        return file if file.suffix == ".safetensors" else None
    places = list(traits.folder.glob("*.safetensors")) if traits.folder is not None else []
    return places[0] if len(places) == 1 else None


def _same_files(a: Path | None, b: Path | None) -> bool:
    if a is None or b is None:
        return False
    return a.samefile(b) or (a.stat().st_size == b.stat().st_size and sha256_of(a) == sha256_of(b))
