"""The mean score itself, without a gradient: what a search measures at every candidate, in place of an estimator.

With `common: true` every candidate is drawn from the same prompts and seeds, so the noise of two candidates is shared
and their difference is known much better than either value. `common: false` draws new samples for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from genbo.bilevel.problem import Problem, SamplesAt
from genbo.bilevel.protocols import SAMPLED_ONLY, Estimate, Facts, Follows, GradientCost

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.seed import Batch


@dataclass(frozen=True)
class CandidateValue:
    """`common` draws every candidate from the same prompts and seeds."""

    common: bool = True
    follows: ClassVar[Follows] = "samples"

    def why_not(self, facts: Facts) -> str | None:
        """None, or a sentence: only a search for lambda cannot be measured by the mean score of samples at phi."""
        return SAMPLED_ONLY if facts.tilted else None

    def cost(self, parameters: int) -> GradientCost:
        """One sampling: at the start first, then anywhere in the space."""
        return GradientCost(draws=[[frozenset()]])

    def __call__(self, problem: Problem, at: SamplesAt, /) -> Estimate:
        """The scores at u; the gradient and its error, both (P,), are NaN."""
        return measured(at.u, GrowingScores(problem, problem.value(at.u)).with_more(at.batch))


class GrowingScores:
    """The scores at phi (P,) of a batch that grows; what was drawn of it is not drawn again."""

    def __init__(self, problem: Problem, phi: Tensor) -> None:
        self.problem, self.phi = problem, phi
        self._columns: list[Tensor] = []

    def with_more(self, batch: Batch) -> Tensor:
        """(K, N) of all samples so far, these among them, and as one set for a reward that scores sets."""
        import torch

        if len(batch):
            new = self.problem.columns(self.phi[None], batch)
            pairs = zip(self._columns, new, strict=True)
            self._columns = [torch.cat(pair, dim=1) for pair in pairs] if self._columns else new
        return self.problem.scored(self._columns)[:, 0]


def measured(u: Tensor, scores: Tensor) -> Estimate:
    """The estimate of a search: scores (K, N), and no gradient."""
    import torch

    unknown = torch.full_like(u, torch.nan)
    return Estimate(unknown, unknown, scores)
