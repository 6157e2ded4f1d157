"""The N times at which a pretrained model's sampler calls the network; they decrease for any u.

    t_{k+1} = t_1 + (t_image - t_1) w_k,        0 < w_1 < ... < w_{N-1} < 1

with the gaps of w a softmax (`schedules.link.Rising`) and a least gap between two stops, one training step. Times are
counted as the network counts them: in training steps, between which log-SNR is a straight line; in an exact world, as
log-SNR itself.

The first stop stays where the start has it: a sampler begins from pure noise, which is what the network knows at the
end of time alone, and what is missing where it begins earlier no other stop can mend. So N - 1 numbers are tuned.

    own        as the model's own scheduler stops
    uniform    even in time, diffusers' linspace
    trailing   even in time, from the noisiest (Lin et al. 2305.08891)
    karras     even in sigma^(1/7) (Karras et al. 2206.00364, eq. 5)
    ays        "align your steps" for Stable Diffusion (Sabour et al. 2404.14507), which diffusers ships for 10 steps;
               for other numbers the logs of its sigmas are joined by straight lines, as its authors do
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from genbo.bilevel.tunables._defaults import TunableDefaults
from genbo.schedules.clock import Clock
from genbo.schedules.link import Rising

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.process import Process, Timed

RHO = 7.0
ON_THE_BOUND = 1e-9  # of the range: a gap that is no wider is the least one
EDGE = 3e-2  # of an even gap: such a gap begins this wide, where the link still moves
MOST = 0.5  # of the range that least gaps may take


@dataclass(frozen=True)
class Timesteps(TunableDefaults):
    """`start` is a name, or a list of one time a step, noisiest first; `of` a process it is the tunable itself."""

    start: Literal["own", "uniform", "trailing", "karras", "ays"] | list[float] = "own"

    @property
    def name(self) -> str:
        return "timesteps"

    def size(self, steps: int) -> int:
        return steps - 1

    def mistakes(self, steps: int) -> list[str]:
        """What is wrong with these options, a sentence each."""
        if steps < 2:
            return ["one step stops at its first time alone, which stays; set model.sampler.steps to 2 or more"]
        if not isinstance(self.start, list):
            return []
        if len(self.start) != steps:
            return [f"start: {len(self.start)} times for {steps} steps; give one a step, or a name like trailing"]
        if not all(math.isfinite(time) for time in self.start):
            return ["start: every time must be finite; write the times at which the sampler stops"]
        return []

    def why_not(self, steps: int, times: tuple[float, float] | None) -> str | None:
        """None, or why the sampler of a model with times from `times[0]` (noisiest) to `times[1]` cannot stop so."""
        if times is None:
            return None
        return next(self._misfits(steps, *times), None)

    def _misfits(self, steps: int, noisiest: float, cleanest: float) -> Iterator[str]:
        clock = Clock(noisiest, cleanest)
        most = int(MOST * abs(clock.image - noisiest) / clock.least)
        if steps > most:
            yield f"{steps} steps leave no room to move between {noisiest:g} and {cleanest:g}; use at most {most}"
        if not isinstance(self.start, list):
            return
        low, high = sorted((noisiest, cleanest))
        for time in self.start:
            if not low <= time <= high:
                yield f"{time:g} is no time of this model; its times run from {noisiest:g} (noise) to {cleanest:g}"
        for before, after in pairwise(self.start):
            if (after >= before) if clock.falls else (after <= before):
                way = "fall" if clock.falls else "rise (they are log-SNRs here)"
                yield f"{after:g} follows {before:g}, and times must {way} from noise to image; put them in order"

    def of(self, process: Process) -> TunedTimes:
        """The tunable for this process. ValueError with a sentence where it cannot be."""
        from genbo.diffusion.process import Timed

        model, steps = process.model, process.steps
        if not isinstance(model, Timed):
            raise ValueError("this model's sampler cannot stop at times of one's own; tune something else")
        clock = model.clock
        reasons = [*self.mistakes(steps), self.why_not(steps, (clock.noisiest, clock.cleanest))]
        if wrong := [reason for reason in reasons if reason]:
            raise ValueError("; ".join(wrong))
        return TunedTimes(_start(self.start, model, process), clock=clock)


@dataclass(frozen=True)
class TunedTimes(Timesteps):
    """The times of one process' sampler as a `Tunable`; `start` is a list, the first of which stays."""

    start: list[float] = field(default_factory=list)
    clock: Clock = field(kw_only=True)

    def numbers(self, steps: int) -> list[float]:
        """All but the first stop."""
        return self.start[1:]

    @property
    def _range(self) -> tuple[float, float, float]:
        """The first stop, the way to the image, and the least gap as a share of it."""
        first, way = self.start[0], self.clock.image - self.start[0]
        return first, way, self.clock.least / abs(way)

    def coordinates(self, phi: Tensor) -> Tensor:
        import torch

        first, way, least = self._range
        w = (phi - first) / way
        ends = torch.zeros_like(w[..., :1]), torch.ones_like(w[..., :1])
        gaps = torch.cat([ends[0], w, ends[1]], dim=-1).diff(dim=-1) - least
        steps = gaps.shape[-1]
        gaps = gaps.where(gaps > ON_THE_BOUND, torch.full_like(gaps, EDGE * (1 - steps * least) / steps))
        return Rising(steps - 1).coordinates((gaps / gaps.sum(-1, keepdim=True)).cumsum(-1)[..., :-1])

    def value(self, u: Tensor) -> Tensor:
        import torch

        first, way, least = self._range
        steps = u.shape[-1] + 1
        least_w = least * torch.arange(1, steps).to(u)
        return first + way * ((1 - steps * least) * Rising(steps - 1).value(u) + least_w)

    def stops(self, phi: Tensor) -> Tensor:
        """phi (..., N - 1) -> all times (..., N)."""
        import torch

        return torch.cat([torch.full_like(phi[..., :1], self.start[0]), phi], dim=-1)

    def embed(self, process: Process, phi: Tensor) -> Process:
        model: Timed = process.model  # type: ignore[assignment]
        return process.with_grid(model.grid_at(process.sampler, self.stops(phi)))

    def spoken(self, phi: Tensor) -> list[float]:
        """All times, noisiest first: what `start` takes."""
        return [float(time) for time in self.stops(phi)]

    def settled(self, phi: Tensor) -> Tensor:
        """phi as any scheduler can be told it: whole training steps."""
        return self.clock.settled(self.stops(phi))[..., 1:]

    def shown(self, phi: Tensor, steps: int) -> dict[str, list[Any]]:
        return {"log_snr": self.log_snr(phi)}

    def log_snr(self, phi: Tensor) -> list[float]:
        """How much noise there is at every stop."""
        return [float(x) for x in self.clock.log_snr(self.stops(phi))]


# -- where to start ----------------------------------------------------------------------------------------------------


def _start(start: str | list[float], model: Timed, process: Process) -> list[float]:
    clock, steps = model.clock, process.steps
    if isinstance(start, list):
        return start
    if start == "karras":
        return _of_sigmas(clock, karras(*_ends(clock), steps))
    if start == "ays":
        return _of_sigmas(clock, ays(_ends(clock)[1], steps))
    found: list[float] = model.stops(process.sampler, start).tolist()  # type: ignore[arg-type]
    return found


def _ends(clock: Clock) -> tuple[float, float]:
    """The largest and the smallest sigma / alpha that the network may be told."""
    import torch

    ends = clock.log_snr(torch.tensor([clock.noisiest, clock.cleanest], dtype=torch.float64))
    largest, smallest = (-ends / 2).exp().tolist()
    return largest, smallest


def _of_sigmas(clock: Clock, sigmas: Sequence[float]) -> list[float]:
    """The times at which sigma / alpha is this."""
    import torch

    found: list[float] = clock.time(-2 * torch.tensor(sigmas, dtype=torch.float64).log()).tolist()
    return found


def karras(largest: float, smallest: float, steps: int) -> list[float]:
    """Eq. 5, with rho = 7."""
    high, low = largest ** (1 / RHO), smallest ** (1 / RHO)
    return [(high + (low - high) * i / (steps - 1)) ** RHO for i in range(steps)]


def ays(smallest: float, steps: int) -> list[float]:
    """diffusers' sigmas for ten steps, or their logs joined by straight lines.

    diffusers' list ends on 0, where its authors' ends on the smallest sigma: that end, which no step begins at, is put
    back to draw the lines.
    """
    import numpy as np
    from diffusers.schedulers import AysSchedules

    sigmas = [*AysSchedules["StableDiffusionSigmas"][:-1], smallest]
    known, wanted = (np.linspace(0, 1, n) for n in (len(sigmas), steps + 1))
    found: list[float] = np.exp(np.interp(wanted, known, np.log(sigmas)))[:-1].tolist()
    return found
