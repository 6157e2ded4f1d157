"""Banks from a sampler: the noise of a batch, shifted where that is asked for, through the network, and scored.

A sample depends on the seed, the round, its prompt and its number alone, so a bank does not depend on how it was cut
into calls. What is drawn passes through `keep`, a chunk at a time: who holds files may find a chunk there again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from genbo.bilevel.regularization.bank import Bank
from genbo.bilevel.regularization.proposal import Shifts, pilot
from genbo.bilevel.scoring import Reward, Weighted, total
from genbo.diffusion.process import Process
from genbo.diffusion.sample import sample
from genbo.diffusion.seed import Batch, Noise, Seed

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Chunk:
    """Samples that go through the network together: prompt `rows[i][0]`, number `rows[i][1]`."""

    batch: Batch
    rows: tuple[tuple[int, int], ...]

    def over(self, process: Process, one: Callable[[Chunk], Tensors]) -> Tensors:
        """`one` of all of it, or of parts where it does not fit into memory, joined row by row."""

        def part(at: slice) -> Tensors:
            return one(Chunk(self.batch.part(at), self.rows[at]))

        return together(list(process.room.over(len(self.rows), process.batch, 1, part)))


class KeepRows(Protocol):
    """Draws every chunk and joins what comes of them, row by row."""

    def __call__(self, name: str, chunks: Sequence[Chunk], draw: Callable[[Chunk], Tensors]) -> Tensors:
        """`name` tells one set of chunks from another."""


def at_once(name: str, chunks: Sequence[Chunk], draw: Callable[[Chunk], Tensors]) -> Tensors:
    """Keeps nothing but the memory of it."""
    return together([draw(chunk) for chunk in chunks])


def together(parts: Sequence[Tensors]) -> Tensors:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class Sampled:
    """A `search.Source`. With `gradients` of the lower reward the shifts are Stein's, else means of the noise itself.

    With `samples_too` the samples stay in their bank.
    """

    process: Process
    prompts: Sequence[str]
    upper: Weighted
    lower: Weighted
    seed: Seed
    shiftable: bool = True
    gradients: bool = False
    samples_too: bool = False
    keep: KeepRows = at_once
    kept: Sequence[Reward] = ()  # what must not fall below a level

    @property
    def numbers(self) -> int:
        """In the noise of one sample."""
        return torch.Size(self.process.model.shape).numel()

    def draw(self, round: int, samples: int, shifts: Shifts | None) -> Bank:
        """`samples` samples of each prompt, scored."""

        def part(chunk: Chunk) -> Tensors:
            z, log_ratio = self._noise(chunk, samples, shifts)
            with torch.no_grad():
                alone: list[Weighted] = [((1.0, reward),) for reward in self.kept]
                x, (r1, r2, *others) = self._scored(chunk.batch, z, (self.upper, self.lower, *alone))
            rows = {"r1": r1, "r2": r2, "log_ratio": log_ratio}
            if others:
                rows["kept"] = torch.stack(others, dim=1)
            return {**rows, "x": x.detach().float().cpu()} if self.samples_too else rows

        def one(chunk: Chunk) -> Tensors:
            return chunk.over(self.process, part)

        rows = self.keep(f"round-{round}", self._chunks("round", round, samples), one)
        r1, r2, log_ratio = (rows[name].reshape(-1, samples) for name in ("r1", "r2", "log_ratio"))
        x, kept = (rows[name].unflatten(0, (-1, samples)) if name in rows else None for name in ("x", "kept"))
        return Bank(r1, r2, log_ratio, x, kept)

    def shifts(self, round: int, samples: int, lam: float) -> Shifts:
        """Shifts towards p_lambda, from samples that are thrown away."""

        def all_of_it(chunk: Chunk) -> Tensors:
            found = pilot(self._field(round, samples), self._all_noise(round, samples), lam)
            return {"means": found.means, "shares": found.shares}

        nothing = Chunk(Batch((), ()), ())
        found = self.keep(f"shifts-{round}", [nothing], all_of_it)
        return Shifts(found["means"], found["shares"])

    # -- noise -------------------------------------------------------------------------------------------------------

    def _chunks(self, what: str, round: int, samples: int) -> list[Chunk]:
        rows = [(c, n) for c in range(len(self.prompts)) for n in range(samples)]
        size = self.process.batch
        return [self._chunk(what, round, rows[at : at + size]) for at in range(0, len(rows), size)]

    def _chunk(self, what: str, round: int, rows: Sequence[tuple[int, int]]) -> Chunk:
        seeds = tuple(self.seed.child(what, round, c, n).value for c, n in rows)
        return Chunk(Batch(tuple(self.prompts[c] for c, _ in rows), seeds), tuple(rows))

    def _noise(self, chunk: Chunk, samples: int, shifts: Shifts | None) -> tuple[Tensor | None, Tensor]:
        """The noise to begin from, None for the batch's own, and log p0 / q of each row."""
        if shifts is None:
            return None, torch.zeros(len(chunk.rows), dtype=torch.float64)
        c, n = torch.tensor(chunk.rows).T
        own = Noise(chunk.batch.seeds, self.process.model.shape).draw().double().flatten(1)
        z = own + shifts.means[c, shifts.components(samples)[n]]
        ratios = Shifts(shifts.means[c], shifts.shares).log_ratio(z[:, None])[:, 0]
        return z.unflatten(1, self.process.model.shape), ratios

    def _all_noise(self, round: int, samples: int) -> Tensor:
        """Standard normal (C, n, d) for the pilot."""
        chunk = self._chunk("pilot", round, [(c, n) for c in range(len(self.prompts)) for n in range(samples)])
        noise = Noise(chunk.batch.seeds, self.process.model.shape).draw()
        return noise.double().reshape(len(self.prompts), samples, self.numbers)

    # -- rewards -----------------------------------------------------------------------------------------------------

    def _scored(
        self, batch: Batch, z: Tensor | None, rewards: Sequence[Weighted], *, checkpoint: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Samples and each of the rewards, these in float64 on the CPU."""
        x = sample(self.process, batch, start=z, checkpoint=checkpoint)
        images = self.process.model.decode(x)
        self.process.meter.reward_images += len(images)
        return x, [total(reward, images, batch.prompts).cpu() for reward in rewards]

    def _field(self, round: int, samples: int) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
        """r2 of noise (C, n, d), and its gradient there where it has one."""
        at = 0

        def field(z: Tensor) -> tuple[Tensor, Tensor | None]:
            nonlocal at
            rows = [(c, at + n) for c in range(z.shape[0]) for n in range(z.shape[1])]
            at += z.shape[1]
            flat, process = z.flatten(0, 1), self.process

            def one(part: slice) -> tuple[Tensor, Tensor | None]:
                return self._slope(self._chunk("pilot", round, rows[part]).batch, flat[part])

            found = list(process.room.over(len(rows), process.batch, 1, one))
            r2 = torch.cat([r for r, _ in found]).reshape(z.shape[:2])
            grads = [g for _, g in found if g is not None]
            return r2, torch.cat(grads).reshape(z.shape) if grads else None

        return field

    def _slope(self, batch: Batch, z: Tensor) -> tuple[Tensor, Tensor | None]:
        z = z.unflatten(1, self.process.model.shape)
        if not self.gradients:
            with torch.no_grad():
                return self._scored(batch, z, [self.lower])[1][0], None
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            r2 = self._scored(batch, z, [self.lower], checkpoint=True)[1][0]
            (grad,) = torch.autograd.grad(r2.sum(), z)
        return r2.detach(), grad.flatten(1)
