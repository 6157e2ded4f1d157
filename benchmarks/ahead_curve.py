"""The true curve over one number, by which the answers of `benchmarks.ahead` are judged where it is known.

    python -m benchmarks.ahead_curve --problem guidance --out guidance-curve.json [--device cuda] [--samples 4096]
    python -m benchmarks.ahead table guidance.jsonl --curve guidance-curve.json

An answer is judged on a thousand samples otherwise, whose own best value is as far from the true one as the answers
are: the answer that happens to lie there would have no regret. The curve is a smoothing spline in u through the means
at many points, all on the same samples, many more than a judge has.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENDS, STEP = 4.6, 0.2  # in u, from share 0.01 to 0.99


@dataclass(frozen=True)
class Curve:
    """Mean rewards over phi within bounds, their standard errors, and the spline through them."""

    bounds: tuple[float, float]
    phi: Sequence[float]
    value: Sequence[float]
    se: Sequence[float]

    def _u(self, phi: float) -> float:
        low, high = self.bounds
        share = min(max((phi - low) / (high - low), 1e-4), 1 - 1e-4)
        return math.log(share / (1 - share))

    def smooth(self) -> Callable[[float], float]:
        """phi -> the mean reward."""
        import numpy as np
        from scipy.interpolate import make_smoothing_spline

        u = np.array([self._u(phi) for phi in self.phi])
        spline = make_smoothing_spline(u, np.array(self.value))  # smoothed as cross-validation has it
        return lambda phi: float(spline(min(max(self._u(phi), u[0]), u[-1])))

    def best(self) -> tuple[float, float]:
        """The phi where the spline is highest, and its value there."""
        curve, (low, high) = self.smooth(), self.bounds
        phis = [low + (high - low) * k / 4000 for k in range(1, 4000)]
        top = max(phis, key=curve)
        return top, curve(top)

    def document(self) -> dict[str, Any]:
        """For a file."""
        return dict(vars(self))


def read(path: Path) -> Curve:
    found = json.loads(path.read_text())
    return Curve(tuple(found["bounds"]), found["phi"], found["value"], found["se"])


def measured(problem_name: str, device: str, samples: int) -> Curve:
    """The means of common samples of the tuning prompts, at points that are evenly spaced in u."""
    import torch

    from benchmarks.ahead import PROBLEMS, job_of, methods_of
    from genbo.bilevel.found import bounds
    from genbo.cli.stages.build import assemble
    from genbo.diffusion.seed import Seed, batch_of

    method = next(iter(methods_of(PROBLEMS[problem_name]).values()))
    a = assemble(job_of(problem_name, method, 1.0, 0, device))
    problem, batch = a.problem, batch_of(a.prompts, samples, Seed(54321))
    assert problem.parameters == 1, "a curve is one over one number"
    at = torch.arange(-ENDS, ENDS + STEP / 2, STEP, dtype=torch.float64)
    phi, value, se = problem.value(at[:, None]), [], []
    for row in phi:
        scores = problem.reward_weights @ problem.scores(row[None], batch)[: len(problem.reward_weights), 0]
        value.append(scores.mean().item())
        se.append(scores.std().item() / samples**0.5)
    low, high = bounds(problem)[0].tolist()
    return Curve((low, high), phi[:, 0].tolist(), value, se)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", default="guidance")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, default=4096)
    arguments = parser.parse_args()
    curve = measured(arguments.problem, arguments.device, arguments.samples)
    arguments.out.write_text(json.dumps(curve.document()))
    top, value = curve.best()
    print(f"highest at {top:.3f}: {value:.4f}")


if __name__ == "__main__":
    main()
