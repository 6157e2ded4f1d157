"""Gradient-guided sampling: every sample follows the gradient of r2 / lambda; drawn again at each lambda.

    eps <- eps - sigma_t a grad_{x_t} r(decode(x_0(x_t))),      r = r2,  or r2 + r1 / gamma

with the pull a = 1 / lambda (`diffusion/steering/tilt.py`). With a `target` y the pull is towards it, at the strength
1 / lambda (`diffusion/steering/target.py`), in linearised passes where there are any: the paper's Alg. 5, after Guo et
al. 2404.14743. `diffusion/sample.py` has the step. What is left at the end is a steered process, which is stored with
its rewards and draws what was judged. Its samples count the same, and all that is known of their
law is what they say: means, a covariance without lean, and with a stochastic sampler the KL divergence of its path from
the pretrained one's (`diffusion/path_kl.py`). With a deterministic sampler that KL is not known, and NaN.

It is not the tilt p_lambda. h is read at the mean of x_0 given x_t, where the tilt takes the mean of exp(h). The two
agree where p0 is Gaussian and r2 linear, with many steps; else not. In the mixture world of the tests at lambda = 0.6
the guided mean of r2 is 2.14 where the tilt has 1.99; in the skewed world at 0.7 it is 0.95 where the tilt has 1.75. So
lambdas are matched by E[r2] or KL (`bilevel.regularization.curve.matched`) before one is carried from one to the other.
And the KL of the path is near that of the samples with eta = 1 and many steps only: 40 steps make a quarter too much of
it, and eta = 0.3 three times as much again.

Nor is the guided law a minimum of -E[r2] + lambda KL, so the envelope theorem says nothing of it. `value_gap`, which is
the paper's way, is not its gradient, however large gamma is, and `covariance` is only where the law is the tilt. In
worlds with answers, beside the slope of the guided mean of r1 itself (eta = 1, 40 steps; with 500 the first two value
gaps are -0.65 and -1.18):

    world      lambda    slope    value_gap    covariance
    gaussian      2.0    -0.52        -0.78         -0.41
    gaussian      0.6     0.22        -1.41          0.18
    mixture       1.0     0.59         0.07          0.31
    skewed        1.0    -0.25        -0.47         -0.23

On images a step has to be kept short (`most`): a network that is sent beyond what it knows answers with images that
score less. The bundled model's CLIP score under guidance by itself, eta = 1, 10 steps, 8 images, each +- 0.02 or so:

    lambda        10    0.03    0.01    0.003    0.001
    most: null  0.56    0.58    0.52     0.31     0.10
    most: 0.3   0.56    0.59    0.58     0.59     0.61

The noise of a sample depends on the seed, its prompt and its number, and not on lambda or gamma. So means are smooth in
log lambda, and the slope is a plain difference of two solves (`bilevel/estimators/difference.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le

from genbo.bilevel.protocols import Drawing, LowerTraits
from genbo.diffusion.steer import Climbed, SteeringRule
from genbo.diffusion.steering.target import Target
from genbo.diffusion.steering.tilt import Tilt

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.regularization.bank_sampler import Chunk, Sampled, Tensors
    from genbo.bilevel.regularization.context import LawContext
    from genbo.bilevel.regularization.tilted import Law, SolveLaw
    from genbo.diffusion.process import Process

Weighted = Sequence[tuple[float, Any]]  # rewards, opened or their options, each with its weight


@dataclass(frozen=True)
class Guided:
    """`samples` a prompt are drawn at every lambda. The KL is known with a sampler that draws noise: ddim, eta: 1.0.

    `most` is the longest move of a step, where the noise in x_t is 1; null, as theory has it, suits the exact worlds.
    `target` is the value of r2 that every sample is drawn towards, in the paper's way; null climbs r2 without an end.
    `passes` are the linearised ones of a target: 0 looks at r2 itself at every step.
    """

    samples: Annotated[int, Ge(2)] = 64
    most: Annotated[float, Gt(0)] | None = 0.3
    target: float | None = None
    passes: Annotated[int, Ge(0), Le(100)] = 0
    traits: ClassVar[LowerTraits] = LowerTraits(
        finds="law",
        estimator="difference",
        meaning="the guided sampler's own law, not the tilt p0 exp(r2 / lambda)",
    )

    @property
    def drawing(self) -> Drawing:
        return Drawing(self.samples)

    @property
    def rule(self) -> SteeringRule:
        """How the reward pulls; its strength is 1 / lambda."""
        if self.target is None:
            return Tilt(self.most)
        return Target(self.target, self.passes, most=self.most)

    def mistakes(self) -> list[str]:
        if self.target is None:
            return ["passes: are those of a target; give target, or delete this"] if self.passes else []
        return [f"target: {text.partition(': ')[2]}" for text in self.rule.mistakes()]

    def why_not(self, model: Any, *rewards: Weighted) -> str | None:
        """None, or a sentence: why these rewards, the upper and then the lower, cannot be climbed."""
        return _without_gradient(rewards[-1], "guided climbs the gradient of the lower reward; use lower: reweight")

    def why_no_gap(self, sampler: Any, upper: Weighted) -> str | None:
        """None, or a sentence: why `value_gap` has nothing to go by here."""
        if self.target is not None:
            return "value_gap lets the upper reward in beside the lower one, and a target has no place for it; " + (
                "use estimator: difference"
            )
        if not sampler.stochastic:
            return (
                "value_gap needs the KL of guided samples, which a sampler without noise does not give; "
                "use model.sampler: {kind: ddim, eta: 1.0}"
            )
        return _without_gradient(upper, "value_gap climbs the upper reward as well; use another estimator")

    def shortened(self, samples: int) -> Guided:
        return replace(self, samples=samples)

    def begin(self, context: LawContext) -> SolveLaw:
        """Another lambda costs as many network calls again."""
        from genbo.bilevel.regularization.context import sampler_of

        return partial(self.solve, sampler_of(context.on or context.source))

    def solve(self, source: Sampled, lam: float, gamma: float | None = None) -> Law:
        """The guided law at lambda, from new samples of the source's process on noise that is always the same."""
        from genbo.bilevel.regularization.bank import bank_of, mistakes

        if not lam > 0:
            raise ValueError(f"lambda must be greater than 0, not {lam:g}")
        steered = self.steered(source.process, climbed(source.upper, source.lower, gamma), lam)

        def one(chunk: Chunk) -> Tensors:
            return chunk.over(source.process, lambda part: _drawn(source, steered, part))

        rows = source.keep(f"guided-{lam!r}-{gamma!r}", self._chunks(source), one)
        r1, r2, kl = (rows[name].reshape(len(source.prompts), self.samples) for name in ("r1", "r2", "kl"))
        bank = bank_of(r1, r2)
        if wrong := mistakes(bank, source.prompts):
            raise ValueError(f"{'; '.join(wrong)} (samples guided at lambda = {lam:g}; a larger lambda guides less)")
        return law_of(r1, r2, kl, lam, gamma)

    def steered(self, process: Process, rewards: Sequence[Climbed], lam: float) -> Process:
        """What draws the guided law at lambda."""
        return process.steered(rewards, 1 / lam, self.rule)

    def _chunks(self, source: Sampled) -> list[Chunk]:
        from genbo.bilevel.regularization.bank_sampler import Chunk
        from genbo.diffusion.seed import Batch

        rows = [(c, n) for c in range(len(source.prompts)) for n in range(self.samples)]
        seeds = [source.seed.child("guided", c, n).value for c, n in rows]
        whole = Batch(tuple(source.prompts[c] for c, _ in rows), tuple(seeds))
        size = source.process.batch
        return [Chunk(b, tuple(rows[k * size : (k + 1) * size])) for k, b in enumerate(whole.chunks(size))]


def climbed(upper: Weighted, lower: Weighted, gamma: float | None = None) -> list[Climbed]:
    """r2, or r2 + r1 / gamma, of opened rewards; ValueError where one has no gradient."""
    found = [*lower, *([] if gamma is None else [(weight / gamma, reward) for weight, reward in upper])]
    if wrong := _without_gradient(found, "guided sampling climbs every reward; take differentiable ones"):
        raise ValueError(wrong)
    return [Climbed(weight, reward) for weight, reward in found]


def law_of(r1: Tensor, r2: Tensor, kl: Tensor, lam: float, gamma: float | None) -> Law:
    """What samples (C, n) say of the law that they were drawn from, each counting the same; `kl` is that of each path.

    The same sums as over a bank of the pretrained model, with nothing tilted: lambda = infinity.
    """
    from genbo.bilevel.lower.reweight import Reweight
    from genbo.bilevel.measured import Measured
    from genbo.bilevel.regularization.bank import bank_of
    from genbo.bilevel.regularization.tilted import Fit

    n, mean = kl.shape[1], kl.double().mean(1)
    return replace(
        Reweight("jackknife").solve(bank_of(r1, r2), math.inf),
        lam=lam,
        gamma=gamma,
        kl=Measured(mean, (kl.double() - mean[:, None]) / n),
        fit=Fit(ess=float(kl.numel()), max_weight=1 / kl.numel(), khat=-math.inf, samples=n),
    )


def _drawn(source: Sampled, steered: Process, chunk: Chunk) -> Tensors:
    """Both rewards of guided samples, and the KL of the path of each, NaN where it is not known."""
    import torch

    from genbo.bilevel.scoring import total
    from genbo.diffusion.path_kl import sample_with_kl
    from genbo.diffusion.sample import sample

    process, prompts = source.process, chunk.batch.prompts
    with torch.no_grad():
        if process.sampler.stochastic and not (steered.steer and steered.steer.rule.passes):
            x, kl = sample_with_kl(steered, process, chunk.batch)
        else:
            x, kl = sample(steered, chunk.batch), torch.full((len(prompts),), torch.nan, dtype=torch.float64)
        images = process.model.decode(x)
        process.meter.reward_images += len(images)
        r1, r2 = (total(rewards, images, prompts).cpu() for rewards in (source.upper, source.lower))
    return {"r1": r1, "r2": r2, "kl": kl.cpu()}


def _without_gradient(rewards: Weighted, then: str) -> str | None:
    names = [type(reward).__module__.rpartition(".")[2] for _, reward in rewards if not reward.differentiable]
    return f"{' and '.join(dict.fromkeys(names))} has no gradient, and {then}" if names else None
