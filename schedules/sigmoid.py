"""The sigmoid family of Chen (2301.10972): f(t) = sigmoid(-(start + (end - start) t) / tau).

The smaller tau, the faster it falls in the middle, and the longer it stands still at both ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from genbo.schedules.link import Bounded, Link
from genbo.schedules.schedule import ENDS, Family, between

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sigmoid(Family):
    """`start` < `end` are the part of the sigmoid that is used; `tau` > 0 is its width.

    `log_snr_max` and `log_snr_min` are log(alpha^2 / sigma^2) at t = 0 and t = 1. With `normalised`
    the curve is stretched so that it reaches both.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0
    log_snr_max: float = 10.0
    log_snr_min: float = -10.0
    normalised: bool = True

    links: ClassVar[Mapping[str, Link]] = {
        "start": Bounded(-8.0, 0.0),
        "end": Bounded(0.5, 8.0),
        "tau": Bounded(0.1, 4.0, log=True),
        **ENDS,
    }

    def starts(self) -> dict[str, list[float]]:
        """The parameters as they stand in the fields."""
        return {name: [getattr(self, name)] for name in self.links}

    def log_snr(self, t: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        """lambda_t (M, T) of the sigmoid, stretched between both ends."""
        first, last = self._power(0 * t[..., :1], p), self._power(0 * t[..., :1] + 1, p)
        return between(self._power(t, p), first, last if self.normalised else 0 * last, p)

    def _power(self, t: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        return (-(p["start"] + (p["end"] - p["start"]) * t) / p["tau"]).sigmoid()
