"""The search for lambda against searches that reweight: the example with a known answer, at equal numbers of samples.

    python -m benchmarks.ahead_lambda [--seeds 8] [--shares 0.25 0.5 1] [--trials 20]

`examples/regularization-gaussian.yaml` at 1/4, 1/2 and the whole of its bank: for N(0, I), r2 = x1 and
r1 = -|x - c|^2 / 2 the tilted mean is 1/lambda, so an answer lambda has the regret (1/lambda - c1)^2 / 2. Each search
has as many samples of the pretrained law as genbo drew in that run, and each of its trials reweights them to one lambda
and reads the mean of r1: all of them in every trial (common noise), or a part of their own for each (fresh noise).
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch

from genbo.bilevel.searchers.gp import Gp
from genbo.bilevel.searchers.grid import Grid
from genbo.bilevel.searchers.random import Random
from genbo.bilevel.searchers.tpe import Tpe
from genbo.bilevel.trials import Space, Trial, best_of
from genbo.cli.commands.tune import tune
from genbo.diffusion.seed import Seed

EXAMPLE = Path(__file__).parents[1] / "examples" / "regularization-gaussian.yaml"
C1, LOW, HIGH, STEPS, SAMPLES = 1.5, 0.05, 20.0, 64, 16384
SEARCHES = {"grid": Grid(), "random": Random(), "tpe": Tpe(), "gp": Gp(noisy=False)}


def regret(lam: float) -> float:
    """Of an answer, to the best lambda, 1 / c1."""
    return (1 / lam - C1) ** 2 / 2


def genbo(share: float, seed: int) -> tuple[float, int]:
    """What genbo's search finds, and how many samples it drew."""
    with tempfile.TemporaryDirectory() as folder:
        given = [
            f"lower.samples={round(SAMPLES * share)}",
            f"seed={seed}",
            f"output={folder}/run",
            "evaluate.samples=256",
        ]
        document = tune(EXAMPLE, given).result().document
    return document["phi"]["regularization"]["tuned"], document["steps"][-1]["cost"]["image_forwards"] // STEPS


def searched(name: str, samples: int, trials: int, seed: int, *, common: bool) -> float:
    """The best lambda of a search whose trials reweight samples."""
    search = SEARCHES[name].open(Space(("lambda",)), trials, Seed(seed))
    x = torch.randn(samples, 2, generator=torch.Generator().manual_seed(1000 + seed), dtype=torch.float64)
    parts = [x] * trials if common else list(x.chunk(trials))
    done = []
    for part in parts:
        candidate = search.ask()
        done.append(Trial(candidate, _value(part, _lambda(candidate.shares[0]))))
        search.tell(done[-1].value)
    best = best_of(done)
    assert best is not None
    return _lambda(best.point.shares[0])


def _lambda(share: float) -> float:
    return LOW * (HIGH / LOW) ** share


def _value(x: torch.Tensor, lam: float) -> float:
    """E[r1] of the tilt by r2 = x1 at lambda, by self-normalised weights."""
    r1 = -((x[:, 0] - C1) ** 2 + x[:, 1] ** 2) / 2
    return float((x[:, 0] / lam).softmax(0) @ r1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    parser.add_argument("--trials", type=int, default=20)
    arguments = parser.parse_args()
    print("| budget | method | samples | mean regret | worst |\n|---|---|---|---|---|")
    for share in arguments.shares:
        own = [genbo(share, seed) for seed in range(arguments.seeds)]
        drawn = round(fmean(samples for _, samples in own))
        rows: dict[str, Callable[[int], float]] = {"genbo": lambda seed, own=own: own[seed][0]}  # type: ignore[misc]
        for name in SEARCHES:
            for common in (True, False):
                noise = "common" if common else "fresh"
                rows[f"{name}, {noise} noise"] = lambda seed, name=name, common=common, drawn=drawn: searched(  # type: ignore[misc]
                    name, drawn, arguments.trials, seed, common=common
                )
        for name, find in rows.items():
            regrets = [regret(find(seed)) for seed in range(arguments.seeds)]
            worst = max(regrets) if all(map(math.isfinite, regrets)) else math.inf
            print(f"| {share:g} | {name} | {drawn} | {fmean(regrets):.5f} | {worst:.5f} |", flush=True)


if __name__ == "__main__":
    main()
