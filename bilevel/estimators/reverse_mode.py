"""Backpropagation through every step of the sampler; each step keeps only x_t and is recomputed.

Exact for a differentiable reward, at a cost that does not grow with the number of parameters. Every sample gets a copy
of u of its own, so one backward pass gives a gradient a sample, and with it the standard error.

The chain is never cut short: the last few steps alone carry almost nothing of a guidance gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from genbo.bilevel.problem import Problem, SamplesAt
from genbo.bilevel.protocols import SAMPLED_ONLY, STEERED, Estimate, Facts, Follows, GradientCost
from genbo.bilevel.scoring import WholeSet

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.seed import Batch


@dataclass(frozen=True)
class ReverseMode:
    """`checkpoint: false` keeps every activation: faster, at a memory of all steps."""

    checkpoint: bool = True
    follows: ClassVar[Follows] = "samples"

    def why_not(self, facts: Facts) -> str | None:
        if facts.tilted:
            return SAMPLED_ONLY
        if not facts.differentiable_reward:
            return "reverse_mode needs a differentiable reward; use estimator: zeroth_order"
        if not facts.differentiable_model:
            return "reverse_mode needs a model with gradients; use estimator: zeroth_order"
        if facts.steered:
            return STEERED
        return None

    def cost(self, parameters: int) -> GradientCost:
        return GradientCost(draws=[[None]], network_passes=2 if self.checkpoint else 1, goes_back=True)

    def __call__(self, problem: Problem, at: SamplesAt, /) -> Estimate:
        """The gradient (P,) without bias, its standard error over N samples, and the slopes (P, N).

        Raises:
            RuntimeError: by torch, where a reward has no gradient in the images; `why_not` refuses such a reward first.
        """
        import torch

        u, batch = at.u, at.batch

        def one(chunk: Batch, whole: WholeSet | None) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                own = u.detach().expand(len(chunk), -1).clone().requires_grad_()
                phi = problem.value(own)
                live = problem.live_scores(phi, chunk, paired=True, checkpoint=self.checkpoint, whole=whole)
                (grad,) = torch.autograd.grad(at.total(live, chunk.prompts).sum(), own)
            return grad, live.detach().cpu()

        grads, scores = zip(*problem.in_parts(problem.value(u), batch, one), strict=True)
        grad = torch.cat(grads)  # (N, P)
        return Estimate(grad.mean(0), grad.std(0) / len(grad) ** 0.5, torch.cat(scores, dim=1), slopes=grad.T)
