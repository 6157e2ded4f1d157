"""Samples that are kept as they are drawn, a chunk a file until all are there: a kill loses one chunk.

    folder/ round-0-0000.safetensors, round-0-0001.safetensors, ...   ->   folder/ round-0.safetensors

What a chunk cost stands beside it, so what an earlier process has drawn is counted as if this one had.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from genbo.cli.run.atomic import sync_folder
from genbo.cli.run.faults import fault
from genbo.cli.run.tensors import read_tensors, words_in, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.process import Meter

T = TypeVar("T")


@dataclass
class ChunkCache:
    """`words` say what the files belong to: others are drawn again. `between` is called after every chunk.

    `elapsed_s` and `cost` count all that passed through here, found or drawn.
    """

    folder: Path
    words: Mapping[str, Any]
    meter: Meter
    between: Callable[[str, int, int], None]
    elapsed_s: float = 0.0
    cost: dict[str, int] = field(default_factory=dict)

    def __call__(
        self, name: str, chunks: Sequence[T], draw: Callable[[T], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """The tensors of all chunks, joined row by row."""
        self.folder.mkdir(exist_ok=True)
        place = self.folder / f"{name}.safetensors"
        found = self._found(place, {"chunks": len(chunks)})
        if found is None:
            spent, began = dict(self.cost), self.elapsed_s
            found = self._joined([self._part(name, k, chunk, len(chunks), draw) for k, chunk in enumerate(chunks)])
            cost = {key: value - spent.get(key, 0) for key, value in self.cost.items()}
            self._write(place, found, {"chunks": len(chunks), "cost": cost, "elapsed_s": self.elapsed_s - began})
            fault("evaluation.side")
        for part in self.folder.glob(f"{name}-[0-9][0-9][0-9][0-9]*.safetensors"):
            part.unlink()
        sync_folder(self.folder)
        return found

    def _part(
        self, name: str, number: int, chunk: T, total: int, draw: Callable[[T], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        place, own = self.folder / f"{name}-{number:04d}.safetensors", {"chunk": number, "chunks": total}
        part = self._found(place, own)
        if part is None:
            before, began = self.meter.as_dict(), time.monotonic()
            part = draw(chunk)
            spent = {key: value - before[key] for key, value in self.meter.as_dict().items()}
            spending = {**own, "cost": spent, "elapsed_s": time.monotonic() - began}
            self._write(place, part, spending)
            self.count(spending)
        fault("evaluation.part")
        self.between(name, number + 1, total)
        return part

    def _joined(self, parts: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        import torch

        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def _found(self, place: Path, own: Mapping[str, object]) -> Mapping[str, Tensor] | None:
        tensors = read_tensors(place, {**self.words, **own})
        if tensors is not None:
            self.add(words_in(place))
        return tensors

    def add(self, spending: Mapping[str, Any]) -> None:
        """Count what an earlier process spent on a file with these words."""
        self.count(spending)
        for key, value in spending["cost"].items():
            setattr(self.meter, key, getattr(self.meter, key) + value)

    def _write(self, place: Path, tensors: Mapping[str, Tensor], own: Mapping[str, Any]) -> None:
        write_tensors(place, {key: value.contiguous() for key, value in tensors.items()}, {**self.words, **own})

    def count(self, spending: Mapping[str, Any]) -> None:
        """What was spent just now, and is on the meter already.

        A count that an earlier genbo did not keep is dropped: what is left of it would be too little.
        """
        self.elapsed_s += spending["elapsed_s"]
        spent: Mapping[str, int] = spending["cost"]
        if spent:
            known = self.cost or spent
            self.cost = {key: self.cost.get(key, 0) + value for key, value in spent.items() if key in known}
