"""Reweighted samples of the pretrained model: one bank for every lambda, without further network calls.

    w_i = exp(h_i) p0/q_i / sum_j ...,     h = r2 / lambda, or (r2 + r1 / gamma) / lambda;     for each prompt by itself

    E[r]         = sum_i w_i r_i                                    psi_i = w_i (r_i - E[r])
    Cov(r1, r2)  = sum_i w_i (r1_i - E[r1]) (r2_i - E[r2])          psi_i = w_i ((r1_i - E[r1]) (r2_i - E[r2]) - Cov)
    KL(p || p0)  = sum_i w_i log(w_i / v_i),   v_i = w_i at h = 0   psi_i = w_i (log(w_i / v_i) - KL) - (w_i - v_i)

The weights of one prompt know nothing of another: one softmax over all prompts would add the covariance of the prompts'
means, which has nothing to do with lambda. Within a prompt these ratios lean by O(1/n), and that does not average out
over prompts: many prompts take the jackknife, n theta - (n - 1) mean_i theta_{-i}, in closed form. It widens the
spread, which does average out; few prompts smooth the tail of their weights instead, which narrows it. The KL is that
of the weights as they are, and never below 0: smoothed weights do not match an exponent that is not smoothed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt

from genbo.bilevel.protocols import Drawing, LowerTraits

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.measured import Measured, Relative
    from genbo.bilevel.regularization.bank import Bank
    from genbo.bilevel.regularization.context import LawContext
    from genbo.bilevel.regularization.tilted import Fit, Law, SolveLaw

NEARLY_ALL = 1 - 1e-12  # a weight of 1 leaves nothing without it
NEARLY_ONE = 1e-3  # of log w/v: below it differences are taken by their series


@dataclass(frozen=True)
class Reweight:
    """`samples` a prompt are drawn first; `precision` is the standard error of log lambda that is good enough.

    With `bridge`, the noise of later samples is shifted towards the optimum; without, there are only more of them.
    `weights` are smoothed by their Pareto tail, plain, or plain with a jackknife; auto smooths few prompts.
    """

    weights: Literal["auto", "smoothed", "plain", "jackknife"] = "auto"
    samples: Annotated[int, Ge(2)] = 256
    precision: Annotated[float, Gt(0)] = 0.1
    bridge: bool = True
    traits: ClassVar[LowerTraits] = LowerTraits(
        finds="law",
        estimator="covariance",
        meaning="the tilt p0 exp(r2 / lambda), by the weights of samples of the pretrained model",
        free=True,
    )

    @property
    def drawing(self) -> Drawing:
        return Drawing(self.samples, "shifted" if self.bridge else "plain", self.precision)

    def mistakes(self) -> list[str]:
        return []

    def why_not(self, model: Any, *rewards: Any) -> str | None:
        return None

    def shortened(self, samples: int) -> Reweight:
        return replace(self, samples=samples)

    def begin(self, context: LawContext) -> SolveLaw:
        """At every lambda by the bank that knows it best: the better verdict, then the larger effective size.

        Raises:
            ValueError: of the function that it returns, where lambda is not greater than 0, or there is no bank.
        """
        from genbo.bilevel.regularization.context import by_best_bank

        return by_best_bank(self.solve, context.banks)

    def treatment(self, prompts: int) -> str:
        """What is done to the weights of a bank of so many prompts: `smoothed`, `plain` or `jackknife`."""
        from genbo.bilevel.measured import MANY_PROMPTS

        if self.weights != "auto":
            return self.weights
        return "jackknife" if prompts >= MANY_PROMPTS else "smoothed"

    def solve(self, bank: Bank, lam: float, gamma: float | None = None) -> Law:
        """The law at lambda > 0 by the samples of one bank, with the upper reward let in by 1 / gamma.

        Raises:
            ValueError: where lambda is not greater than 0.
        """
        from genbo.bilevel.regularization.pareto import smoothed
        from genbo.bilevel.regularization.tilted import Law

        if not lam > 0:
            raise ValueError(f"lambda must be greater than 0, not {lam:g}")
        tilt = (bank.r2 if gamma is None else bank.r2 + bank.r1 / gamma) / lam
        logw = tilt + bank.log_ratio
        treatment, tails = self.treatment(bank.prompts), smoothed(logw) if bank.prompts == 1 else None
        fit = fit_of(logw, None if tails is None else tails[1])
        taken = (tails or smoothed(logw))[0] if treatment == "smoothed" else logw
        jackknife = treatment == "jackknife"
        found = _Weighted(taken, jackknife=jackknife)
        return Law(
            lam=lam,
            gamma=gamma,
            r1=found.mean(bank.r1),
            r2=found.mean(bank.r2),
            kl=divergence(logw, bank.log_ratio, jackknife=jackknife),
            covariance=found.covariance(bank.r1, bank.r2),
            r1_sd=found.covariance(bank.r1, bank.r1).value.clamp(min=0).mean().sqrt().item(),
            fit=fit,
        )


def fit_of(logw: Tensor, khat: Tensor | None = None) -> Fit:
    """How well weights (C, n) know the mean over prompts; `khat` (1,) is their tail's where it is known.

    A sample's share in that mean is its weight over the number of prompts. The tail is that of all prompts' weights
    together, in units of each prompt's geometric mean: its sum would not do, since in a small group the largest weight
    makes the sum, and no tail would be seen.
    """
    from genbo.bilevel.regularization.pareto import smoothed
    from genbo.bilevel.regularization.tilted import Fit

    w = logw.softmax(1)
    if khat is None:
        khat = smoothed((logw - logw.mean(1, keepdim=True)).reshape(1, -1))[1]
    ess = (1 / w.square().sum(1)).sum().item()
    return Fit(ess=ess, max_weight=w.max().item() / len(w), khat=khat.item(), samples=logw.shape[1], prompts=len(w))


class _Weighted:
    """Sums under normalised weights w (C, n), and where asked the same without each sample in turn."""

    def __init__(self, logw: Tensor, *, jackknife: bool) -> None:
        self.w, self.n, self.jackknife = logw.softmax(1), logw.shape[1], jackknife

    def mean(self, x: Tensor) -> Measured:
        from genbo.bilevel.measured import Measured

        mean, away = self._centred(x)
        return Measured(self._corrected(mean, lambda: self._mean_without(away)), self.w * away)

    def covariance(self, x: Tensor, y: Tensor) -> Measured:
        from genbo.bilevel.measured import Measured

        (_, a), (_, b), w = self._centred(x), self._centred(y), self.w
        covariance = (w * a * b).sum(1)
        away = a * b - covariance[:, None]

        def moved() -> Tensor:
            return self._mean_without(away) - self._mean_without(a) * self._mean_without(b)

        return Measured(self._corrected(covariance, moved), w * away)

    def _centred(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = (self.w * x).sum(1)
        return mean, x - mean[:, None]

    def _mean_without(self, away: Tensor) -> Tensor:
        """How far the mean moves when a sample is left out."""
        return -self.w * away / (1 - self.w.clamp(max=NEARLY_ALL))

    def _corrected(self, value: Tensor, moved: Callable[[], Tensor]) -> Tensor:
        """n value - (n - 1) mean of the values without a sample, which are `moved` away from it."""
        return value - (self.n - 1) * moved().mean(1) if self.jackknife else value


def divergence(logw: Tensor, prior: Tensor, *, jackknife: bool) -> Relative:
    """KL(p || p0) from log-weights of both laws on the same samples, (C, n) each; not below 0 for any prompt.

    Where the jackknife would be, which happens where a sample or two have all the weight, the plain sum stands.
    """
    import torch

    from genbo.bilevel.measured import Relative

    log_w, log_v = logw.log_softmax(1), prior.log_softmax(1)
    w, v, log_r, n = log_w.exp(), log_v.exp(), log_w - log_v, logw.shape[1]
    small = log_r.abs() < NEARLY_ONE
    near = log_r.where(small, torch.zeros_like(log_r))  # where w and v agree in most of their digits
    more = torch.where(small, v * torch.expm1(near), w - v)
    each = torch.where(small, v * near**2 * (0.5 + near / 3 + near**2 / 8), w * log_r - more).clamp(min=0)
    kl = each.sum(1)
    away = log_r - kl[:, None]
    influence = w * away - more
    if jackknife:
        w_left, v_left = (1 - x.clamp(max=NEARLY_ALL) for x in (w, v))
        moved = -w * away / w_left - w_left.log() + v_left.log()
        corrected = n * kl - (n - 1) * (kl[:, None] + moved).mean(1)
        kl = torch.where(corrected >= 0, corrected, kl)
    return Relative(kl, influence)
