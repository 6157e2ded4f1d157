"""What the exact worlds share: their levels, a sentence for a prompt that they do not know, and numbers to train.

A world's numbers are its weights: made trainable, the world stays one of its family, with a denoiser that is exact for
whatever they are. Scales are trained by their logarithm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.adapt import Adapter
    from genbo.diffusion.process import Sampler, Spacing
    from genbo.schedules.clock import Clock
    from genbo.schedules.grid import Grid


def refuse_strangers(known: Sequence[str], prompts: Sequence[str]) -> None:
    """ValueError where a prompt is none of the world's own."""
    strangers = sorted(set(prompts) - set(known))
    if strangers:
        raise ValueError(f"this world knows the prompts {', '.join(known)}; it does not know {strangers[0]!r}")


def trainable(numbers: Mapping[str, Tensor], adapter: Adapter) -> dict[str, Tensor]:
    """The numbers once more, to be trained."""
    from genbo.diffusion.adapt import leaves

    if adapter.how != "full":
        raise ValueError("an exact world has no layers for LoRA: all its numbers are trained; use adapter: full")
    return leaves(numbers)


class Ends(Protocol):
    """The options of a world."""

    @property
    def log_snr_max(self) -> float:
        """Levels lie between this and its negative."""


class ToldLogSnr:
    """A network that is told the log-SNR in place of a time."""

    options: Ends

    @property
    def clock(self) -> Clock:
        from genbo.schedules.clock import Clock

        return Clock(-self.options.log_snr_max, self.options.log_snr_max)

    def stops(self, sampler: Sampler, spacing: Spacing) -> Tensor:
        """Even in log-SNR, from one end to the other; `trailing` leaves the cleanest out."""
        import torch

        end, steps = self.options.log_snr_max, sampler.steps
        if spacing == "trailing":
            return torch.linspace(-end, end, steps + 1, dtype=torch.float64)[:-1]
        return torch.linspace(-end, end, steps, dtype=torch.float64)

    def grid(self, sampler: Sampler) -> Grid:
        return self.grid_at(sampler, self.stops(sampler, "own")[None])

    def grid_at(self, sampler: Sampler, times: Tensor) -> Grid:
        """The levels at these log-SNRs (M, N), then no noise at all."""
        import torch

        from genbo.schedules.grid import grid_of_levels
        from genbo.schedules.schedule import of_log_snr

        alpha, sigma = of_log_snr(times)
        end = torch.ones_like(alpha[:, :1])
        return grid_of_levels(times, torch.cat([alpha, end], dim=1), torch.cat([sigma, 0 * end], dim=1))
