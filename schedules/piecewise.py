"""Straight lines in log-SNR between knots evenly spaced in time: any decreasing curve, from a few numbers.

    lambda at knot k = log_snr_max + (log_snr_min - log_snr_max) w_k,       0 = w_0 < w_1 < ... < w_{K-1} = 1

`inner` holds w_1 ... w_{K-2}, or how many of them there are, even then: a straight line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genbo.schedules.link import Link, Rising
from genbo.schedules.schedule import ENDS, Family, Schedule

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-12  # of signal or noise power: what is less is as good as none
MOST_BYTES = 4_000_000


@dataclass(frozen=True)
class Piecewise(Family):
    """`inner` are the knots between both ends, rising in (0, 1), or how many of them there are.

    `log_snr_max` and `log_snr_min` are log(alpha^2 / sigma^2) at t = 0 and t = 1.
    """

    inner: int | list[float] = 4
    log_snr_max: float = 10.0
    log_snr_min: float = -10.0

    @property
    def links(self) -> Mapping[str, Link]:
        """Of the knots, which rise, and of both ends."""
        return {"inner": Rising(len(self._inner)), **ENDS}

    @property
    def _inner(self) -> list[float]:
        if isinstance(self.inner, list):
            return self.inner
        return [(k + 1) / (self.inner + 1) for k in range(self.inner)]

    def starts(self) -> dict[str, list[float]]:
        """The parameters as they stand in the fields."""
        return {"inner": self._inner, "log_snr_max": [self.log_snr_max], "log_snr_min": [self.log_snr_min]}

    def log_snr(self, t: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        """lambda_t (M, T), a straight line between any two knots."""
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


def read_betas(file: Path) -> list[float]:
    """The betas in a JSON file: a list, or a diffusers scheduler's config; ValueError says what is wrong with it."""
    if file.stat().st_size > MOST_BYTES:
        raise ValueError("it is larger than a schedule; give a list of betas")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON; give a list of betas, or a scheduler_config.json") from None
    steps = None
    if isinstance(found, dict):
        steps, found = found.get("num_train_timesteps"), found.get("trained_betas")
    if not isinstance(found, list) or not all(_is_beta(beta) for beta in found):
        raise ValueError(
            "it holds no list of betas, numbers from 0 to below 1; a scheduler_config.json has trained_betas"
        )
    if steps is not None and len(found) != steps:
        raise ValueError(f"it has {len(found)} betas for {steps} training steps; give one a step")
    return [float(beta) for beta in found]


def _is_beta(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1


def through(betas: Sequence[float], inner: int) -> Piecewise:
    """The piecewise schedule through the levels of a table at its knots; entry k of T stands at (k + 1) / T."""
    signal, table = 1.0, []
    for beta in betas:
        signal *= 1 - beta
        table.append(math.log(max(signal, TINY)) - math.log(max(1 - signal, TINY)))
    knots = [_between(table, (j / (inner + 1)) * len(table) - 1) for j in range(inner + 2)]
    ends = [
        min(max(knots[k], ENDS[name].low), ENDS[name].high) for k, name in ((0, "log_snr_max"), (-1, "log_snr_min"))
    ]
    way = knots[-1] - knots[0]
    if not way < 0:
        raise ValueError("its signal does not fall; give betas that are greater than 0")
    return Piecewise([(knot - knots[0]) / way for knot in knots[1:-1]], *ends)


def _between(table: Sequence[float], at: float) -> float:
    """A straight line between two entries; the first stands for all before it."""
    left = min(max(math.floor(at), 0), len(table) - 2)
    share = min(max(at - left, 0.0), 1.0)
    return table[left] + share * (table[left + 1] - table[left])
