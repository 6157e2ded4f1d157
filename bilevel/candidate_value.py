"""The mean score itself, without a gradient: what a search measures at every candidate, in place of an estimator.

With `common: true` every candidate is drawn from the same prompts and seeds, so the noise of two candidates is shared
and their difference is known much better than either value. `common: false` draws new samples for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from genbo.bilevel.problem import Problem, SamplesAt
from genbo.bilevel.protocols import SAMPLED_ONLY, Estimate, Facts, Follows, GradientCost


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
        import torch

        scores = problem.scores(problem.value(at.u)[None], at.batch)[:, 0]  # (K, N)
        unknown = torch.full_like(at.u, torch.nan)
        return Estimate(unknown, unknown, scores)
