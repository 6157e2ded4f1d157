"""The gradient through a network that is trained for u: the sampler's direct part and the network's response.

    z+- = argmin L +- f / gamma,      f = -F,  the upper objective on the same samples throughout
    dF/du ~ [d_u F(z+) + d_u F(z-)] / 2  -  (gamma / 2) [d_u L(z+) - d_u L(z-)]                bias O(1 / gamma^2)

or, one-sided as in the paper, with z+ and y: bias O(1 / gamma) (`bilevel.training.penalty`). The direct part is another
estimator's, at z; the indirect part multiplies a difference by gamma, so both its sides see the same minibatches. With
`gauge` all of it is done at gamma and 2 gamma and extrapolated; how far the two stood apart says how far to believe it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Gt

from genbo.bilevel.estimators.reverse_mode import ReverseMode
from genbo.bilevel.estimators.zeroth_order import ZerothOrder
from genbo.bilevel.problem import Problem, SampleEstimator, SamplesAt
from genbo.bilevel.protocols import Estimate, Facts, Follows, GradientCost
from genbo.bilevel.scoring import WholeSet

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.seed import Batch


@dataclass(frozen=True)
class Penalty:
    """`direct` is how the sampler's part is estimated: by differences of width `h`, or by reverse mode."""

    gamma: Annotated[float, Gt(0)] = 1000.0
    symmetric: bool = True
    gauge: bool = True
    direct: Literal["differences", "reverse_mode"] = "differences"
    h: Annotated[float, Gt(0)] = 0.1
    follows: ClassVar[Follows] = "network"

    def why_not(self, facts: Facts) -> str | None:
        if not facts.coupled:
            return "penalty is for a network that is trained for what is tuned; use estimator: auto"
        if not facts.differentiable_reward:
            return "penalty trains the network for the reward too, so it must be differentiable; use kid, mmd or fid"
        return None

    @property
    def inner(self) -> SampleEstimator:
        """Of the sampler's part."""
        return ReverseMode() if self.direct == "reverse_mode" else ZerothOrder(h=self.h)

    def cost(self, parameters: int) -> GradientCost:
        """The upper objective is let in at both ends, or at z alone; and the sampler's part is estimated there."""
        solves, own = 4 if self.gauge else 2, self.inner.cost(parameters)
        tilted = solves if self.symmetric else solves // 2
        draws = tilted * list(own.draws)
        return replace(own, draws=draws, solves=solves, tilted_solves=tilted, direct_parts=tilted)

    def __call__(self, problem: Problem, at: SamplesAt, /) -> Estimate:
        from genbo.bilevel.training.penalty import Gauged, gauged, penalty

        u, batch, weights, learning, seen = at.u, at.batch, at.weights, problem.learning, list[Estimate]()
        assert learning is not None

        def direct(theta: object) -> Tensor:
            estimate = self.inner(problem.with_model(learning.model(theta)), replace(at, state={}))
            seen.append(estimate)
            return -estimate.grad

        def wanted(here: Tensor, theta: Any) -> Tensor:
            live = [p for p in theta.parameters() if p.requires_grad]
            return -_value(problem.with_model(learning.model(theta)), problem.value(here), batch, weights, live)

        two = learning.answers(problem.value, wanted, at.seed.child("lower"))
        if self.gauge:
            both = gauged(two, u, self.gamma, symmetric=self.symmetric, direct=direct)
        else:
            both = Gauged(penalty(two, u, self.gamma, symmetric=self.symmetric, direct=direct), None)
        found, first = both.gradient, seen[0]
        return Estimate(-found.total, first.grad_se, first.scores, -found.indirect.cpu(), both.apart)


def _value(problem: Problem, phi: Tensor, batch: Batch, weights: Tensor, live: Sequence[Tensor]) -> Tensor:
    """The upper objective on the whole batch, with its first derivatives in the `live` weights of the network.

    Each part is gone back through as soon as it is drawn, so that no two are in memory, and one that has no room for
    its way back is halved like any other; what is returned is linear in the weights, with those derivatives.
    """
    import torch

    def one(chunk: Batch, whole: WholeSet | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.enable_grad():
            scores = problem.live_scores(phi[None], chunk, checkpoint=True, whole=whole)
            found = (weights.to(scores) @ scores).sum()
            return found.detach(), torch.autograd.grad(found, live) if live else ()

    values, slopes = zip(*problem.in_parts(phi.detach(), batch, one), strict=True)
    total = torch.stack(values).sum()
    for weight, *parts in zip(live, *slopes, strict=True):
        total = total + ((weight - weight.detach()) * torch.stack(parts).sum(0)).sum()
    return total / len(batch)
