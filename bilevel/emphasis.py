"""How much each prompt counts in the gradient of a step, and how often it is drawn, where not all count the same.

The gradient of an objective over the worst prompts is sum_p w_p d m_p / d phi (`bilevel.objective`). A step draws few
samples of a prompt, and the minimum of noisy means is too low and found at the wrong prompt. Hence

    m_p(u)     x_p + g_p (u - u_p): means over all earlier steps of the rewards, the slopes and the points of prompt p,
               step k with the weight (k + 1)^2, so that old steps fade and their noise still averages out
    w_p        from these alone: a step's own samples have no part in the weights that they are multiplied by
    shrinkage  each m_p moves towards the mean of all prompts, by its error variance over its whole variance
    tau        the standard error of the shrunken m_p: prompts that the samples cannot tell apart share their weight
    q_p        (b_p + w_p) / 2, the share of the samples that a prompt gets; a sample counts w_p / q_p, 2 at most

As steps go on the errors fall, tau falls with them, and w becomes the exact one. The slopes are what keeps the means
from lagging behind: without them u swings around a tie of two prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.objective import Objective
    from genbo.diffusion.seed import Batch, Seed

POWER = 2  # of a step's number in the weight of its samples
LEAST = 1e-9  # of its even share: the weight of a prompt that has none, so that its slope is seen all the same


@dataclass(frozen=True)
class Emphasis:
    """`base` b, `weight` w and `drawn` q of each of the different prompts, (C,) in float64, each of sum 1."""

    prompts: tuple[str, ...]
    base: Tensor
    weight: Tensor
    drawn: Tensor

    @property
    def factor(self) -> dict[str, float]:
        """How much a sample of each prompt counts in the mean over the samples that is the objective."""
        return dict(zip(self.prompts, (self.weight / self.drawn).tolist(), strict=True))

    def evenly(self, prompts: Sequence[str]) -> Tensor:
        """How much a sample of each of these prompts counts in the mean over all prompts, (N,)."""
        return (self.base / self.drawn)[indices(self.prompts, prompts)]

    def batch(self, samples: int, seed: Seed) -> Batch:
        """So many samples, of which prompt p gets the share q_p, rounded up or down at random (systematic sampling)."""
        import torch

        from genbo.diffusion.seed import Batch

        offset = torch.rand(1, generator=seed.child("prompts").generator(), dtype=torch.float64)
        at = (torch.arange(samples) + offset) / samples
        of = torch.searchsorted(self.drawn.cumsum(0), at).clamp(max=len(self.prompts) - 1)
        seeds = tuple(seed.child("sample", n).value for n in range(samples))
        return Batch(tuple(self.prompts[c] for c in of.tolist()), seeds)


def emphasis_of(
    objective: Objective, prompts: Sequence[str], standing: Mapping[str, Tensor], u: Tensor, *, pooled: bool = False
) -> Emphasis | None:
    """What the steps so far say of u (P,); None for the mean, in which a prompt counts as often as it is listed.

    Args:
        objective: over the prompts.
        prompts: of the job, in its order; one that is listed twice counts twice.
        standing: what `updated` gave after the step before; empty at first.
        u: the point of the next step, (P,).
        pooled: whether the samples come from a pool, which prompts share evenly whatever their weights.
    """
    import torch

    if objective.is_mean:
        return None
    known = tuple(dict.fromkeys(prompts))
    base = torch.bincount(indices(known, prompts), minlength=len(known)).double() / len(prompts)
    weight = base
    if standing:
        means, error = estimated(standing, u)
        weight = torch.maximum(objective.weights(means, base, error), LEAST * base)
    return Emphasis(known, base, weight, base if pooled else (base + weight) / 2)


def updated(
    standing: Mapping[str, Tensor],
    known: Sequence[str],
    prompts: Sequence[str],
    values: Tensor,
    slopes: Tensor,
    u: Tensor,
    step: int,
) -> dict[str, Tensor]:
    """The running sums of each of the C `known` prompts, with what a step saw at u (P,) of N samples of `prompts`.

    `values` (N,) are their rewards, `slopes` (P, N) the derivatives of these in u.
    """
    import torch

    of, weight = indices(known, prompts), float(step + 1) ** POWER
    one = torch.ones_like(values)
    added = {
        "mass": weight * one,
        "square": weight**2 * one,
        "sum": weight * values,
        "sum2": weight * values**2,
        "slope": weight * slopes.T,
        "slope2": weight * slopes.T**2,
        "u": weight * u.expand(len(values), -1),
    }
    found = {}
    for name, x in added.items():
        before = standing.get(name, values.new_zeros(len(known), *x.shape[1:]))
        found[name] = before.index_add(0, of, x)
    return found


def estimated(standing: Mapping[str, Tensor], u: Tensor) -> tuple[Tensor, float]:
    """The shrunken mean of each prompt at u (P,), (C,), and the standard error of one.

    All means are the same where no prompt has two samples, or where they differ by no more than their errors.
    """
    import torch

    mass, square = standing["mass"], standing["square"]
    seen = mass > 0
    safe = mass.where(seen, 1.0)
    degrees = (mass - square / safe).sum()
    if seen.sum() < 2 or degrees <= 0:
        return torch.zeros_like(mass), 0.0

    def mean_and_variance(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Of each prompt's weighted samples, by their sums (C, ...) and the variance within all prompts together."""
        shape = (-1, *[1] * (first.ndim - 1))
        mean = first / safe.view(shape)
        within = (second - first * mean).sum(0).clamp(min=0) / degrees
        return mean, within * (square / safe**2).view(shape)

    values, error = mean_and_variance(standing["sum"], standing["sum2"])
    slopes, slope_error = mean_and_variance(standing["slope"], standing["slope2"])
    away = u - standing["u"] / safe[:, None]  # (C, P)
    means = values + (slopes * away).sum(1)
    variance = error + (slope_error * away**2).sum(1)
    centre = means[seen].mean()
    between = (means[seen].var() - variance[seen].mean()).clamp(min=0)
    kept = (between / (between + variance)).where(seen, 0.0).nan_to_num()
    left = (between * (1 - kept)).mean().sqrt().item()  # the variance of a mean, given its samples
    return centre + kept * (means - centre), left


def indices(known: Sequence[str], prompts: Sequence[str]) -> Tensor:
    """The place of each of the prompts among the known ones, (N,)."""
    import torch

    places = {prompt: c for c, prompt in enumerate(known)}
    return torch.tensor([places[prompt] for prompt in prompts])
