"""Fine-tuning: trains weights whose samples follow the tilted distribution.

    weighted    sum_i w_i E |eps(x_t) - eps|^2 over samples x_i of the pretrained model; w_i their weights at lambda
    gradient    KL(path || path of the pretrained model) - E[r2] / lambda, by gradients of r2 through every step
    adjoint     the same problem by regression: adjoint matching, see `bilevel.training.adjoint`

The minimiser of each is p_lambda, where the network can say it. `weighted` takes any reward and asks the network for
nothing but denoising; what it can reach is what the samples hold. The two others want a differentiable reward and are
not bound to samples that are there already. `gradient` never cuts the chain of steps short, and each costs a network
pass there, two back, and one of the pretrained model. `adjoint` goes back through the pretrained model alone, has far
less noise, and wants no more memory than one prediction.

As a lower level (`solver`): the law at lambda is measured on the tuned process' own samples, its KL along their paths
under DDIM with eta = 1 (`diffusion.path_kl`). Let in the upper reward, and z is trained on from y with the same draws,

    y = argmin L(r2),   z = argmin L(r2 + r1 / gamma), started at y

so the value gap's two terms share all their noise. This is the paper's general algorithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt

from genbo.bilevel.lower._measured_law import is_world, measured, noisy
from genbo.bilevel.protocols import Drawing, LowerTraits

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.regularization.bank import Bank
    from genbo.bilevel.regularization.bank_sampler import Sampled
    from genbo.bilevel.regularization.context import LawContext
    from genbo.bilevel.regularization.tilted import Fit, Law, SolveLaw
    from genbo.bilevel.scoring import Weighted
    from genbo.bilevel.training.finetuning import Loss, Moment, Training
    from genbo.diffusion.process import Process
    from genbo.diffusion.seed import Batch, Seed

WORLD_ROWS = {"weighted": 16384, "gradient": 512, "adjoint": 256}  # of a step
WORLD_LR = 0.15  # of a regression that has an exact world's few numbers to find
WORLD_LEVELS = 40  # of a path that an exact world is matched on
LEVEL_ROWS = 16  # of each noise level, from which it is estimated how much its targets scatter
HOLD = 0.1  # of the samples' own pull, towards what the pretrained network says


@dataclass(frozen=True)
class Finetune:
    """How the weights are trained, and on how many samples.

    `samples` a prompt are learned from, and as many measured. `rank` and `layers` are LoRA's; auto trains LoRA on a
    network, and every number of an exact world, those by L-BFGS. `anchor` takes the pretrained model's own error on the
    samples out of the weighted loss; `levels: scatter` weights each noise level there by the inverse of how much its
    targets scatter, on a network. `path_steps` are those of the paths that `adjoint` trains on, by default the
    sampler's own, and `clip` the longest adjoint that counts as it is, in medians; exact worlds clip none.
    """

    method: Literal["weighted", "gradient", "adjoint"] = "weighted"
    adapter: Literal["auto", "lora", "full"] = "auto"
    rank: Annotated[int, Ge(1)] = 16
    layers: Literal["attention", "all"] = "all"
    samples: Annotated[int, Ge(2)] = 256
    steps: Annotated[int, Ge(1)] = 100
    batch: Annotated[int, Ge(1)] = 32
    lr: Annotated[float, Gt(0)] = 1e-3
    anchor: bool = True
    levels: Literal["scatter", "even"] = "scatter"
    path_steps: Annotated[int, Ge(2)] | None = None
    clip: Annotated[float, Gt(0)] = 4.0
    traits: ClassVar[LowerTraits] = LowerTraits(
        finds="law",
        estimator="value_gap",
        meaning="the law of weights that were tuned at lambda, which learn the tilt as far as they can",
    )

    @property
    def drawing(self) -> Drawing:
        return Drawing(self.samples, "plain" if self.method == "weighted" else "none")

    def mistakes(self) -> list[str]:
        return []

    def why_not(self, model: Any, *rewards: Any) -> str | None:
        """None, or a sentence; the last of the rewards are those of the lower level."""
        lower = rewards[-1] if rewards else ()
        if self.method != "weighted" and not all(reward.differentiable for _, reward in lower):
            return f"finetune with method: {self.method} needs a differentiable lower reward; use method: weighted"
        return None

    # -- training ----------------------------------------------------------------------------------------------------

    def adapted(self, process: Process, seed: Seed) -> Process:
        """The process with a trainable model, which says what the pretrained one says."""
        from genbo.diffusion.adapt import Adapter, adapt

        how = ("full" if is_world(process.model) else "lora") if self.adapter == "auto" else self.adapter
        return replace(process, model=adapt(process.model, Adapter(how, self.rank, self.layers), seed.child("adapter")))

    def weighted(
        self,
        process: Process,
        prompts: Sequence[str],
        samples: Tensor,
        logw: Tensor,
        seed: Seed,
        *,
        start: Process | None = None,
        proposal: Tensor | None = None,
        prior: Tensor | None = None,
        state: Mapping[str, Tensor] | None = None,
    ) -> Training:
        """Training on samples (C, n, *shape) of the process, log-weights (C, n); what runs through it trains.

        `start` is a trained process to go on from, `proposal` the weights by which samples are drawn where not `logw`,
        `prior` their log p0 / q where they were not drawn from the process as it is, `state` that of a training that
        was left.
        """
        from genbo.bilevel.training.finetuning import Denoise, fixed_in
        from genbo.bilevel.training.level_weights import level_weights

        base, hold = process if self.anchor else None, 0.0 if is_world(process.model) else HOLD
        fixed = fixed_in(state)
        if self.levels == "scatter" and not fixed and not is_world(process.model):
            fixed = {"levels": level_weights(process, prompts, samples, prior, LEVEL_ROWS, seed)}
        more = (self._rows(process), seed, proposal, prior, base, hold, fixed.get("levels"))
        return self._training(process, Denoise(prompts, samples, logw, *more), seed, start, state, fixed)

    def tilted(
        self,
        process: Process,
        prompts: Sequence[str],
        bank: Bank,
        lam: float,
        seed: Seed,
        *,
        gamma: float | None = None,
        start: Process | None = None,
        state: Mapping[str, Tensor] | None = None,
    ) -> Training:
        """`weighted` on a bank's samples towards its tilt at lambda, wherever they were drawn; with gamma z, from y."""
        assert bank.x is not None
        logw = bank.r2 / lam + bank.log_ratio
        proposal = None if gamma is None else logw
        if gamma is not None:
            logw = logw + bank.r1 / (gamma * lam)
        given = {"start": start, "proposal": proposal, "prior": bank.log_ratio, "state": state}
        return self.weighted(process, prompts, bank.x, logw, seed, **given)  # type: ignore[arg-type]

    def gradient(
        self,
        process: Process,
        prompts: Sequence[str],
        reward: Weighted,
        lam: float,
        seed: Seed,
        *,
        start: Process | None = None,
        state: Mapping[str, Tensor] | None = None,
    ) -> Training:
        """Training by gradients of a reward through the steps of DDIM with eta = 1."""
        from genbo.bilevel.training.finetuning import Climb

        loss = Climb(noisy(process), prompts, reward, lam, self._rows(process), seed)
        return self._training(noisy(process), loss, seed, start and noisy(start), state)

    def adjoint(
        self,
        process: Process,
        prompts: Sequence[str],
        reward: Weighted,
        lam: float,
        seed: Seed,
        *,
        start: Process | None = None,
        state: Mapping[str, Tensor] | None = None,
    ) -> Training:
        """Training by adjoint matching, on paths of the memoryless sampler."""
        from genbo.bilevel.training.adjoint import Match
        from genbo.bilevel.training.memoryless import memoryless

        world = is_world(process.model)
        base = memoryless(process, WORLD_LEVELS if world else self.path_steps)
        clip = math.inf if world else self.clip
        loss = Match(base, prompts, reward, lam, self._rows(process), seed, clip)
        return self._training(base, loss, seed, start, state)

    def by_reward(
        self,
        process: Process,
        prompts: Sequence[str],
        reward: Weighted,
        lam: float,
        seed: Seed,
        *,
        start: Process | None = None,
        state: Mapping[str, Tensor] | None = None,
    ) -> Training:
        """The training of a method that learns from the reward's gradients, and not from samples."""
        train = self.adjoint if self.method == "adjoint" else self.gradient
        return train(process, prompts, reward, lam, seed, start=start, state=state)

    def train(
        self,
        process: Process,
        prompts: Sequence[str],
        samples: Tensor,
        logw: Tensor,
        seed: Seed,
        on_step: Callable[[Moment], None] = lambda moment: None,
    ) -> Process:
        """`weighted` to its end: the process with the tuned model."""
        for moment in (training := self.weighted(process, prompts, samples, logw, seed)):
            on_step(moment)
        return training.process

    def _training(
        self,
        process: Process,
        loss: Loss,
        seed: Seed,
        start: Process | None,
        state: Mapping[str, Tensor] | None,
        fixed: Mapping[str, Tensor] | None = None,
    ) -> Training:
        from genbo.bilevel.training.finetuning import Pace, Training
        from genbo.diffusion.adapt import restore, tensors

        own = self.adapted(process, seed)
        if start is not None:
            restore(own.model, tensors(start.model))  # type: ignore[arg-type]
        world = is_world(process.model)
        pace = Pace(self.steps, WORLD_LR if world else self.lr, newton=world and self.method != "adjoint")
        return Training(own, loss, pace, state, fixed)

    def _rows(self, process: Process) -> int:
        """Of a step. An exact world is cheap, and its draws stay the same: there are many."""
        return max(self.batch, WORLD_ROWS[self.method]) if is_world(process.model) else self.batch

    # -- the lower level ---------------------------------------------------------------------------------------------

    def shortened(self, samples: int) -> Finetune:
        return replace(self, samples=samples, steps=2)

    def begin(self, context: LawContext) -> SolveLaw:
        """Another lambda is another training, on the first bank where the method learns from samples."""
        from genbo.bilevel.regularization.context import sampler_of

        source, bank = sampler_of(context.source), context.banks[0] if context.banks else None
        seed = context.seed or source.seed
        solver = self.solver(source.process, source.prompts, source.upper, source.lower, seed, bank)
        return solver if context.on is None else solver.on(sampler_of(context.on))

    def solver(
        self, process: Process, prompts: Sequence[str], upper: Weighted, lower: Weighted, seed: Seed, bank: Bank | None
    ) -> TrainedLaws:
        """A `SolveLaw` by training; `weighted` learns from the samples in `bank`."""
        if self.method == "weighted" and (bank is None or bank.x is None):
            raise ValueError("a weighted fine-tune learns from samples: draw a bank that keeps them")
        return TrainedLaws(self, process, tuple(prompts), upper, lower, seed, bank)


@dataclass
class TrainedLaws:
    """The law at lambda, by training there and looking at what comes of it. What was trained is kept."""

    options: Finetune
    process: Process
    prompts: tuple[str, ...]
    upper: Weighted
    lower: Weighted
    seed: Seed
    bank: Bank | None
    trained: dict[tuple[float, float | None], Process] = field(default_factory=dict)

    def __call__(self, lam: float, gamma: float | None = None) -> Law:
        if not lam > 0:
            raise ValueError(f"lambda must be greater than 0, not {lam:g}")
        law = measured(self.tuned(lam, gamma), self.process, self.batch, self.upper, self.lower, lam, gamma)
        return law if self.bank is None else replace(law, fit=self._learned_from(lam, law.fit))

    def _learned_from(self, lam: float, own: Fit) -> Fit:
        """How well the bank's samples cover the law at lambda, where that is worse: training adds nothing to them."""
        from genbo.bilevel.lower.reweight import fit_of
        from genbo.bilevel.regularization.tilted import VERDICTS

        assert self.bank is not None
        fit = fit_of(self.bank.r2 / lam + self.bank.log_ratio)
        return max(own, fit, key=lambda f: VERDICTS.index(f.verdict))

    def tuned(self, lam: float, gamma: float | None = None) -> Process:
        """The process that was trained at lambda: y, or with gamma z, from y."""
        if (lam, gamma) not in self.trained:
            trained = self.training(lam, gamma).run()
            paths = self.options.method == "adjoint"  # whose own sampler is for training alone
            self.trained[lam, gamma] = replace(self.process, model=trained.model) if paths else trained
        return self.trained[lam, gamma]

    def training(self, lam: float, gamma: float | None = None) -> Training:
        """The training at lambda, before it is run; z wants y to have been trained."""
        y = None if gamma is None else self.tuned(lam)
        if self.options.method != "weighted":
            let_in = [] if gamma is None else [(weight / gamma, reward) for weight, reward in self.upper]
            reward = [*self.lower, *let_in]
            return self.options.by_reward(self.process, self.prompts, reward, lam, self.seed, start=y)
        assert self.bank is not None
        return self.options.tilted(self.process, self.prompts, self.bank, lam, self.seed, gamma=gamma, start=y)

    def on(self, source: Sampled) -> SolveLaw:
        """The laws of the same weights on other prompts and noise."""

        def solve(lam: float, gamma: float | None = None) -> Law:
            batch = self._batch(source.prompts, source.seed)
            return measured(self.tuned(lam, gamma), self.process, batch, self.upper, self.lower, lam, gamma)

        return solve

    @property
    def batch(self) -> Batch:
        """What every law is measured on: the same noise for all of them."""
        return self._batch(self.prompts, self.seed)

    def _batch(self, prompts: Sequence[str], seed: Seed) -> Batch:
        from genbo.diffusion.seed import Batch

        names = [(c, n) for c in range(len(prompts)) for n in range(self.options.samples)]
        seeds = tuple(seed.child("law", c, n).value for c, n in names)
        return Batch(tuple(prompts[c] for c, _ in names), seeds)
