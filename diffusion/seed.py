"""Randomness named by what it may depend on: a sample's noise is keyed by (seed, role, sample), and by nothing else.

So a sample does not depend on batch size, order, sharding or how often a run was killed, and the two sides of every
difference can be given the same noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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
    """Standard normal draws in float32 on the CPU, one generator a sample; `draw` gives the next (N, *shape)."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]

    def draw(self) -> Tensor:
        noise = torch.empty(len(self.generators), *self.shape)
        for row, generator in zip(noise, self.generators, strict=True):
            torch.randn(self.shape, generator=generator, out=row)
        return noise
