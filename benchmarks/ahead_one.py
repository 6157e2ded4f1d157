"""One smooth number against a grid, with the luck of the grid taken out: the optimum lies elsewhere in every world.

    python -m benchmarks.ahead_one [--seeds 2] [--minutes 10]

Where one point of a grid happens to lie at the optimum, nothing is better; where the optimum lies between two points,
the grid is as far away as its points are apart. So the worlds differ in where the optimum lies: a Gaussian world known
on paper with four targets, within four ranges, and so with sixteen positions of the optimum among the points of the
grid. genbo follows 20 differences of 32 samples, and the grid has 12 candidates on 106 common samples: 1,280 and 1,272
samplings. Regret is to the best mean reward, which is known exactly.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import product
from statistics import fmean, median

import torch

from genbo.bilevel import race, search_loop
from genbo.bilevel.candidate_value import CandidateValue
from genbo.bilevel.estimators.zeroth_order import ZerothOrder
from genbo.bilevel.found import found
from genbo.bilevel.loop import Budget
from genbo.bilevel.optimizers.adam import Adam
from genbo.bilevel.optimizers.newton import Newton
from genbo.bilevel.problem import Problem
from genbo.bilevel.protocols import Optimizer
from genbo.bilevel.searchers.gp import Gp
from genbo.bilevel.searchers.grid import Grid
from genbo.bilevel.trials import Searcher
from genbo.bilevel.tunables.guidance import Guidance
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.process import process_of
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Seed
from genbo.rewards.quadratic import Quadratic

STD, SPREAD, STEPS = 0.5, 1.2, 6
TARGETS, TOPS = (1.15, 1.3, 1.6, 2.0), (10.0, 14.0, 20.0, 26.0)
Tuner = Callable[[Problem, int], float]


def world(target: float, top: float) -> Problem:
    """A guidance weight in [0, top] of samples that are to lie near a target."""
    model = Gaussian(means={"right": [1.0]}, std=STD, spread=SPREAD).open()
    process = process_of(model, Ddim(steps=STEPS), Plain(weight=1.0), batch=8192)
    reward = Quadratic(target=target).open(torch.device("cpu"))
    return Problem(process, (Guidance(start=1.0, bounds=(0.0, top)),), ((1.0, reward),))


def exact(problem: Problem, target: float) -> Callable[[float], float]:
    """phi -> the mean reward: every step of DDIM is affine here, so two samples tell how x follows from its noise."""
    from genbo.diffusion.sample import sample
    from genbo.diffusion.seed import Batch

    def value(phi: float) -> float:
        start = torch.tensor([[0.0], [1.0]])
        process = problem.at(torch.tensor([phi], dtype=torch.float64))
        at_0, at_1 = sample(process, Batch(("right",) * 2, (0, 1)), start=start.reshape(2, 1, 1, 1)).flatten().tolist()
        return -((at_1 - at_0) ** 2 + (at_0 - target) ** 2)

    return value


def follows(optimizer: Optimizer, h: float) -> Tuner:
    def tune(problem: Problem, seed: int) -> float:
        steps = list(race.tune(problem, ZerothOrder(h=h), optimizer, ["right"], Budget(20, 32), Seed(seed)))
        usable = [step for step in steps if step.status == "ok"]
        columns = [[getattr(step, name) for step in usable] for name in ("u", "grad", "grad_se")]
        return found(problem, *columns, width=h).phi.item()

    return tune


def searches(searcher: Searcher) -> Tuner:
    def tune(problem: Problem, seed: int) -> float:
        trials = search_loop.tune(problem, CandidateValue(), searcher, ["right"], Budget(12, 106), Seed(seed))
        return max(trials, key=lambda trial: trial.objective or 0.0).phi.item()

    return tune


TUNERS: dict[str, Tuner] = {
    "adam": follows(Adam(), 0.25),
    "adam, h 0.5": follows(Adam(), 0.5),
    "newton": follows(Newton(), 0.25),
    "grid": searches(Grid()),
    "gp": searches(Gp()),
}


def regrets(names: list[str], seeds: int, until: float) -> Iterator[tuple[str, float, float]]:
    """The tuner, the best phi as a share of its range, and the regret, of every world and seed."""
    for target, top in product(TARGETS, TOPS):
        problem = world(target, top)
        value = exact(problem, target)
        near = max((top * (k + 0.5) / 200 for k in range(200)), key=value)
        best = max((near + top * (k - 50) / 10_000 for k in range(101)), key=value)
        for seed, name in product(range(seeds), names):
            if time.monotonic() > until:
                return
            yield name, best / top, max(0.0, value(best) - value(TUNERS[name](problem, seed)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tuners", nargs="+", choices=list(TUNERS), default=["adam", "newton", "grid"])
    parser.add_argument("--minutes", type=float, default=1e6)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = list(regrets(arguments.tuners, arguments.seeds, time.monotonic() + 60 * arguments.minutes))
    print("| tuner | runs | mean regret | median | worst |\n|---|---|---|---|---|")
    for name in arguments.tuners:
        own = [regret for tuner, _, regret in lines if tuner == name]
        print(f"| {name} | {len(own)} | {fmean(own):.2g} | {median(own):.2g} | {max(own):.2g} |")


if __name__ == "__main__":
    main()
