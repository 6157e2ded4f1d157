"""The tilted distribution of a toy model in closed form, from derivatives of its cumulants.

    A(t, u) = log E_p0 exp(t r2 + u r1),      t = 1 / lambda,   u = 1 / (gamma lambda), or 0 without gamma

    E[r2] = A_t,   E[r1] = A_u,   Cov(r1, r2) = A_tu,   KL(p || p0) = t A_t + u A_u - A

Where both rewards are linear or quadratic in x, t r2 + u r1 = a + b.x - q |x|^2, and log E exp(b.x - q |x|^2) is known:

    N(m, v) a coordinate     [b m + b^2 v / 2 - q m^2] / (1 + 2 q v) - log(1 + 2 q v) / 2
    a mixture of them        the log of the weighted sum of their exponentials
    exponential of mean s    log [sqrt(pi / q) / (2 s) erfcx((1/s - b) / (2 sqrt q))],   and with q = 0   -log(1 - b s)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from genbo.bilevel.protocols import Drawing, LowerTraits

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.regularization.context import LawContext
    from genbo.bilevel.regularization.tilted import Law, SolveLaw

    Cumulant = Callable[[Tensor, Tensor], Tensor]  # t, u (C,) -> A (C,)
    Partition = Callable[[Tensor, Tensor], Tensor]  # b (C, d), q (C, 1) -> log E exp(b.x - q |x|^2) (C,)

Weighted = tuple[float, Any]  # the weight of a reward, and its options
SERIES, TERMS = 1e-3, 9  # q over the exponential's squared rate, below which its expansion has more digits than erfcx


@dataclass(frozen=True)
class ClosedForm:
    """It takes no options: there is nothing to choose in what is exact."""

    traits: ClassVar[LowerTraits] = LowerTraits(
        finds="law",
        estimator="covariance",
        meaning="the tilt p0 exp(r2 / lambda), on paper",
        on_paper=True,
        free=True,
    )

    @property
    def drawing(self) -> Drawing:
        return Drawing()

    def mistakes(self) -> list[str]:
        return []

    def why_not(self, model: Any, *rewards: Sequence[Weighted]) -> str | None:
        """None, or a sentence: why this world and these rewards have no closed form here."""
        from genbo.rewards.linear import Linear
        from genbo.rewards.quadratic import Quadratic

        if _partition_of(model) is None:
            return "closed_form needs an exact world (gaussian, mixture or exponential); use lower: reweight"
        pairs = [pair for group in rewards for pair in group]
        if not all(isinstance(reward, Linear | Quadratic) for _, reward in pairs):
            return "closed_form knows linear and quadratic rewards only; use lower: reweight"
        if any(isinstance(reward, Quadratic) and weight < 0 for weight, reward in pairs):
            return "closed_form wants a quadratic reward to have a weight of 0 or more; use lower: reweight"
        return None

    def shortened(self, samples: int) -> ClosedForm:
        return self

    def begin(self, context: LawContext) -> SolveLaw:
        """The exact law at every lambda.

        Raises:
            ValueError: where the context has no exact world.
        """
        if context.exact is None:
            raise ValueError("closed_form needs the options of an exact world and of its rewards")
        world = context.exact
        return partial(self.solve, cumulant_of(world.model, world.prompts, world.upper, world.lower))

    def solve(self, cumulant: Cumulant, lam: float, gamma: float | None = None) -> Law:
        """The law at lambda > 0, exactly; with gamma the upper reward is let in by 1 / gamma.

        Raises:
            ValueError: where lambda is not greater than 0, or so small that the tilted law cannot be normalised.
        """
        import torch

        from genbo.bilevel.measured import Measured
        from genbo.bilevel.regularization.tilted import EXACT, Law

        if not lam > 0:
            raise ValueError(f"lambda must be greater than 0, not {lam:g}")
        with torch.enable_grad():
            t = torch.tensor(1 / lam, dtype=torch.float64, requires_grad=True)
            u = torch.tensor(0.0 if gamma is None else 1 / (gamma * lam), dtype=torch.float64, requires_grad=True)
            rows = [_derivatives(a, t, u) for a in cumulant(t, u)]
        a, a_t, a_u, a_tu, a_uu = (torch.stack(column) for column in zip(*rows, strict=True))

        def exact(value: Tensor) -> Measured:
            return Measured(value, value.new_zeros(len(value), 0))

        kl = t.detach() * a_t + u.detach() * a_u - a
        r1_sd = a_uu.clamp(min=0).mean().sqrt().item()
        return Law(lam, gamma, exact(a_u), exact(a_t), exact(kl), exact(a_tu), r1_sd, EXACT)


def _derivatives(a: Tensor, t: Tensor, u: Tensor) -> tuple[Tensor, ...]:
    """A, A_t, A_u, A_tu, A_uu."""
    import torch

    a_t, a_u = torch.autograd.grad(a, (t, u), create_graph=True)
    a_ut, a_uu = torch.autograd.grad(a_u, (t, u), retain_graph=True, allow_unused=True)
    none = torch.zeros_like(a.detach())
    return a.detach(), a_t.detach(), a_u.detach(), none if a_ut is None else a_ut, none if a_uu is None else a_uu


def cumulant_of(model: Any, prompts: Sequence[str], r1: Sequence[Weighted], r2: Sequence[Weighted]) -> Cumulant:
    """A(t, u) of an exact world's options and of rewards' options; `why_not` must have given no reason."""
    of_world = _partition_of(model)
    if of_world is None:
        raise TypeError(f"{type(model).__name__} has no closed form")
    partition, d = of_world(model, prompts)
    (a1, b1, q1), (a2, b2, q2) = _exponent(r1, d), _exponent(r2, d)

    def cumulant(t: Tensor, u: Tensor) -> Tensor:
        b = (t * b2 + u * b1).expand(len(prompts), d)
        q = (t * q2 + u * q1).expand(len(prompts), 1)
        constant: Tensor = t * a2 + u * a1
        return constant + partition(b, q)

    return cumulant


def _exponent(rewards: Sequence[Weighted], d: int) -> tuple[float, Tensor, float]:
    """a, b (d,) and q of a + b.x - q |x|^2."""
    import torch

    from genbo.rewards.linear import Linear

    a, b, q = 0.0, torch.zeros(d, dtype=torch.float64), 0.0
    for weight, reward in rewards:
        if isinstance(reward, Linear):
            b = b + weight * torch.as_tensor(reward.direction, dtype=torch.float64).expand(d)
            continue
        target = torch.as_tensor(reward.target, dtype=torch.float64).expand(d)
        a -= weight * reward.scale * target.square().sum().item()
        b = b + 2 * weight * reward.scale * target
        q += weight * reward.scale
    return a, b, q


# -- worlds ------------------------------------------------------------------------------------------------------------


def _partition_of(model: Any) -> Callable[[Any, Sequence[str]], tuple[Partition, int]] | None:
    from genbo.diffusion.models.exponential import Exponential
    from genbo.diffusion.models.gaussian import Gaussian
    from genbo.diffusion.models.mixture import Mixture

    worlds = {Gaussian: _gaussian, Mixture: _mixture, Exponential: _exponential}
    return worlds.get(type(model))


def _gaussian(model: Any, prompts: Sequence[str]) -> tuple[Partition, int]:
    import torch

    means = torch.tensor([model.means[prompt] for prompt in prompts], dtype=torch.float64)  # (C, d)
    return lambda b, q: _normal(means, model.std**2, b, q).sum(-1), means.shape[1]


def _mixture(model: Any, prompts: Sequence[str]) -> tuple[Partition, int]:
    import torch

    means = torch.tensor(model.means, dtype=torch.float64)  # (K, d)
    mine = torch.tensor([[label == prompt for label in model.labels] for prompt in prompts])
    share = torch.tensor(model.weights, dtype=torch.float64) * mine  # (C, K)
    log_share = (share / share.sum(1, keepdim=True)).log()

    def partition(b: Tensor, q: Tensor) -> Tensor:
        of_component = _normal(means, model.std**2, b[:, None], q[:, None]).sum(-1)  # (C, K)
        return (log_share + of_component).where(mine, -torch.inf).logsumexp(1)

    return partition, means.shape[1]


def _exponential(model: Any, prompts: Sequence[str]) -> tuple[Partition, int]:
    import torch

    means = torch.tensor([model.means[prompt] for prompt in prompts], dtype=torch.float64)  # (C, d)

    def partition(b: Tensor, q: Tensor) -> Tensor:
        rate, q = 1 / means - b, q.expand_as(means)
        if not (q > 0).any() and not (rate > 0).all():
            raise ValueError(
                "the tilted law is no law: lambda must be greater than the exponential's mean times r2's slope"
            )
        small = (q < SERIES * rate.square()) & (rate > 0)
        x = q.where(small, torch.zeros_like(q)) / rate.square()
        moments = [math.factorial(2 * k) / math.factorial(k) * (-x) ** k for k in range(1, TERMS)]  # of exp(-q x^2)
        by_series = torch.log1p(torch.stack(moments).sum(0)) - rate.where(small, 1.0).log()
        sure = q.where(~small, torch.ones_like(q))
        scaled = torch.special.erfcx(rate.where(~small, 1.0) / (2 * sure.sqrt()))
        by_erfcx = (math.pi / sure).sqrt().log() - math.log(2) + scaled.log()
        return (torch.where(small, by_series, by_erfcx) - means.log()).sum(-1)

    return partition, means.shape[1]


def _normal(mean: Tensor, variance: float, b: Tensor, q: Tensor) -> Tensor:
    """log E exp(b x - q x^2) of N(mean, variance), a coordinate an entry."""
    wide = 1 + 2 * q * variance
    return (b * mean + b**2 * variance / 2 - q * mean**2) / wide - wide.log() / 2
