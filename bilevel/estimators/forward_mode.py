"""Exact derivatives in forward mode: constant memory, P samplings; meant to check the other estimators.

Attention kernels other than the plain one have no forward derivative, so the plain one is used here; and a network in
half precision meets a float32 tangent with an error, so it wants float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from genbo.bilevel.problem import Problem, SamplesAt
from genbo.bilevel.protocols import SAMPLED_ONLY, STEERED, Estimate, Facts, Follows, GradientCost
from genbo.bilevel.scoring import WholeSet

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.seed import Batch


@dataclass(frozen=True)
class ForwardMode:
    """It takes no options."""

    follows: ClassVar[Follows] = "samples"

    def why_not(self, facts: Facts) -> str | None:
        if facts.tilted:
            return SAMPLED_ONLY
        if not (facts.differentiable_reward and facts.differentiable_model):
            return "forward_mode needs a differentiable reward and model; use estimator: zeroth_order"
        if facts.steered:
            return STEERED
        if facts.half_precision:
            return "forward_mode needs float32; set model.dtype: fp32, or use estimator: zeroth_order"
        return None

    def cost(self, parameters: int) -> GradientCost:
        return GradientCost(draws=[[None]] * parameters)

    def __call__(self, problem: Problem, at: SamplesAt, /) -> Estimate:
        """The gradient (P,) without bias, its standard error over N samples, and the slopes (P, N).

        Raises:
            RuntimeError: where no derivative reaches the reward, as under `torch.inference_mode`.
        """
        import torch
        from torch.autograd import forward_ad

        u, batch = at.u, at.batch

        def along(direction: Tensor, chunk: Batch, whole: WholeSet | None) -> tuple[Tensor, Tensor]:
            plain_attention = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
            with torch.no_grad(), plain_attention, forward_ad.dual_level():
                phi = problem.value(forward_ad.make_dual(u, direction))
                live = forward_ad.unpack_dual(problem.live_scores(phi[None], chunk, whole=whole))
            if live.tangent is None:
                raise RuntimeError("no derivative reached the reward: is the sampling run under inference_mode?")
            return live.primal.cpu(), at.total(live.tangent, chunk.prompts).cpu()

        here = problem.value(u)
        parts = [
            list(problem.in_parts(here, batch, partial(along, direction)))
            for direction in torch.eye(len(u), dtype=u.dtype)
        ]
        slope = torch.stack([torch.cat([tangent for _, tangent in part]) for part in parts])  # (P, N)
        scores = torch.cat([primal for primal, _ in parts[0]], dim=1)
        return Estimate(slope.mean(1), slope.std(1) / slope.shape[1] ** 0.5, scores, slopes=slope)
