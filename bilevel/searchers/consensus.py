"""Consensus-based optimization: particles drift to their weighted mean, with a noise as large as their distance to it.

    v = sum_i x_i exp(beta f_i) / sum_i exp(beta f_i),     x_i <- x_i + pull (v - x_i) + spread |v - x_i| xi_i

each coordinate with a noise of its own (Pinnau et al. 1604.05648; Carrillo et al. 1909.09249). Values are counted in
their own standard deviation over the generation, so that `beta` has no unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt, Interval

from genbo.bilevel.trials import Candidate

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.trials import Search, Space
    from genbo.diffusion.seed import Seed

FEW = 3  # generations that it needs at least


@dataclass(frozen=True)
class Consensus:
    """`particles` a generation; `pull` to their consensus; `spread` of the noise; `beta` for the best ones' weight."""

    particles: Annotated[int, Interval(ge=2)] = 8
    pull: Annotated[float, Interval(gt=0, le=1)] = 0.7
    spread: Annotated[float, Interval(ge=0)] = 0.6
    beta: Annotated[float, Gt(0)] = 3.0

    def why_not(self, space: Space, trials: int) -> str | None:
        if space.choices:
            words = ", ".join(space.choices)
            return f"consensus searches over numbers only, not over {words}; take tpe, or leave that out"
        least = FEW * self.particles
        if trials < least:
            return f"consensus needs {least} trials at least, {FEW} generations; raise the budget, or lower particles"
        return None

    def open(self, space: Space, trials: int, seed: Seed) -> Search:
        return ConsensusSearch(self, space, seed)


class ConsensusSearch:
    """A generation of M particles (M, P), in shares of each range; a trial that failed draws no particle to it."""

    def __init__(self, options: Consensus, space: Space, seed: Seed) -> None:
        import torch

        self._options, self._seed, self._generation = options, seed, 0
        drawn = torch.quasirandom.SobolEngine(len(space.numbers), scramble=True, seed=seed.child("first").value % 2**31)
        self._x: Tensor = drawn.draw(options.particles).double()  # (M, P), shares
        if space.first is not None:
            self._x[0] = torch.tensor(space.first.shares, dtype=torch.float64)
        self._values: list[float] = []

    def ask(self) -> Candidate:
        return Candidate(tuple(self._x[len(self._values)].tolist()))

    def tell(self, value: float, share: float = 1.0) -> None:
        self._values.append(value if math.isfinite(value) else -math.inf)
        if len(self._values) == len(self._x):
            self._move()

    def _move(self) -> None:
        import torch

        values = torch.tensor(self._values, dtype=torch.float64)
        fine = values.isfinite()
        self._generation, self._values = self._generation + 1, []
        if not fine.any():
            return
        scale = values[fine].std(correction=0).clamp(min=1e-12)
        weight = (self._options.beta * values / scale).softmax(0)
        away = weight @ self._x - self._x
        generator = self._seed.child("noise", self._generation).generator()
        noise = torch.randn(away.shape, generator=generator, dtype=torch.float64)
        moved = self._x + self._options.pull * away + self._options.spread * away.abs() * noise
        self._x = moved.clamp(0.0, 1.0)
