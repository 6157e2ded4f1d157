"""Whether the keys of a job are compatible with each other; each of them has been read by itself before.

Each check yields its mistakes: the node, a sentence with the remedy, and the key where it is not the node's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from genbo.bilevel.protocols import cannot_follow, of_rule
from genbo.bilevel.tunables.noise_schedule import NoiseSchedule
from genbo.bilevel.tunables.timesteps import Timesteps
from genbo.cli.job.catalog import nearest
from genbo.cli.job.choice_misfits import chosen
from genbo.cli.job.judge_misfits import evaluated, judged, opinions
from genbo.cli.job.kind import Kind
from genbo.cli.job.resolved import Job
from genbo.cli.job.search_misfits import searched
from genbo.cli.job.sections.evaluate import PAIRS
from genbo.cli.job.sections.prompts import NO_PROMPT
from genbo.cli.job.steer_misfits import steered
from genbo.cli.job.yaml_nodes import Node
from genbo.diffusion.kinds import declared
from genbo.diffusion.teacher import Lesson
from genbo.rewards._traits import RewardOptions, RewardTraits
from genbo.schedules.schedule import divided

Misfit = tuple[Node, str, str | None]


def misfits(job: Job, root: Node) -> Iterator[Misfit]:
    """Every incompatibility in a job whose keys are right by themselves."""
    for check in (suits, times, taught, learned, of_sets, judged, opinions, pooled, aimed, evaluated, steered):
        yield from check(job, root)
    found = [*two_levels(job, root), *chosen(job, root, (suits, times, taught, learned))]
    yield from found or [*searched(job, root), *refusals(job, root)]


def pooled(job: Job, root: Node) -> Iterator[Misfit]:
    """A pool must hold at least as many samples as a step takes."""
    samples, pool = job.budget.samples, job.budget.pool
    if pool is not None and pool < samples and not job.tilts:
        yield (
            root.find(["budget", "pool"]),
            f"{samples} samples a step cannot come from a pool of {pool}; make it larger",
            None,
        )


def aimed(job: Job, root: Node) -> Iterator[Misfit]:
    """Whether there are worst prompts, which is what an objective other than the mean needs."""
    if job.objective.is_mean:
        return
    node, prompts, held_out = root.find(["objective"]), len(set(job.prompts)), len(set(job.held_out))
    sets = [r.kind for _, rewards in _listed(job)[:2] for r in rewards if traits_of(r).of_sets]
    reasons = {
        "a search for lambda maximises the mean over the prompts; delete this": job.tilts,
        "a network in training is tuned for the mean over its data; delete this": job.trains,
        "a search compares mean rewards, so delete search, or delete this": job.search is not None,
        "the model takes no prompts, so there are no worst ones; delete this": job.prompts == NO_PROMPT,
        "there is one prompt, so there are no worst ones; list more under prompts, or delete this": prompts == 1,
        f"{sets[0] if sets else ''} scores all samples together, so no prompt has a score of its own; take another "
        "reward, or delete this": bool(sets),
        "the worst prompts are tuned for without constraints; delete keep, or delete this": bool(job.keep),
    }
    if why := next((why for why, holds in reasons.items() if holds), None):
        yield node, why, None
        return
    if job.chosen().options.cost(job.parameters).idle_steps:  # what it compares is another step's
        message = "one_point compares two steps, in which the prompts have different weights; set points: central"
        yield root.find(["estimator"]), message, None
    if job.optimizer.kind == "newton":
        message = "newton needs the same objective at every step, and the weights of the prompts change; take adam"
        yield root.find(["optimizer"]), message, None
    if held_out == 1:
        yield root.find(["evaluate", "prompts"]), "one prompt has no worst ones beside it; list more", None
    elif job.evaluate.samples < 2 * held_out:
        message = (
            f"{job.evaluate.samples} samples of {held_out} prompts cannot show which prompts are the worst: that takes "
            f"two of each, better eight; set it to {2 * held_out} or more"
        )
        yield root.find(["evaluate", "samples"]), message, "evaluate.samples"


def refusals(job: Job, root: Node) -> Iterator[Misfit]:
    """Why the estimator or the optimizer cannot work in this job."""
    facts = job.facts()
    reasons = {
        "estimator": cannot_follow(job.chosen().options, facts),
        "optimizer": job.optimizer.options.why_not(facts),
    }
    for part, reason in reasons.items():
        if reason:
            yield root.find([part]), reason, part


def suits(job: Job, root: Node) -> Iterator[Misfit]:
    """Why the model cannot be used with this sampler, this guidance rule or these tunables."""
    model = job.model
    for key, reason in model.traits.misfits(model.sampler.options, model.guidance.options, frozenset(job.tune)):
        at = ["tune"] if key == "tune" else ["model", key]
        yield root.find(at), reason, ".".join(at)


def times(job: Job, root: Node) -> Iterator[Misfit]:
    """Why this model's sampler cannot stop at the times of a tunable."""
    for key, tunable in job.tune.items():
        if not isinstance(tunable, Timesteps):
            continue
        at = root.find(["tune", key, "start"])
        if reason := tunable.why_not(job.steps, job.model.traits.time_range):
            yield at, reason, None


def taught(job: Job, root: Node) -> Iterator[Misfit]:
    """A teacher starts from the noise of each sample, so samples need one noise each and a deterministic sampler."""
    for key, rewards in _listed(job):
        kinds = [r.kind for r in rewards if traits_of(r).lesson]
        if kinds and job.tilts:
            message = (
                "compares samples of the same noise, but a search for lambda reweights samples; take another reward"
            )
            yield root.find(key), f"{kinds[0]} {message}", None
        elif kinds and job.model.sampler.options.stochastic:
            remedy = "set eta: 0" if "eta" in vars(job.model.sampler.options) else "take ddim, euler or dpmpp"
            message = f"compares two samplings from the same noise, but this sampler adds noise at its steps; {remedy}"
            yield root.find(["model", "sampler"]), f"{kinds[0]} {message}", None
        else:
            yield from _untaught(job, root.find(key), [r for r in rewards if traits_of(r).lesson])


def _untaught(job: Job, node: Node, rewards: Sequence[Kind[RewardOptions]]) -> Iterator[Misfit]:
    """Why the model's own scheduler cannot draw the samples of a teacher."""
    undrawable = job.model.traits.undrawable
    own = set(undrawable(job.model.sampler.options))
    for reward in rewards:
        lesson = traits_of(reward).lesson
        assert lesson is not None
        for reason in undrawable(Lesson(*lesson).by(job.model.sampler.options)):
            if reason not in own:  # of the job's own sampler, which has been named
                yield node, f"{reward.kind}: {reason}", None


def remarks(job: Job) -> Iterator[str]:
    """Warnings about how this model is sampled, in a job without mistakes."""
    yield from job.model.traits.remarks(job.model.sampler.options, lowest_weight(job))


def lowest_weight(job: Job) -> float:
    """The least guidance weight that may occur: the model's, or the lower end of what is tuned."""
    tuned = [tunable for tunable in job.tune.values() if tunable.rule_option == "weight"]
    listed = [n for tunable in tuned for n in (*tunable.numbers(job.steps), of_rule(tunable).bounds[0])]
    weight = job.model.guidance.options.weight
    return float(min(listed or (weight if isinstance(weight, list) else [weight])))


def learned(job: Job, root: Node) -> Iterator[Misfit]:
    """A network of one's own needs a lower level that trains it and data; a noise schedule needs both."""
    learns, schedule = job.model.learns, job.tune.get("noise_schedule")
    if learns and job.lower is None:
        message = "missing; a network of your own has to be trained: write lower: {kind: denoising}"
        yield root, message, "lower"
    if learns and job.data is None:
        yield root, "missing; say what the network learns, like data: digits", "data"
    if job.trains and not learns:
        message = "this lower level trains a network of your own; write model: {kind: unet}"
        yield root.find(["lower"]), message, None
    if learns:
        yield from _what_it_is_told(job, root)
    if learns and job.tilts:
        message = (
            "this lower level is for a pretrained model; train a network of your own with lower: {kind: denoising}"
        )
        yield root.find(["lower"]), message, None
    if job.trains and schedule is None:
        yield (
            root.find(["lower"]),
            "the network is trained, but no schedule is tuned; add tune: {noise_schedule: {}}, or delete this",
            None,
        )
    if schedule is not None and not job.trains and not learns:
        message = "a noise schedule is tuned with a network that is trained: write model: {kind: unet} and "
        yield root.find(["tune", "noise_schedule"]), f"{message}lower: {{kind: denoising}}", None
    training = job.training
    if not isinstance(schedule, NoiseSchedule) or training is None:
        return
    if reason := schedule.why_not(training.prediction):
        yield root.find(["tune", "noise_schedule"]), reason, None
    table, steps = training.train_steps, job.model.sampler.options.steps
    if training.conditioning == "index" and divided(table, steps) != table:
        message = (
            f"a network conditioned on the step's index stops at whole steps only, and {steps} sampler steps do not "
            f"divide {table}; set it to {divided(table, steps)}"
        )
        yield root.find(["lower", "train_steps"]), message, "lower.train_steps"


def _what_it_is_told(job: Job, root: Node) -> Iterator[Misfit]:
    """Guidance and prompts must suit a network that takes the classes of its data, or nothing."""
    classes = job.data.classes if job.data and job.model.traits.classes else ()
    written = [
        (["prompts"], job.prompts),
        (["evaluate", "prompts"], job.held_out if job.evaluate.prompts else NO_PROMPT),
    ]
    if not job.model.traits.classes:
        message = "this network takes no prompt or class, so guidance has no effect; "
        if job.model.guidance.options.weight != 1.0:
            yield root.find(["model", "guidance"]), f"{message}set it to 1, or classes: true", None
        if "guidance" in job.tune:
            yield root.find(["tune", "guidance"]), f"{message}delete it, or set model.classes: true", None
    for at, texts in written:
        strangers = [text for text in texts if text not in classes]
        if texts == NO_PROMPT or not strangers:
            continue
        if not job.model.traits.classes:
            yield root.find(at), "this network takes no prompts; delete them, or set model.classes: true", None
        elif classes:
            message = f"the data have no class {strangers[0]!r}{nearest(strangers[0], classes)}"
            yield root.find(at), message, None


def traits_of(reward: Kind[RewardOptions]) -> RewardTraits:
    """What a reward declares of itself."""
    return declared(RewardTraits, reward.options)


def _listed(job: Job) -> list[tuple[list[str], Sequence[Kind[RewardOptions]]]]:
    """Every reward, by the key that it stands under."""
    below = job.lower.reward if job.lower else ()
    return [
        (["reward"], job.reward),
        (["keep"], job.keep),
        (["lower"], below),
        (["evaluate", "judges"], job.evaluate.judges),
    ]


def _overlap(job: Job) -> str:
    """What comes before a sentence about the number of held-out prompts, where some are left out of them."""
    return f"without the {len(job.left_out)} that are tuned on too, " if job.left_out else ""


def of_sets(job: Job, root: Node) -> Iterator[Misfit]:
    """Distances to data need data, and samples that may be judged together."""
    found = [(key, r) for key, rewards in _listed(job) for r in rewards if traits_of(r).of_sets]
    for key, reward in found:
        if job.tilts and key != ["evaluate", "judges"]:
            message = "scores all samples together, but a search for lambda weighs each by itself; take another reward"
            yield root.find(key), f"{reward.kind} {message}, or make it a judge of the tuned weights", None
        elif job.tilts and job.finetune is None:
            message = (
                "scores all samples together, so in a search for lambda it judges tuned weights alone; add finetune"
            )
            yield root.find(key), f"{reward.kind} {message}", None
        elif not traits_of(reward).needs_data:
            continue
        elif job.data is None and not job.model.learns:
            message = (
                f"missing; {reward.kind} compares samples with data: name a folder of images, like data: my-images"
                + ", or write data: pretrained" * job.tilts
            )
            yield root, message, "data"
            break
        elif job.data and job.data.of_model and not job.tilts and not job.model.learns:
            message = "pretrained is for a search for lambda, which leaves the model as it is; name a folder of images"
            yield root.find(["data"]), message, None
            break
        elif job.data and not job.data.of_model and not (job.data.validation and job.data.test):
            message = "must be more than 0: a distance is optimised on one share of the data and evaluated on another"
            yield root.find(["data"]), f"validation and test {message}", None
    drawn, samples = len(dict.fromkeys(job.held_out)), job.evaluate.samples
    samples = min(samples, PAIRS) if job.tilts else samples
    if found and drawn < samples and samples % drawn:
        message = f"{samples} samples cannot be shared evenly among {drawn} prompts, as a distance needs"
        here = f"{_overlap(job)}{message}"
        yield root.find(["evaluate", "samples"]), f"{here}; take {samples - samples % drawn}", "evaluate.samples"
    wants = [reward for _, reward in found if traits_of(reward).needs_data]
    if job.data is not None and job.data.of_model and job.model.learns:
        message = "a network of your own has no pretrained samples to learn from; name a folder of images"
        yield root.find(["data"]), message, None
    if job.data is not None and not wants and not job.model.learns:
        yield root.find(["data"]), "nothing in this job uses data; delete it, or add a reward such as kid", None


def two_levels(job: Job, root: Node) -> Iterator[Misfit]:
    """Whether lambda is tuned with a lower level to tune it for, or neither is there."""
    lower, name, written = job.lower if job.tilts else None, "regularization", root.value
    assert isinstance(written, dict)
    if job.trains:
        if name in job.tune:
            message = "lambda belongs to a lower level that tilts samples; write lower: {kind: reweight, reward: ...}"
            yield root.find(["tune", name]), message, None
        return
    if lower is None and "finetune" in written:
        yield root.find(["finetune"]), "no lower level to tune weights for; add lower:, or delete this", None
    if lower is None:
        if name in job.tune:
            message = "missing; lambda belongs to a lower level: write lower: {kind: reweight, reward: ...}"
            yield root, message, "lower"
        return
    if name not in job.tune:
        yield (
            root.find(["lower"]),
            "no lambda is tuned for this lower level; add tune: {regularization: {}}, or delete this",
            None,
        )
    elif others := [key for key in job.tune if key != name]:
        message = f"lambda is searched for alone; tune {' and '.join(others)} in a job of its own, first"
        yield root.find(["tune"]), message, None
    if job.keep and not lower.options.traits.free:
        message = (
            "this lower level has no samples that all lambdas share, so no level can be kept over them; take lower: "
        )
        yield root.find(["keep"]), f"{message}{{kind: reweight}}, or delete this", None
    if job.budget.precision and not (lower.options.traits.free and lower.options.drawing.samples):
        message = "is for a lower level with one bank for every lambda; take lower: {kind: reweight}, or delete this"
        yield root.find(["budget", "precision"]), message, None
    if "optimizer" in written and lower.options.traits.free:
        message = "the whole curve over lambda is computed, so no optimizer is used; delete this"
        yield root.find(["optimizer"]), message, None
    levels = [[(r.weight, r.options) for r in rewards] for rewards in (job.reward, lower.reward)]
    levels += [[(1.0, keep.options)] for keep in job.keep]
    if reason := lower.options.why_not(job.model.options, *levels):
        yield root.find(["lower"]), reason, None
