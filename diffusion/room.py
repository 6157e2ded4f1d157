"""Memory that runs out: what was asked of the device in one call is asked in parts, from the same noise.

A batch goes through the network in parts. Where one does not fit, it is tried again in parts of a power of two, fewer
than it was, and so is all that comes after it in this run. Samples carry their noise by name, so the parts draw what
the whole would have drawn, to rounding. A part of one that does not fit is the end.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

WORDS = ("cuda error: out of memory", "cuda out of memory", "can't allocate memory", "not enough memory")


class NoRoom(MemoryError):
    """One image by itself does not fit; the message says what was asked for."""


@dataclass
class Room:
    """`images` is how many fit into one call, known once memory has run out; shared by all that draws on one device."""

    images: int | None = None

    def over(self, rows: int, size: int, members: int, one: Callable[[slice], T]) -> Iterator[T]:
        """`one` of every part of `rows` rows, in order; `size` images a call at most, and `members` of them a row."""
        at = 0
        while at < rows:
            part = slice(at, min(rows, at + max(1, min(size, self.images or size) // members)))
            found = self._tried(part, members, one)
            if found is not None:
                yield found[0]
                at = part.stop

    def _tried(self, part: slice, members: int, one: Callable[[slice], T]) -> tuple[T] | None:
        """What `one` gives, or None where it did not fit."""
        rows = part.stop - part.start
        try:
            return (one(part),)
        except (RuntimeError, MemoryError) as problem:
            if not is_out_of_memory(problem) or isinstance(problem, NoRoom):
                raise
            if rows == 1:
                raise NoRoom(f"not even one image at a time fits: {first_line(problem)}") from problem
        self.images = _power_below(rows) * members
        _emptied()
        return None


def _power_below(rows: int) -> int:
    """The largest power of two that is less."""
    return int(2 ** ((rows - 1).bit_length() - 1))


def _emptied() -> None:
    """What failed is let go, after its error is, which held it."""
    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def is_out_of_memory(problem: BaseException) -> bool:
    """By type, and for what the allocators raise as a bare RuntimeError, by their own words."""
    import torch

    text = str(problem).lower()
    by_type = isinstance(problem, (torch.OutOfMemoryError, MemoryError))
    return by_type or (isinstance(problem, RuntimeError) and any(word in text for word in WORDS))


def first_line(problem: BaseException) -> str:
    return (str(problem).strip().split("\n")[0] or type(problem).__name__)[:300]
