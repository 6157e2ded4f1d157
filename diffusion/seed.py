"""Randomness named by what it may depend on: a sample's noise is keyed by (seed, role, sample), and by nothing else.

So a sample does not depend on batch size, order, sharding or how often a run was killed, and the two sides of every
difference can be given the same noise.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IN_ORDER = 15  # numbers that torch draws at once as it draws them one by one; of more it makes whole vectors


@dataclass(frozen=True)
class Seed:
    """A node in a tree of seeds: `Seed(0).child("tune", 3)` is always the same node, unrelated to every other."""

    root: int
    path: tuple[str | int, ...] = ()

    def child(self, *names: str | int) -> Seed:
        return Seed(self.root, (*self.path, *names))

    @property
    def value(self) -> int:
        """A 63-bit integer, for `torch.Generator.manual_seed`."""
        digest = hashlib.blake2b(repr((self.root, self.path)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1

    def generator(self) -> torch.Generator:
        return torch.Generator("cpu").manual_seed(self.value)


@dataclass(frozen=True)
class Batch:
    """N samples to draw: the prompt and the seed of each."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.seeds):
            raise ValueError(f"{len(self.prompts)} prompts but {len(self.seeds)} seeds")

    def __len__(self) -> int:
        return len(self.seeds)

    def chunks(self, size: int) -> Iterator[Batch]:
        for at in range(0, len(self), size):
            yield self.part(slice(at, at + size))

    def part(self, at: slice) -> Batch:
        return Batch(self.prompts[at], self.seeds[at])


def batch_of(prompts: Sequence[str], samples: int, seed: Seed, *, shuffle: bool = True) -> Batch:
    """`samples` samples over the prompts, as evenly as it goes; which prompts get one more is drawn from the seed."""
    order: list[int] = []
    generator = seed.child("prompts").generator()
    while len(order) < samples:
        order += torch.randperm(len(prompts), generator=generator).tolist() if shuffle else range(len(prompts))
    return Batch(
        tuple(prompts[i] for i in order[:samples]),
        tuple(seed.child("sample", n).value for n in range(samples)),
    )


class Noise:
    """Standard normal draws in float32 on the CPU, each sample's from its own seed; `draw` gives the next (N, *shape).

    Args:
        seeds: One for each sample.
        shape: The shape of one sample's draw.
        draws: How many draws there will be at most; IndexError beyond them. Their numbers do not depend on it.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...], draws: int = 1) -> None:
        self.seeds, self.shape, self.draws, self.left = seeds, shape, draws, draws
        self.numbers = math.prod(shape)
        # Draws of few numbers are made several at a time, since most of the cost of each is the call.
        self.at_once = max(1, min(draws, IN_ORDER // max(self.numbers, 1)))
        self.ahead: list[Tensor] = []
        self.generators: list[torch.Generator] = []

    def draw(self) -> Tensor:
        if not self.left:
            raise IndexError(f"no more than {self.draws} draws of noise were asked for")
        self.left -= 1
        if not self.ahead:
            noise = torch.empty(len(self.seeds), self.at_once * self.numbers)
            for row, generator in zip(noise.unbind(), self._generators(), strict=True):
                row.normal_(generator=generator)
            self.ahead = [part.reshape(len(self.seeds), *self.shape) for part in noise.chunk(self.at_once, dim=1)]
        return self.ahead.pop(0)

    def _generators(self) -> Iterable[torch.Generator]:
        """One for each sample. Where all draws are made at once, a single generator serves the samples in turn."""
        if self.draws == self.at_once:
            one = torch.Generator("cpu")
            return (one.manual_seed(seed) for seed in self.seeds)
        self.generators = self.generators or [torch.Generator("cpu").manual_seed(seed) for seed in self.seeds]
        return self.generators
