"""Whether the parts of a job fit each other; `reading` reads each by itself.

Each look gives what it finds: the node, the sentence with its way out, and the key where that is another than the
node's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from genbo.bilevel.protocols import cannot_follow
from genbo.bilevel.tunables.timesteps import Timesteps
from genbo.cli.job.catalog import nearest
from genbo.cli.job.kind import Kind
from genbo.cli.job.resolved import Job
from genbo.cli.job.sections.prompts import NO_PROMPT
from genbo.cli.job.yaml_nodes import Node
from genbo.cli.run.seals import sha256_of
from genbo.diffusion.teacher import Lesson
from genbo.schedules.schedule import divided

Misfit = tuple[Node, str, str | None]


def misfits(job: Job, root: Node) -> Iterator[Misfit]:
    """All of them, of a job whose every part is right."""
    for look in (suits, times, taught, learned, of_sets, judged, opinions, pooled):
        yield from look(job, root)
    found = list(two_levels(job, root))
    yield from found or refusals(job, root)


def pooled(job: Job, root: Node) -> Iterator[Misfit]:
    """A step's samples come from the pool, where there is one."""
    samples, pool = job.budget.samples, job.budget.pool
    if pool is not None and pool < samples and not job.tilts:
        yield (
            root.find(["budget", "pool"]),
            f"{samples} samples a step cannot come from a pool of {pool}; make it larger",
            None,
        )


def refusals(job: Job, root: Node) -> Iterator[Misfit]:
    """What the estimator and the optimizer say of the rest."""
    facts = job.facts()
    reasons = {
        "estimator": cannot_follow(job.chosen().options, facts),
        "optimizer": job.optimizer.options.why_not(facts),
    }
    for part, reason in reasons.items():
        if reason:
            yield root.find([part]), reason, part


def suits(job: Job, root: Node) -> Iterator[Misfit]:
    """Whether this model can be sampled, guided and tuned so."""
    misfits = getattr(job.model.options, "misfits", None)
    if misfits is None:
        return
    for key, said in misfits(job.model.sampler.options, job.model.guidance.options, frozenset(job.tune)):
        at = ["tune"] if key == "tune" else ["model", key]
        yield root.find(at), said, ".".join(at)


def times(job: Job, root: Node) -> Iterator[Misfit]:
    """Whether the times of a tunable are such as this model's sampler can stop at."""
    for key, tunable in job.tune.items():
        if not isinstance(tunable, Timesteps):
            continue
        at = root.find(["tune", key, "start"])
        if reason := tunable.why_not(job.steps, getattr(job.model.options, "time_range", None)):
            yield at, reason, None


def taught(job: Job, root: Node) -> Iterator[Misfit]:
    """A teacher draws the very noise of each sample again, so there must be such a noise, and no other."""
    for key, rewards in _listed(job):
        kinds = [r.kind for r in rewards if hasattr(r.options, "lesson")]
        if kinds and job.tilts:
            said = "knows samples by their noise, and a search for lambda knows them by weights; take another reward"
            yield root.find(key), f"{kinds[0]} {said}", None
        elif kinds and job.model.sampler.options.stochastic:
            remedy = "set eta: 0" if hasattr(job.model.sampler.options, "eta") else "take ddim, euler or dpmpp"
            said = f"compares two ways from the same noise, and this sampler draws more on its way; {remedy}"
            yield root.find(["model", "sampler"]), f"{kinds[0]} {said}", None
        else:
            yield from _untaught(job, root.find(key), [r for r in rewards if hasattr(r.options, "lesson")])


def _untaught(job: Job, node: Node, rewards: Sequence[Any]) -> Iterator[Misfit]:
    """What the model's own scheduler cannot draw of a teacher."""
    undrawable = getattr(job.model.options, "undrawable", None)
    if undrawable is None:
        return
    own = set(undrawable(job.model.sampler.options))
    for reward in rewards:
        for said in undrawable(Lesson(*reward.options.lesson).by(job.model.sampler.options)):
            if said not in own:  # of the job's own sampler, which has been named
                yield node, f"{reward.kind}: {said}", None


def remarks(job: Job) -> Iterator[str]:
    """What is worth saying of how this model is drawn, where nothing is wrong with it."""
    found = getattr(job.model.options, "remarks", None)
    if found is not None:
        yield from found(job.model.sampler.options, lowest_weight(job))


def lowest_weight(job: Job) -> float:
    """The least guidance weight that may occur: of the model, or of what is tuned of it."""
    tuned = [tunable for tunable in job.tune.values() if tunable.rule_option == "weight"]
    listed = [n for tunable in tuned for n in (*tunable.numbers(job.steps), tunable.bounds[0])]
    weight = getattr(job.model.guidance.options, "weight", 1.0)
    return float(min(listed or (weight if isinstance(weight, list) else [weight])))


def learned(job: Job, root: Node) -> Iterator[Misfit]:
    """A network of one's own, what trains it, on what, and what of it is tuned: all of them or none."""
    learns, schedule = hasattr(job.model.options, "learns"), job.tune.get("noise_schedule")
    if learns and job.lower is None:
        message = "missing; a network of one's own is trained: write lower: {kind: denoising}"
        yield root, message, "lower"
    if learns and job.data is None:
        yield root, "missing; say what the network learns, like data: digits", "data"
    if job.trains and not learns:
        message = "it trains a network of one's own; write model: {kind: unet}"
        yield root.find(["lower"]), message, None
    if learns:
        yield from _what_it_is_told(job, root)
    if learns and job.tilts:
        message = "it is for a pretrained model; train a network of one's own by lower: {kind: denoising}"
        yield root.find(["lower"]), message, None
    if job.trains and schedule is None:
        yield root.find(["lower"]), "nothing tunes a schedule; add tune: {noise_schedule: {}}, or delete it", None
    if schedule is not None and not job.trains and not learns:
        message = "a noise schedule is tuned with a network that is trained: write model: {kind: unet} and "
        yield root.find(["tune", "noise_schedule"]), f"{message}lower: {{kind: denoising}}", None
    if schedule is None or not job.trains or job.lower is None:
        return
    if reason := schedule.why_not(job.lower.options.prediction):
        yield root.find(["tune", "noise_schedule"]), reason, None
    table, steps = job.lower.options.train_steps, job.model.sampler.options.steps
    if job.lower.options.conditioning == "index" and divided(table, steps) != table:
        message = (
            f"a network that is told an index stops at whole steps, and {steps} steps of the sampler do not divide "
            f"{table}; set it to {divided(table, steps)}"
        )
        yield root.find(["lower", "train_steps"]), message, "lower.train_steps"


def _what_it_is_told(job: Job, root: Node) -> Iterator[Misfit]:
    """Guidance and prompts of a network that is told the classes of its data, or nothing."""
    classes = job.data.classes if job.data and job.model.options.classes else ()
    written = [
        (["prompts"], job.prompts),
        (["evaluate", "prompts"], job.held_out if job.evaluate.prompts else NO_PROMPT),
    ]
    if not job.model.options.classes:
        message = "this network is told nothing, so guidance has nothing to strengthen; "
        if getattr(job.model.guidance.options, "weight", 1.0) != 1.0:
            yield root.find(["model", "guidance"]), f"{message}set it to 1, or classes: true", None
        if "guidance" in job.tune:
            yield root.find(["tune", "guidance"]), f"{message}delete it, or set model.classes: true", None
    for at, texts in written:
        strangers = [text for text in texts if text not in classes]
        if texts == NO_PROMPT or not strangers:
            continue
        if not job.model.options.classes:
            yield root.find(at), "this network is told nothing; delete them, or set model.classes: true", None
        elif classes:
            said = f"the data have no class {strangers[0]!r}{nearest(strangers[0], classes)}"
            yield root.find(at), said, None


def judged(job: Job, root: Node) -> Iterator[Misfit]:
    """Whether held-out samples are enough for an interval: prompts never seen are counted, or seeds of others."""
    prompts = min(len(set(job.held_out)), job.evaluate.samples)
    counted = prompts if job.held_out_is_fresh_prompts and prompts > 1 else job.evaluate.samples - prompts + 1
    if counted >= 2 or job.tilts:
        return
    said = f"{job.evaluate.samples} samples of {prompts} prompts leave no interval; draw more than one of each"
    if job.evaluate.prompts is not None and not job.held_out_is_fresh_prompts:
        said = f"every prompt here is tuned on too, so only new seeds of them can be judged: {said}, or name others"
    yield root.find(["evaluate", "samples"]), said, "evaluate.samples"


def _overlap(job: Job) -> str:
    """What comes before a sentence about the number of held-out prompts, where some are left out of them."""
    return f"without the {len(job.left_out)} that are tuned on too, " if job.left_out else ""


def opinions(job: Job, root: Node) -> Iterator[Misfit]:
    """A judge must be a reward that tuning never saw, and there must be samples for it to look at."""
    judges = job.evaluate.judges
    lower = job.lower.options if job.lower and job.tilts else None
    if judges and lower and (lower.traits.on_paper or not lower.traits.free):
        said = "look at samples, and this lower level has none that every lambda shares; take lower: {kind: reweight}"
        yield root.find(["evaluate", "judges"]), f"judges {said}, or delete them", None
    followed = [reward for reward in job.reward if reward.weight]
    for key, rewards in (("reward", followed), ("keep", job.keep), ("lower", job.lower.reward if job.lower else ())):
        for number, judge in enumerate(judges):
            if any(is_same(judge, reward) for reward in rewards):
                said = f"this is what the job is tuned by, under {key}: a judge must be one that tuning never saw"
                yield root.find(["evaluate", "judges", number]), f"{said}; take another, or delete it", None
    for number, judge in enumerate(judges):
        if any(is_same(judge, other) for other in judges[:number]):
            yield root.find(["evaluate", "judges", number]), "this judge stands here twice; delete one of them", None


WHERE = {"pretrained", "weights", "template", "preprocess"}  # options that leave the network the same


def is_same(one: Kind, other: Kind) -> bool:
    """Whether two rewards are one and the same: by their options, or by the same weights under another name."""
    if one.kind != other.kind or one.options == other.options:
        return one.kind == other.kind
    a, b = ({k: v for k, v in vars(kind.options).items() if k not in WHERE} for kind in (one, other))
    return a == b and _same_files(_weights(one.options), _weights(other.options))


def _weights(options: Any) -> Path | None:
    """The file of weights that a reward reads, where it lies here."""
    folder, file = (getattr(options, name, None) for name in ("folder", "file"))
    if isinstance(file, Path) and file.is_file():
        return file if file.suffix == ".safetensors" else None
    places = list(folder.glob("*.safetensors")) if isinstance(folder, Path) else []
    return places[0] if len(places) == 1 else None


def _same_files(a: Path | None, b: Path | None) -> bool:
    if a is None or b is None:
        return False
    return a.samefile(b) or (a.stat().st_size == b.stat().st_size and sha256_of(a) == sha256_of(b))


def _listed(job: Job) -> list[tuple[list[str], Sequence[Kind]]]:
    """Every reward, by the key that it stands under."""
    below = job.lower.reward if job.lower else ()
    return [
        (["reward"], job.reward),
        (["keep"], job.keep),
        (["lower"], below),
        (["evaluate", "judges"], job.evaluate.judges),
    ]


def of_sets(job: Job, root: Node) -> Iterator[Misfit]:
    """Distances to data need data, and samples that may be judged together."""
    found = [(key, r) for key, rewards in _listed(job) for r in rewards if hasattr(r.options, "of_sets")]
    for key, reward in found:
        if job.tilts:
            said = "is of all samples together, and a search for lambda weighs each by itself; take another reward"
            yield root.find(key), f"{reward.kind} {said}", None
        elif not getattr(reward.options, "needs_data", True):
            continue
        elif job.data is None and not hasattr(job.model.options, "learns"):
            said = f"missing; {reward.kind} compares samples with data: name a folder of images, like data: my-images"
            yield root, said, "data"
            break
        elif job.data and not (job.data.validation and job.data.test):
            said = "must be more than 0: a distance is climbed on one share of the data and judged on another"
            yield root.find(["data"]), f"validation and test {said}", None
    drawn, samples = len(dict.fromkeys(job.held_out)), job.evaluate.samples
    if found and drawn < samples and samples % drawn:
        said = f"{samples} samples of {drawn} prompts are not as many of each, and a distance counts every sample alike"
        here = f"{_overlap(job)}{said}"
        yield root.find(["evaluate", "samples"]), f"{here}; take {samples - samples % drawn}", "evaluate.samples"
    wants = [reward for _, reward in found if getattr(reward.options, "needs_data", True)]
    if job.data is not None and not wants and not hasattr(job.model.options, "learns"):
        yield root.find(["data"]), "nothing here looks at data; delete it, or take a reward such as kid", None


def two_levels(job: Job, root: Node) -> Iterator[Misfit]:
    """Whether lambda is tuned with a lower level to tune it for, or neither is there."""
    lower, name, written = job.lower if job.tilts else None, "regularization", root.value
    assert isinstance(written, dict)
    if job.trains:
        if name in job.tune:
            message = "lambda is the strength of another lower level; write lower: {kind: reweight, reward: ...}"
            yield root.find(["tune", name]), message, None
        return
    if lower is None and "finetune" in written:
        yield root.find(["finetune"]), "no lower level to tune weights for; add lower:, or delete this", None
    if lower is None:
        if name in job.tune:
            message = "missing; lambda is the strength of a lower level: write lower: {kind: reweight, reward: ...}"
            yield root, message, "lower"
        return
    if name not in job.tune:
        yield root.find(["lower"]), "nothing tunes this; add tune: {regularization: {}}, or delete it", None
    elif others := [key for key in job.tune if key != name]:
        message = f"regularization is searched by itself; tune {' and '.join(others)} in a job of its own, first"
        yield root.find(["tune"]), message, None
    if job.keep:
        message = "a search for lambda takes no constraints; give the reward a weight under reward: instead"
        yield root.find(["keep"]), message, None
    if "optimizer" in written and lower.options.traits.free:
        message = "the whole curve over lambda is known, so nothing is climbed step by step; delete this"
        yield root.find(["optimizer"]), message, None
    levels = [[(r.weight, r.options) for r in rewards] for rewards in (job.reward, lower.reward)]
    if reason := lower.options.why_not(job.model.options, *levels):
        yield root.find(["lower"]), reason, None
