"""The cosine family of Chen (2301.10972) with Nichol and Dhariwal's offset.

    f(t) = cos(pi/2 (s + eps) / (1 + eps))^(2 tau),     s = start + (end - start) t

`eps` is nothing new: it is the same curve from (start + eps) / (1 + eps) to (end + eps) / (1 + eps). It has a name
because the literature gives it one. At its defaults this is Nichol and Dhariwal's schedule
(2102.09672, eq. 17) but for the ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from genbo.schedules.link import Bounded, Link
from genbo.schedules.schedule import ENDS, Family, between

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Cosine(Family):
    """`start` < `end` are the part of the curve that is used, in [0, 1]; `tau` > 0 is its power, `eps` > 0 its offset.

    `log_snr_max` and `log_snr_min` are log(alpha^2 / sigma^2) at t = 0 and t = 1. With `normalised`
    the curve is stretched so that it reaches both.
    """

    start: float = 0.0
    end: float = 1.0
    tau: float = 1.0
    eps: float = 0.008
    log_snr_max: float = 10.0
    log_snr_min: float = -10.0
    normalised: bool = True

    links: ClassVar[Mapping[str, Link]] = {
        "start": Bounded(0.0, 0.45),
        "end": Bounded(0.55, 1.0),
        "tau": Bounded(0.5, 8.0, log=True),
        "eps": Bounded(1e-4, 0.5, log=True),
        **ENDS,
    }

    def starts(self) -> dict[str, list[float]]:
        """The parameters as they stand in the fields."""
        return {name: [getattr(self, name)] for name in self.links}

    def log_snr(self, t: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        """lambda_t (M, T) of the cosine, stretched between both ends."""
        first, last = self._power(0 * t[..., :1], p), self._power(0 * t[..., :1] + 1, p)
        return between(self._power(t, p), first, last if self.normalised else 0 * last, p)

    def _power(self, t: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        """cos(pi/2 x) as sin(pi/2 (1 - x)), and 1 - x as a sum of what is never negative."""
        away = ((1 - p["end"]) + (1 - t) * (p["end"] - p["start"])) / (1 + p["eps"])
        return (math.pi / 2 * away).sin() ** (2 * p["tau"])
