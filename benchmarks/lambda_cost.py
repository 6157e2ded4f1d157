"""Network evaluations of a whole search for lambda, counted, beside those of the method's released estimator.

    python -m benchmarks.lambda_cost [lambda-steps]

The released code draws guided samples anew at every step of lambda: 10,000 evaluations of the network, each there and
back. Here one bank, drawn without gradients, answers for every lambda. The samples are really drawn, by the sampler
and the settings of examples/regularization.yaml, on an exact world in place of the network: a count does not depend on
which network is counted.
"""

from __future__ import annotations

import sys
from pathlib import Path

from genbo.bilevel.estimators.covariance import Covariance
from genbo.bilevel.lower.reweight import Reweight
from genbo.bilevel.optimizers.bisection import Bisection
from genbo.bilevel.regularization.bank_sampler import Sampled
from genbo.bilevel.regularization.search import walk
from genbo.bilevel.tunables.regularization import Regularization
from genbo.cli.job.job import read_job
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.process import process_of
from genbo.diffusion.seed import Seed
from genbo.rewards.linear import Linear
from genbo.rewards.quadratic import Quadratic

RELEASED = 10_000  # network evaluations with gradients for one step of lambda
STEPS = 500  # of lambda, as the released settings have it
EXAMPLE = Path(__file__).parent.parent / "examples" / "regularization.yaml"


def main(steps: int = STEPS) -> None:
    job = read_job(EXAMPLE)
    assert job.lower is not None
    prompts = [f"prompt {n}" for n in range(len(job.prompts))]
    world = Gaussian(means={prompt: [0.01 * n] for n, prompt in enumerate(prompts)}, std=1.0)
    process = process_of(world.open(), job.model.sampler.options, job.model.guidance.options, batch=256)
    upper, lower = [(1.0, Quadratic(1.5, 0.5).open())], [(1.0, Linear().open())]
    bank = Sampled(process, prompts, upper, lower, Seed(0)).draw(0, job.lower.options.samples, None)
    drawn = process.meter.image_forwards
    taken = 0

    def solve(lam: float, gamma: float | None = None):  # type: ignore[no-untyped-def]
        nonlocal taken
        taken += 1
        return Reweight().solve(bank, lam, gamma)

    while taken < steps:  # whatever path lambda takes
        for _ in walk(solve, Covariance(), Regularization(start=3.0, bounds=(0.3, 30)), Bisection(), steps - taken):
            pass
    later = process.meter.image_forwards - drawn
    ratio = RELEASED * steps / drawn
    print(
        f"{len(prompts)} prompts, {bank.samples} samples of each, {process.steps} sampling steps; {taken} lambda-steps"
    )
    print(f"network evaluations: {drawn:,} for the bank, {later:,} for all steps after it, none with gradients")
    print(f"released estimator:  {RELEASED * steps:,}, all with gradients: {ratio:,.0f} times as many")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
