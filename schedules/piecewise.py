"""Straight lines in log-SNR between knots that stand evenly in time: any falling curve, by a handful of numbers.

    lambda at knot k = log_snr_max + (log_snr_min - log_snr_max) w_k,       0 = w_0 < w_1 < ... < w_{K-1} = 1

`inner` holds w_1 ... w_{K-2}, or how many of them there are, even then: a straight line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from genbo.schedules.link import Link, Rising
from genbo.schedules.schedule import ENDS, Schedule

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Piecewise:
    inner: int | list[float] = 4
    log_snr_max: float = 10.0
    log_snr_min: float = -10.0

    @property
    def links(self) -> Mapping[str, Link]:
        return {"inner": Rising(len(self._inner)), **ENDS}

    @property
    def _inner(self) -> list[float]:
        if isinstance(self.inner, list):
            return self.inner
        return [(k + 1) / (self.inner + 1) for k in range(self.inner)]

    def starts(self) -> dict[str, list[float]]:
        return {"inner": self._inner, "log_snr_max": [self.log_snr_max], "log_snr_min": [self.log_snr_min]}

    def log_snr(self, t: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        import torch

        inner = p["inner"]
        gone = torch.cat([torch.zeros_like(inner[:, :1]), inner, torch.ones_like(inner[:, :1])], dim=1)  # (M, K)
        intervals = gone.shape[1] - 1
        position = (t * intervals).expand(len(gone), -1)
        left = position.detach().floor().clamp(0, intervals - 1).long()
        before, after = gone.gather(1, left), gone.gather(1, left + 1)
        at = before + (position - left) * (after - before)
        return p["log_snr_max"] + (p["log_snr_min"] - p["log_snr_max"]) * at


def like(schedule: Schedule, inner: int) -> Piecewise:
    """The piecewise schedule through the same levels as another at its knots; of its first member."""
    import torch

    at = schedule.log_snr(torch.arange(inner + 2, dtype=torch.float64) / (inner + 1))[0].detach()
    gone = (at[0] - at) / (at[0] - at[-1])
    return Piecewise(gone[1:-1].tolist(), at[0].item(), at[-1].item())
