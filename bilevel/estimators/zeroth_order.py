"""Finite differences of the objective: for any reward and any network, without extra memory.

    coordinates, central     g_j = [F(u + h e_j) - F(u - h e_j)] / 2h                    2P samplings, bias O(h^2)
    coordinates, forward     g_j = [F(u + h e_j) - F(u)] / h                            P + 1, bias O(h)
    random, central          g = mean_r v_r [F(u + h v_r) - F(u - h v_r)] / 2h,  v_r ~ N(0, I)       2R
    random, forward          g = mean_r v_r [F(u + h v_r) - F(u)] / h                             R + 1
    random, one_point        g = v_k [F_k(u_k + h v_k) - F_{k-1}(u_{k-1} + h v_{k-1})] / h            1

The last is residual feedback (Zhang et al. 2010.07378). Both sides of a difference are the same samples, with the same
noise: without that (`common: false`, as the paper's code has it) the noise is divided by h. Coordinates have no
direction noise; one random direction has a relative error of sqrt(P + 1) even without any sampling noise.

A wide step is meant. What it estimates is the gradient of F averaged over [u - h, u + h], which is off by O(h^2); and a
sampled image often jumps between two drawings as u moves, so that its own derivative is mostly noise. The answer is
fitted to these averages as averages (`bilevel.field`), with coordinates and central differences. On the bundled
model the standard error at h = 0.3 is about half of that at 0.1, and the root is the same (docs/method.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Gt

from genbo.bilevel.problem import Problem, SamplesAt
from genbo.bilevel.protocols import SAMPLED_ONLY, Draw, Estimate, Facts, Follows, GradientCost

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.seed import Batch, Seed


@dataclass(frozen=True)
class ZerothOrder:
    """`h` is the step in u; `count` the number of random directions, by default one a parameter."""

    directions: Literal["coordinates", "random"] = "coordinates"
    points: Literal["central", "forward", "one_point"] = "central"
    count: Annotated[int, Gt(0)] | None = None
    h: Annotated[float, Gt(0)] = 0.25
    common: bool = True
    follows: ClassVar[Follows] = "samples"

    def why_not(self, facts: Facts) -> str | None:
        if facts.tilted:
            return SAMPLED_ONLY
        if self.points == "one_point" and self.directions == "coordinates":
            return "one_point differences need random directions; set directions: random, or points: central"
        if self.points == "one_point" and self.count not in (None, 1):
            return "one_point differences take one direction a step; leave count out, or set points: central"
        return None

    def _count(self, parameters: int) -> int:
        if self.points == "one_point":
            return 1
        return parameters if self.directions == "coordinates" else self.count or parameters

    def cost(self, parameters: int) -> GradientCost:
        """One point has no gradient at its first step: there is none before it to be compared with."""
        idle = int(self.points == "one_point")
        return GradientCost(self._draws(parameters), idle_steps=idle, shared_samples=self.common)

    def _draws(self, parameters: int) -> list[Draw]:
        count = self._count(parameters)
        one_by_one = self.directions == "coordinates"
        plus = [frozenset({r}) if one_by_one else frozenset(range(parameters)) for r in range(count)]
        minus = {"central": plus, "forward": [frozenset[int]()], "one_point": []}[self.points]
        return [[*plus, *minus]] if self.common or not minus else [[*plus], [*minus]]

    def __call__(self, problem: Problem, at: SamplesAt, /) -> Estimate:
        """The gradient (P,) with the bias that the table above names, its standard error, and the slopes (P, N).

        The error is over N samples, or over R > 1 random directions. `width` is h for central differences of
        coordinates, and 0 for all others. One point returns 0 at the first step, and needs `state` at the next.
        """
        import torch

        u, batch, seed = at.u, at.batch, at.seed
        count = self._count(len(u))
        if self.directions == "coordinates":
            v = torch.eye(count, dtype=u.dtype)
        else:
            v = torch.randn(count, len(u), generator=seed.child("directions").generator(), dtype=u.dtype)
        plus, minus = (
            u + self.h * v,
            {"central": u - self.h * v, "forward": u[None], "one_point": u[:0]}[self.points],
        )
        scores = self._scores(problem, plus, minus, batch, seed)  # (K, M, N)
        total = at.total(scores, batch.prompts)  # (M, N)
        left, right = total[:count], total[count:]
        if self.points == "one_point":
            right = at.state["last"].expand(1, len(batch)) if "last" in at.state else left
        width = 2 * self.h if self.points == "central" else self.h
        slope = (left - right) / width  # (R, N)
        if self.directions == "coordinates":
            grad, grad_se, slopes = slope.mean(1), standard_error(slope), slope
        else:
            along = v.T[:, :, None] * slope  # (P, R, N)
            grad = along.mean((1, 2))
            grad_se, slopes = standard_error(along.mean(2) if count > 1 else along[:, 0]), along.mean(1)
        averaged = self.h if self.directions == "coordinates" and self.points == "central" else 0.0
        state = {"last": left.mean()[None]}
        return Estimate(grad, grad_se, scores.mean(1), width=averaged, state=state, slopes=slopes)

    def _scores(self, problem: Problem, plus: Tensor, minus: Tensor, batch: Batch, seed: Seed) -> Tensor:
        import torch

        if self.common or not len(minus):
            return problem.scores(problem.value(torch.cat([plus, minus])), batch)
        other = type(batch)(batch.prompts, tuple(seed.child("other side", n).value for n in range(len(batch))))
        sides = ((plus, batch), (minus, other))
        return torch.cat([problem.scores(problem.value(members), drawn) for members, drawn in sides], dim=1)


def standard_error(x: Tensor) -> Tensor:
    """Of the mean over the last axis."""
    error: Tensor = x.std(-1) / x.shape[-1] ** 0.5
    return error
