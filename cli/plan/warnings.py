"""What is worth saying of a job before it runs, a sentence each."""

from __future__ import annotations

from collections.abc import Iterator

from genbo.cli.job.compatibility import remarks
from genbo.cli.job.job import NO_PROMPT, Job
from genbo.cli.plan.lambda_counts import held_out_bank
from genbo.diffusion.kinds import declared
from genbo.rewards._tokens import sentences
from genbo.rewards._traits import RewardTraits

FEW = 4  # numbers of a guidance schedule that a usual budget determines


def of_ascent(job: Job) -> Iterator[str]:
    """Of a job that follows a gradient."""
    yield from _of_any(job)
    if job.budget.samples < len(set(job.prompts)):
        yield f"each step draws {job.budget.samples} of the {len(set(job.prompts))} prompts"
    if job.evaluate.samples < len(set(job.held_out)):
        held_out = len(set(job.held_out))
        yield f"only {job.evaluate.samples} of the {held_out} held-out prompts will be used; raise evaluate.samples"
    if job.search is None and job.budget.steps:
        yield from _on_a_bound(job)
        yield from _better_otherwise(job)
    if job.choices and not job.parameters and job.search is not None and job.search.kind != "grid":
        yield f"choices alone are tuned: {job.search.kind} may try one twice, and search: grid tries each once"
    if job.search is not None and job.auto_search is not None and job.auto_search[0] == job.search.kind:
        size = f"{job.budget.steps} candidates of {job.budget.samples} samples"
        yield f"search: {job.search.kind} is what auto takes here: {size}; write optimizer: newton to follow gradients"


def _on_a_bound(job: Job) -> Iterator[str]:
    """Numbers of the guidance that start on a bound, where they hardly move."""
    from genbo.bilevel.tunables.guidance import NUDGED, Guidance

    for name, tunable in job.tune.items():
        if isinstance(tunable, Guidance) and set(tunable.bounds) & set(tunable.numbers(job.steps)):
            part = f"{NUDGED:.0%} of the range"
            yield f"tune.{name}: the start is on a bound; the first step stands {part} inside, where it can move"


def _better_otherwise(job: Job) -> Iterator[str]:
    """What was ahead of the job's way to tune where both were measured (benchmarks/README.md, against search)."""
    from genbo.bilevel.tunables.guidance import Guidance

    for name, tunable in job.tune.items():
        if isinstance(tunable, Guidance) and tunable.shape == "per_step" and tunable.size(job.steps) > FEW:
            many = tunable.size(job.steps)
            yield f"tune.{name}: {many} free numbers; with small budgets shape: {{knots: 2}} reached more (benchmarks)"
    if job.training is not None and not job.training.coupled:
        yield "search: gp was ahead of gradients for the schedule of a network on digits (benchmarks); compare the two"


def of_lambda_search(job: Job) -> Iterator[str]:
    """Of a job that searches for lambda."""
    yield from _of_any(job)
    prompts, samples = held_out_bank(job)
    if len(prompts) < len(job.held_out):
        listed = f"{len(prompts)} of the {len(job.held_out)} held-out prompts"
        yield f"lambda is judged on {samples} samples each of {listed}; more evaluate.samples are more prompts"


def _too_long(job: Job) -> Iterator[str]:
    """Prompts whose ends are not read, by the text encoders of the model and of the rewards."""
    rewards = (*job.reward, *job.keep, *(job.lower.reward if job.lower else ()))
    model, scorers = job.model.traits, [declared(RewardTraits, reward.options) for reward in rewards]
    readers = [*model.readers(), *(reader for scorer in scorers for reader in scorer.readers())]
    yield from sentences(readers, (*job.prompts, *job.held_out))
    if negative := model.negative_prompt:
        for reader in model.readers():
            if reader.too_long([negative]):
                yield f"negative_prompt is longer than {reader.limit} tokens; its end is ignored (by {reader.name})"


def _of_any(job: Job) -> Iterator[str]:
    yield from remarks(job)
    if name := job.model.traits.hub_id:
        yield f"{name} is not here: the run begins by fetching it (or `hf download {name}`)"
    if job.budget.steps == 1 and not job.tilts:
        yield "budget.steps is 1: the last step is measured and not taken, so nothing moves"
    if job.prompts == NO_PROMPT:
        return
    yield from _too_long(job)
    scored = (*job.reward, *job.keep)
    reads = any(declared(RewardTraits, each.options).reads_prompts for each in scored)
    if job.model.takes_no_prompt and not reads:
        yield "this model takes no prompt, and no reward reads one: prompts change nothing, so delete them"
    if job.evaluate.prompts is None:
        yield "evaluate.prompts is not set: the tuning prompts are evaluated with fresh seeds"
    elif job.left_out:
        from genbo.cli.report.words import overlap

        yield overlap(job.left_out)
    elif not job.held_out_is_fresh_prompts:
        yield "every held-out prompt is tuned on too: the verdict is on new seeds of them, not on new prompts"
