"""What the exact worlds share: their levels, and a sentence for a prompt that they do not know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genbo.schedules.grid import Grid


def refuse_strangers(known: Sequence[str], prompts: Sequence[str]) -> None:
    """ValueError where a prompt is none of the world's own."""
    strangers = sorted(set(prompts) - set(known))
    if strangers:
        raise ValueError(f"this world knows the prompts {', '.join(known)}; it does not know {strangers[0]!r}")


def log_snr_grid(log_snr_max: float, steps: int) -> Grid:
    """Levels even in log-SNR from -log_snr_max to log_snr_max, then no noise at all; time is the log-SNR."""
    import torch

    from genbo.schedules.grid import grid_of_levels

    log_snr = torch.linspace(-log_snr_max, log_snr_max, steps, dtype=torch.float64)
    if steps == 1:
        log_snr = -torch.full((1,), log_snr_max, dtype=torch.float64)
    alpha = torch.cat([log_snr.sigmoid().sqrt(), torch.ones(1, dtype=torch.float64)])
    sigma = torch.cat([(-log_snr).sigmoid().sqrt(), torch.zeros(1, dtype=torch.float64)])
    return grid_of_levels(log_snr[None], alpha[None], sigma[None])
