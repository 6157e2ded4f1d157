"""Betas that rise linearly, as in DDPM, in continuous time: f(t) = exp(-(b_0 t + (b_1 - b_0) t^2 / 2)).

`beta_start` and `beta_end` are counted for the whole of time: DDPM's 1e-4 and 0.02 a step, over its 1,000 steps, are
0.1 and 20 here (Song et al. 2011.13456, eq. 33). A straight line in log-SNR is `piecewise` with even knots.
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
class Linear(Family):
    """`beta_start` and `beta_end` are the rates at t = 0 and t = 1, for the whole of time.

    `log_snr_max` and `log_snr_min` are log(alpha^2 / sigma^2) at t = 0 and t = 1. With `normalised`
    the curve is stretched so that it reaches both.
    """

    beta_start: float = 0.1
    beta_end: float = 20.0
    log_snr_max: float = 10.0
    log_snr_min: float = -10.0
    normalised: bool = True

    links: ClassVar[Mapping[str, Link]] = {
        "beta_start": Bounded(1e-3, 5.0, log=True),
        "beta_end": Bounded(5.0, 60.0, log=True),
        **ENDS,
    }

    def starts(self) -> dict[str, list[float]]:
        """The parameters as they stand in the fields."""
        return {name: [getattr(self, name)] for name in self.links}

    def log_snr(self, t: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        """lambda_t (M, T) of linear betas, stretched between both ends."""
        first, last = self._power(0 * t[..., :1], p), self._power(0 * t[..., :1] + 1, p)
        return between(self._power(t, p), first, last if self.normalised else 0 * last, p)

    def _power(self, t: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        return (-(p["beta_start"] * t + (p["beta_end"] - p["beta_start"]) * t**2 / 2)).exp()
