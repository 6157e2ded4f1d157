"""What something costs, in the counts of a run's meter."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Cost:
    """The same counts as the run's meter."""

    denoiser_calls: int = 0
    image_forwards: int = 0
    reward_images: int = 0
    image_backwards: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: int) -> Cost:
        return Cost(*(getattr(self, f.name) * times for f in fields(self)))

    def document(self) -> dict[str, int]:
        return dict(vars(self))
