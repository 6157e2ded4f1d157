"""genbo check: a job's mistakes, or the job with every default, and the plan."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from genbo.cli.errors import UserMistake
from genbo.cli.job.job import Job, read_job
from genbo.cli.job.user_code import allowed, announce
from genbo.cli.plan.counts import plan, record_speed

if TYPE_CHECKING:
    from genbo.cli.stages.build import Assembled

WARM = 20.0  # seconds after which a first call is taken as it is, without a second one


def run(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    as_json: bool = False,
    measure: bool = False,
    allow_code: Sequence[Path] = (),
) -> int:
    """The command; raises JobMistakes."""
    code = allowed(allow_code)
    announce(code)
    job = read_job(path, overrides, code)
    _look_at_data(job)
    if measure:
        seconds, rows = measured(job)
        record_speed(job, rows, seconds)
        print(f"measured: {1000 * seconds / rows:.3g} ms an image forward", file=sys.stderr)
    if as_json:
        document = {"job": job.document(), "digest": job.digest(), "plan": plan(job).document()}
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        show(job)
    return 0


def _look_at_data(job: Job) -> None:
    """Raises `ArtifactRefused` where the images of `data:` cannot be read, or are not what the network can learn."""
    from genbo.cli.stages.endings import named

    if job.data is None:
        return
    with named():
        images = job.data.open().train
        if learning := job.model.learning:
            learning.open(images)


def show(job: Job) -> None:
    """The resolved job as YAML, then the plan as a table."""
    from rich.console import Console

    from genbo.cli.run.job_file import to_yaml

    console = Console(soft_wrap=True)
    console.print("Job", style="bold")
    text = to_yaml(job.document()).decode()
    console.print("".join(line for line in text.splitlines(keepends=True) if line[:1] != "#"), markup=False)
    plan(job).show(console)


def measured(job: Job) -> tuple[float, int]:
    """Seconds and image forwards of one gradient on one call's worth of samples, after one to warm up."""
    from genbo.cli.stages.build import assemble

    assembled = assemble(job)
    meter = assembled.problem.process.meter
    for attempt in range(2):
        before, began = meter.image_forwards, time.perf_counter()
        _gradient(job, assembled)
        seconds, rows = time.perf_counter() - began, meter.image_forwards - before
        if attempt == 0 and seconds > WARM:
            break
    return seconds, rows


def _gradient(job: Job, assembled: Assembled) -> None:
    import torch

    if job.tilts:
        return _law(job, assembled)
    from genbo.bilevel.loop import begin
    from genbo.bilevel.problem import SamplesAt, samples_per_call
    from genbo.diffusion.seed import batch_of

    problem, seed = assembled.problem, assembled.seed.child("measure")
    members = max(map(len, assembled.estimator.cost(problem.parameters).draws))
    samples = max(2, min(job.budget.samples, samples_per_call(problem.process.batch, members)))
    weights = [*(weight for weight, _ in problem.rewards), *(0.0 for _ in problem.constraints)]
    batch = batch_of(assembled.prompts, samples, seed)
    at = SamplesAt(begin(problem).u, batch, torch.tensor(weights, dtype=torch.float64), seed)
    estimate = assembled.estimator(problem, at)
    estimate.grad.tolist()  # waits for the device
    return None


def _law(job: Job, assembled: Assembled) -> None:
    """A call's worth of what a search for lambda draws: a bank, a guided law, or the law of a short training."""
    from genbo.bilevel.regularization.bank_sampler import Sampled
    from genbo.bilevel.regularization.context import LawContext

    a, process = assembled, assembled.problem.process
    if a.lower.traits.on_paper:
        raise UserMistake("nothing to measure: this search draws no samples, everything is known on paper")
    prompts = a.prompts[: process.batch]
    source = Sampled(process, prompts, a.problem.rewards, a.lower_rewards, a.seed.child("measure"), samples_too=True)
    samples = max(2, min(a.lower.drawing.samples, process.batch // len(prompts)))
    short = a.lower.shortened(samples)
    banks = () if short.drawing.bank == "none" else (source.draw(0, samples, None),)
    if not short.traits.free:
        short.begin(LawContext(source, banks, a.seed))(a.strength.start)
