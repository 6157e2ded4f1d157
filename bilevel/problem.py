"""The two-level problem, and what its parts promise each other. No algorithm lives here.

    maximise over phi   F(phi) = E_z[ r(S(phi, z)) ]

A `Process` S turns noise z into samples; `Tunable`s put phi into it, each through unconstrained coordinates u so that
phi never leaves its domain; `Reward`s say how good the samples are, and `Constraint`s what must not get worse.
An `Estimator` turns this into a gradient in u, an `Optimizer` follows it, and `bilevel.loop` is the loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from genbo.bilevel.objective import MEAN, Objective
from genbo.bilevel.protocols import Estimate, Estimator, Learning, Tunable
from genbo.bilevel.scoring import OfSets, Reward, Taught, WholeSet
from genbo.diffusion.teacher import Lesson, Teachers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genbo.diffusion.process import Model, Process
    from genbo.diffusion.seed import Batch, Seed

T = TypeVar("T")


@dataclass(frozen=True)
class Drawn:
    """Samples (M * N, *shape) of a batch of N, member by member, and the images that they decode to."""

    batch: Batch
    samples: Tensor
    images: Tensor

    @property
    def members(self) -> int:
        """M."""
        return len(self.samples) // len(self.batch)


@dataclass(frozen=True)
class Constraint:
    """Hold the mean of a reward at or above a level.

    Attributes:
        name: its key under `keep:` in the job.
        reward: whose mean over the samples is held.
        at_least: the level, in the reward's own units.
        relative_to_start: whether the level is that of the start plus `at_least`, measured on the same noise.
    """

    name: str
    reward: Reward
    at_least: float
    relative_to_start: bool = False


@dataclass(frozen=True)
class SamplesAt:
    """Where an estimator is asked for a gradient, and on which samples.

    Attributes:
        u: the point, (P,) in float64.
        batch: N prompts and seeds.
        weights: (K,), of each reward and constraint: the objective is sum_k weights_k mean_n factor_n score_kn.
        seed: of whatever else the estimator draws.
        state: what it gave back at the step before, empty at first.
        factor: how much a sample of each prompt counts, where they do not all count 1.
    """

    u: Tensor
    batch: Batch
    weights: Tensor
    seed: Seed
    state: Mapping[str, Tensor] = field(default_factory=dict)
    factor: Mapping[str, float] | None = None

    def total(self, scores: Tensor, prompts: Sequence[str]) -> Tensor:
        """The weighted sum of the scores (K, ..., N) of samples of these N prompts, (..., N); differentiable."""
        import torch

        found = torch.einsum("k,k...n->...n", self.weights.to(scores), scores)
        return found if self.factor is None else found * self.factors(prompts).to(scores)

    def factors(self, prompts: Sequence[str]) -> Tensor:
        """How much a sample of each of these prompts counts, (N,) in float64."""
        import torch

        return torch.tensor([1.0 if self.factor is None else self.factor[p] for p in prompts], dtype=torch.float64)


SampleEstimator: TypeAlias = "Estimator[Problem, SamplesAt, Estimate]"


@dataclass(frozen=True)
class Problem:
    """What is tuned, of what, for what. phi, u and scores are in float64, whatever the network computes in.

    Attributes:
        process: turns noise into samples.
        tunables: put phi into the process, each a stretch of it, in this order.
        rewards: the upper objective is their weighted sum; weights may be negative.
        constraints: what must not get worse.
        teachers: the samples of rewards that compare with another sampler, kept so that they are drawn once.
        learning: the lower level, where it trains the network that is sampled.
        judges: score what is drawn and steer nothing; the held-out evaluation alone has any.
        objective: over the prompts, the mean reward of all of them unless it is another.
        student: whose teachers these are, where it is not `process`: the job's own, where parts of it are chosen.
    """

    process: Process
    tunables: tuple[Tunable, ...]
    rewards: tuple[tuple[float, Reward], ...]
    constraints: tuple[Constraint, ...] = ()
    teachers: Teachers = field(default_factory=Teachers, compare=False)
    learning: Learning | None = field(default=None, compare=False)
    judges: tuple[Reward, ...] = ()
    objective: Objective = MEAN
    student: Process | None = None

    @property
    def reward_weights(self) -> Tensor:
        """Of the rewards in the upper objective, (R,) in float64."""
        import torch

        return torch.tensor([weight for weight, _ in self.rewards], dtype=torch.float64)

    # -- coordinates ---------------------------------------------------------------------------------------------

    @property
    def sizes(self) -> list[int]:
        """How many numbers each tunable has, in their order; P is the sum."""
        return [t.size(self.process.steps) for t in self.tunables]

    @property
    def parameters(self) -> int:
        """P, how many numbers are tuned."""
        return sum(self.sizes)

    def first(self) -> Tensor:
        """phi at the start, all tunables joined, (P,) in float64."""
        import torch

        none = torch.zeros(0, dtype=torch.float64)  # where choices alone are tuned
        return torch.cat([none, *(t.first(self.process.steps) for t in self.tunables)])

    def coordinates(self, phi: Tensor) -> Tensor:
        """phi (..., P) -> u (..., P), the inverse of `value`; a phi on a bound begins a little inside."""
        return self._each("coordinates", phi)

    def value(self, u: Tensor) -> Tensor:
        """u (..., P), any numbers -> phi (..., P) inside its domain; differentiable."""
        return self._each("value", u)

    def _each(self, link: str, x: Tensor) -> Tensor:
        import torch

        if not self.tunables:
            return x
        parts = x.split(self.sizes, dim=-1)
        return torch.cat([getattr(t, link)(part) for t, part in zip(self.tunables, parts, strict=True)], dim=-1)

    def at(self, phi: Tensor) -> Process:
        """The process at phi: (P,), or (M, P) for M members that are sampled together. Differentiable in phi.

        Raises:
            KeyError: where a tunable names an option that the guidance rule or the network does not have.
        """
        process = self.process
        phi = phi if phi.ndim == 2 else phi[None]
        for tunable, part in zip(self.tunables, phi.split(self.sizes, dim=-1), strict=True):
            process = tunable.embed(process, part)
        return process

    def spoken(self, phi: Tensor) -> dict[str, float | list[float]]:
        """phi (P,) as a person writes it, by the tunables' names."""
        return {t.name: t.spoken(p) for t, p in zip(self.tunables, phi.split(self.sizes), strict=True)}

    # -- scores --------------------------------------------------------------------------------------------------

    @property
    def scorers(self) -> tuple[Reward, ...]:
        """Rewards, constraints and judges, the rows of every table of scores."""
        return (*(reward for _, reward in self.rewards), *(c.reward for c in self.constraints), *self.judges)

    def chunks(self, batch: Batch, members: int) -> Iterator[Batch]:
        """The batch in parts whose members all fit into one call of the network; a sample's members stay together."""
        return batch.chunks(samples_per_call(self.process.batch, members))

    def drawn(self, phi: Tensor, chunk: Batch, *, paired: bool = False, checkpoint: bool = False) -> Drawn:
        """Samples and images at phi (M, P), all members in one call of the network; differentiable in phi.

        `paired` and `checkpoint` are as in `live_scores`.

        Raises:
            ValueError: as `genbo.diffusion.sample.sample` does.
        """
        from genbo.diffusion.sample import sample

        process = self.at(phi)
        samples = sample(process, chunk, paired=paired, checkpoint=checkpoint)
        return Drawn(chunk, samples, process.model.decode(samples))

    def prepare(self, batch: Batch) -> None:
        """Draw the teachers' samples of a whole batch, before it is split among members into small parts."""
        for lesson in {_lesson(reward): None for reward in self.scorers if isinstance(reward, Taught)}:
            self.teachers.samples(self.student or self.process, lesson, batch)

    def scores(self, phi: Tensor, batch: Batch) -> Tensor:
        """Every reward and constraint of every sample, drawn on the same noise for all members; no gradients.

        Args:
            phi: (M, P).
            batch: N prompts and seeds, of any number; it goes through the network in parts.

        Returns:
            (K, M, N) in float64 on the CPU, in each reward's own units.
        """
        return self.scored(self.columns(phi, batch))

    def columns(self, phi: Tensor, batch: Batch) -> list[Tensor]:
        """What each scorer sees in every sample at phi (M, P): scores (M, N), or features (M, N, D), no gradients."""
        import torch

        def one(chunk: Batch) -> list[Tensor]:
            with torch.no_grad():
                seen = self.seen(self.drawn(phi, chunk))
            return [x.unflatten(0, (len(phi), len(chunk))) for x in seen]

        self.prepare(batch)
        parts = self.process.over(batch, one, members=len(phi))
        return [torch.cat(column, dim=1) for column in zip(*parts, strict=True)]

    def scored(self, columns: Sequence[Tensor]) -> Tensor:
        """(K, M, N) in float64 on the CPU, from the `columns` of whole sets of N samples."""
        import torch

        with torch.no_grad():
            members = range(len(columns[0]))
            return torch.stack([self.judged([x[m] for x in columns]) for m in members], dim=1).cpu()

    def seen(self, drawn: Drawn) -> list[Tensor]:
        """What each scorer sees in samples, which may be a part of a set: scores (M * N,), or features (M * N, D)."""
        self.process.meter.reward_images += len(drawn.images) * (1 + len(self.judges))
        return [
            r.features(drawn.images) if isinstance(r, OfSets) else self._score(r, drawn).double() for r in self.scorers
        ]

    def judged(self, seen: Sequence[Tensor]) -> Tensor:
        """(K, N) in float64, from what was seen of a whole set of N samples."""
        import torch

        pairs = zip(self.scorers, seen, strict=True)
        return torch.stack([(r.rows(x) if isinstance(r, OfSets) else x).double() for r, x in pairs])

    def in_parts(self, phi: Tensor, batch: Batch, one: Callable[[Batch, WholeSet | None], T]) -> Iterator[T]:
        """`one` of every part of a batch, with what rewards of sets say of the whole of it at phi (P,), if need be."""
        known: list[WholeSet] = []

        def of(here: slice) -> T:
            part = batch.part(here)
            if len(part) == len(batch) or not any(isinstance(reward, OfSets) for reward in self.scorers):
                return one(part, None)
            if not known:
                known.append(self._whole(phi, batch))
            return one(part, known[0].part(here))

        return self.process.room.over(len(batch), self.process.batch, 1, of)

    def _whole(self, phi: Tensor, batch: Batch) -> WholeSet:
        """All samples drawn once more, for what is said of the set alone."""
        import torch

        def one(chunk: Batch) -> list[Tensor]:
            with torch.no_grad():
                return self.seen(self.drawn(phi[None], chunk))

        columns = zip(*self.process.over(batch, one), strict=True)
        pairs = [(k, r, torch.cat(x)) for (k, r), x in zip(enumerate(self.scorers), columns, strict=True)]
        sets = [(k, r, x) for k, r, x in pairs if isinstance(r, OfSets)]
        return WholeSet({k: r.rows(x) for k, r, x in sets}, {k: r.pull(x) for k, r, x in sets})

    def live_scores(
        self,
        phi: Tensor,
        chunk: Batch,
        *,
        paired: bool = False,
        checkpoint: bool = False,
        whole: WholeSet | None = None,
    ) -> Tensor:
        """Scores of one chunk, differentiable in phi.

        Args:
            phi: (1, P); or (N, P), a row a sample, when `paired`.
            chunk: N samples that fit into one call of the network.
            paired: whether sample n is drawn at row n of phi.
            checkpoint: whether steps of the sampler are computed again on the way back, to save memory.
            whole: what set rewards give these samples as part of a larger set; by default the chunk is the whole set.

        Returns:
            (K, N) in float64, on the model's device.
        """
        import torch

        seen = self.seen(self.drawn(phi, chunk, paired=paired, checkpoint=checkpoint))
        rows = []
        for k, (reward, x) in enumerate(zip(self.scorers, seen, strict=True)):
            if isinstance(reward, OfSets):
                of_set = whole or WholeSet({k: reward.rows(x.detach())}, {k: reward.pull(x.detach())})
                x = reward.shares(x, of_set.rows[k], of_set.pulls[k])
            rows.append(x.double())
        return torch.stack(rows)

    def _score(self, reward: Reward, drawn: Drawn) -> Tensor:
        import torch

        if not isinstance(reward, Taught):
            return reward(drawn.images, drawn.batch.prompts * drawn.members)
        teachers = self.teachers.samples(self.student or self.process, _lesson(reward), drawn.batch)
        if not reward.latent:
            with torch.no_grad():
                teachers = self.process.model.decode(teachers)
        of_row = torch.arange(len(drawn.samples), device=teachers.device) % len(drawn.batch)
        return reward.beside(drawn.samples if reward.latent else drawn.images, teachers[of_row])

    def settled(self, phi: Tensor) -> Tensor:
        """phi (P,) as it can be written down and used: what a tunable has to round is rounded."""
        import torch

        if not self.tunables:
            return phi
        parts = zip(self.tunables, phi.split(self.sizes), strict=True)
        return torch.cat([tunable.settled(part) for tunable, part in parts])

    def with_model(self, model: Model) -> Problem:
        """The same problem of another network, on the same meter."""
        return replace(self, process=replace(self.process, model=model))

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.process.model.device


def _lesson(reward: Taught) -> Lesson:
    return Lesson(reward.steps, reward.sampler)


def samples_per_call(batch: int, members: int) -> int:
    """How many samples, 1 or more, go through the network together when each comes in `members` versions."""
    return max(1, batch // members)


def calls(samples: int, members: int, batch: int, steps: int) -> int:
    """Network calls that it takes to draw `samples` samples in `members` versions."""
    return steps * math.ceil(samples / samples_per_call(batch, members))
