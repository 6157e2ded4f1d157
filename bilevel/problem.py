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
from typing import TYPE_CHECKING, Protocol, TypeVar

from genbo.bilevel.protocols import Estimate, Facts, Learning, Tunable
from genbo.bilevel.scoring import OfSets, Reward, Taught, Whole
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
        return len(self.samples) // len(self.batch)


@dataclass(frozen=True)
class Constraint:
    """Hold the mean of a reward at or above a level: `at_least`, or the start's own level plus `at_least`."""

    name: str
    reward: Reward
    at_least: float
    relative_to_start: bool = False


class Estimator(Protocol):
    """A gradient from samples; a file in `bilevel/estimators/` each, whose fields are its options."""

    def why_not(self, facts: Facts) -> str | None:
        """None, or a sentence: why it cannot work here, and what to do instead."""

    def trajectories(self, parameters: int) -> int:
        """How many samplings of every sample one gradient takes."""

    def network_passes(self) -> int:
        """Network calls a sampling step: 1, or 2 where the step is computed again on the way back."""

    def draws(self, parameters: int) -> list[list[frozenset[int] | None]]:
        """The samplings of one gradient, for the plan: a list for each that goes through the network by itself.

        In it a member an entry: which coordinates of u are moved there, or None where u is differentiated.
        """

    def __call__(
        self,
        problem: Problem,
        u: Tensor,
        batch: Batch,
        weights: Tensor,
        seed: Seed,
        state: Mapping[str, Tensor],
    ) -> tuple[Estimate, dict[str, Tensor]]:
        """The gradient at u (P,) of sum_k weights_k mean_n score_kn, by samples of `batch`.

        `state` is what the estimator itself returned at the step before, empty at first.
        """


@dataclass(frozen=True)
class Problem:
    """What is tuned, of what, for what. phi, u and scores are in float64, whatever the network computes in.

    `judges` score what is drawn and steer nothing: the held-out evaluation alone has any.
    """

    process: Process
    tunables: tuple[Tunable, ...]
    rewards: tuple[tuple[float, Reward], ...]
    constraints: tuple[Constraint, ...] = ()
    teachers: Teachers = field(default_factory=Teachers, compare=False)
    learning: Learning | None = field(default=None, compare=False)
    judges: tuple[Reward, ...] = ()

    # -- coordinates ---------------------------------------------------------------------------------------------

    @property
    def sizes(self) -> list[int]:
        return [t.size(self.process.steps) for t in self.tunables]

    @property
    def parameters(self) -> int:
        return sum(self.sizes)

    def first(self) -> Tensor:
        """phi at the start, all tunables joined, (P,)."""
        import torch

        return torch.cat([t.first(self.process.steps) for t in self.tunables])

    def coordinates(self, phi: Tensor) -> Tensor:
        """phi (..., P) -> u (..., P)."""
        return self._each("coordinates", phi)

    def value(self, u: Tensor) -> Tensor:
        """u (..., P) -> phi (..., P)."""
        return self._each("value", u)

    def _each(self, link: str, x: Tensor) -> Tensor:
        import torch

        parts = x.split(self.sizes, dim=-1)
        return torch.cat([getattr(t, link)(part) for t, part in zip(self.tunables, parts, strict=True)], dim=-1)

    def at(self, phi: Tensor) -> Process:
        """The process at phi: (P,) or, for M members at once, (M, P)."""
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
        """Samples and images at phi, all members in one call of the network; differentiable in phi."""
        from genbo.diffusion.sample import sample

        process = self.at(phi)
        samples = sample(process, chunk, paired=paired, checkpoint=checkpoint)
        return Drawn(chunk, samples, process.model.decode(samples))

    def prepare(self, batch: Batch) -> None:
        """Draw the teachers' samples of a whole batch, before it is split among members into small parts."""
        for lesson in {_lesson(reward): None for reward in self.scorers if isinstance(reward, Taught)}:
            self.teachers.samples(self.process, lesson, batch)

    def scores(self, phi: Tensor, batch: Batch) -> Tensor:
        """Every reward and constraint of every sample at phi (M, P): (K, M, N), float64, on the CPU, no gradients."""
        import torch

        def one(chunk: Batch) -> list[Tensor]:
            with torch.no_grad():
                seen = self.seen(self.drawn(phi, chunk))
            return [x.unflatten(0, (len(phi), len(chunk))) for x in seen]

        self.prepare(batch)
        parts = self.process.over(batch, one, members=len(phi))
        joined = [torch.cat(column, dim=1) for column in zip(*parts, strict=True)]
        with torch.no_grad():
            return torch.stack([self.judged([x[m] for x in joined]) for m in range(len(phi))], dim=1).cpu()

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

    def in_parts(self, phi: Tensor, batch: Batch, one: Callable[[Batch, Whole | None], T]) -> Iterator[T]:
        """`one` of every part of a batch, with what rewards of sets say of the whole of it at phi (P,), if need be."""
        known: list[Whole] = []

        def of(here: slice) -> T:
            part = batch.part(here)
            if len(part) == len(batch) or not any(isinstance(reward, OfSets) for reward in self.scorers):
                return one(part, None)
            if not known:
                known.append(self._whole(phi, batch))
            return one(part, known[0].part(here))

        return self.process.room.over(len(batch), self.process.batch, 1, of)

    def _whole(self, phi: Tensor, batch: Batch) -> Whole:
        """All samples drawn once more, for what is said of the set alone."""
        import torch

        def one(chunk: Batch) -> list[Tensor]:
            with torch.no_grad():
                return self.seen(self.drawn(phi[None], chunk))

        columns = zip(*self.process.over(batch, one), strict=True)
        pairs = [(k, r, torch.cat(x)) for (k, r), x in zip(enumerate(self.scorers), columns, strict=True)]
        sets = [(k, r, x) for k, r, x in pairs if isinstance(r, OfSets)]
        return Whole({k: r.rows(x) for k, r, x in sets}, {k: r.pull(x) for k, r, x in sets})

    def live_scores(
        self, phi: Tensor, chunk: Batch, *, paired: bool = False, checkpoint: bool = False, whole: Whole | None = None
    ) -> Tensor:
        """Scores (K, N) of one chunk at one phi (1, P), or at one a sample when paired; differentiable in phi.

        Rewards of sets take the chunk for the whole set, unless `whole` says at these samples what all of it says.
        """
        import torch

        seen = self.seen(self.drawn(phi, chunk, paired=paired, checkpoint=checkpoint))
        rows = []
        for k, (reward, x) in enumerate(zip(self.scorers, seen, strict=True)):
            if isinstance(reward, OfSets):
                of_set = whole or Whole({k: reward.rows(x.detach())}, {k: reward.pull(x.detach())})
                x = reward.shares(x, of_set.rows[k], of_set.pulls[k])
            rows.append(x.double())
        return torch.stack(rows)

    def _score(self, reward: Reward, drawn: Drawn) -> Tensor:
        import torch

        if not isinstance(reward, Taught):
            return reward(drawn.images, drawn.batch.prompts * drawn.members)
        teachers = self.teachers.samples(self.process, _lesson(reward), drawn.batch)
        if not reward.latent:
            with torch.no_grad():
                teachers = self.process.model.decode(teachers)
        of_row = torch.arange(len(drawn.samples), device=teachers.device) % len(drawn.batch)
        return reward.beside(drawn.samples if reward.latent else drawn.images, teachers[of_row])

    def settled(self, phi: Tensor) -> Tensor:
        """phi (P,) as it can be written down and used: what a tunable has to round is rounded."""
        import torch

        parts = zip(self.tunables, phi.split(self.sizes), strict=True)
        return torch.cat([getattr(tunable, "settled", lambda part: part)(part) for tunable, part in parts])

    def with_model(self, model: Model) -> Problem:
        """The same problem of another network, on the same meter."""
        return replace(self, process=replace(self.process, model=model))

    @property
    def device(self) -> torch.device:
        return self.process.model.device


def _lesson(reward: Taught) -> Lesson:
    return Lesson(reward.steps, reward.sampler)


def samples_per_call(batch: int, members: int) -> int:
    """How many samples go through the network together when each comes in `members` versions."""
    return max(1, batch // members)


def calls(samples: int, members: int, batch: int, steps: int) -> int:
    """Network calls that it takes to draw `samples` samples in `members` versions."""
    return steps * math.ceil(samples / samples_per_call(batch, members))
