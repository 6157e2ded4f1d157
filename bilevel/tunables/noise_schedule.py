"""The noise schedule: any parameters of a family, each kept inside its domain by a link.

    phi = (the parameters named in `parameters`, one after the other);  all others stay where they start

`embed` puts the sampler on the schedule's own levels, noisiest first, so a change of phi moves every stop of the
sampler. What the schedule does to a network that is trained under it is the lower level's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from genbo.bilevel.tunables._defaults import TunableDefaults
from genbo.diffusion.kinds import class_of
from genbo.schedules.link import Bounded
from genbo.schedules.piecewise import read_betas, through

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.process import Process
    from genbo.schedules.link import Link
    from genbo.schedules.schedule import Family, Schedule

Numbers = float | list[float]
POINTS = 101  # of a curve that is drawn


@dataclass(frozen=True)
class NoiseSchedule(TunableDefaults):
    """`parameters` names what is tuned (by default all but the ends); `start` says where parameters start or stay.

    `bounds` narrows the domain of a number. `normalised: false` leaves the signal at the end of time that the family's
    own curve leaves there, as the paper does. `inner` is the number of inner knots of `piecewise`, which may start
    `like` another schedule: a JSON file with a list of betas, or a diffusers scheduler_config.json that has them.
    """

    family: Literal["cosine", "sigmoid", "linear", "piecewise"] = "cosine"
    parameters: list[str] | None = None
    start: dict[str, float | list[float]] = field(default_factory=dict)
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)
    normalised: bool = True
    zero_terminal: bool = False
    inner: int = 4
    like: str = ""

    @property
    def name(self) -> str:
        return "noise_schedule"

    # -- the family and its parameters ---------------------------------------------------------------------------------

    def shape(self) -> Family:
        """The family at its starting values."""
        family: Any = class_of("genbo.schedules", self.family)
        if self.like:
            return through(read_betas(Path(self.like)), self.inner)
        if self.family == "piecewise":
            return family(**{"inner": self.inner, **self.start})  # type: ignore[no-any-return]
        return family(**self.start, normalised=self.normalised)  # type: ignore[no-any-return]

    @property
    def tuned(self) -> list[str]:
        if self.parameters is not None:
            return self.parameters
        return [name for name in self._plain().links if not name.startswith("log_snr_")]

    @property
    def links(self) -> dict[str, Link]:
        """The link of each parameter, within the bounds that were given."""
        found = dict(self.shape().links)
        for name, (low, high) in self.bounds.items():
            domain = found[name]
            found[name] = Bounded(low, high, isinstance(domain, Bounded) and domain.log)
        return found

    def _plain(self) -> Family:
        return NoiseSchedule(self.family, inner=self.inner).shape()

    def mistakes(self, steps: int) -> list[str]:
        """What is wrong with these options, a sentence each."""
        if self.inner < 1:
            return [f"inner: {self.inner} knots; piecewise needs at least 1 inside"]
        if self.like and (wrong := self._unlike()):
            return [f"like: {wrong}"]
        for look in (self._strangers, self._bad_bounds, self._bad_starts, self._outside):
            if found := list(look()):
                return found
        return []

    def why_not(self, prediction: str) -> str | None:
        """None, or why a network that predicts this cannot serve this schedule."""
        from genbo.schedules.schedule import zero_terminal_mistake

        return zero_terminal_mistake(self.zero_terminal, prediction)

    def _unlike(self) -> str | None:
        """Why the schedule cannot start like that file."""
        if self.family != "piecewise":
            return f"only piecewise can take any shape; set family: piecewise, not {self.family}"
        if self.start:
            return "start says where to begin, too; delete one of the two"
        try:
            betas = read_betas(Path(self.like))
        except (OSError, ValueError) as problem:
            return f"{self.like}: {(problem.strerror if isinstance(problem, OSError) else None) or problem}"
        if len(betas) < self.inner + 2:
            return (
                f"{self.like} has {len(betas)} betas for {self.inner} inner knots; give a longer list, or fewer knots"
            )
        return None

    def _strangers(self) -> Iterator[str]:
        known = self._plain().links
        for place, names in (("parameters", self.parameters or []), ("start", self.start), ("bounds", self.bounds)):
            for name in names:
                if name not in known:
                    yield f"{place}: {self.family} has no parameter {name!r}; it has {', '.join(known)}"
        if self.parameters is not None and len(set(self.parameters)) != max(len(self.parameters), 1):
            yield "parameters: name at least one, and each once"
        if self.family == "piecewise" and not self.normalised:
            yield "normalised: piecewise always ends at log_snr_min; leave normalised out"

    def _bad_bounds(self) -> Iterator[str]:
        known = self._plain().links
        for name, (low, high) in self.bounds.items():
            domain = known[name]
            if not isinstance(domain, Bounded):
                yield f"bounds: {name} is several numbers, which need no bounds"
            elif not domain.low <= low < high <= domain.high:
                yield f"bounds: {name} must have low < high within [{domain.low:g}, {domain.high:g}]"

    def _bad_starts(self) -> Iterator[str]:
        known = self._plain().links
        for name, given in self.start.items():
            number = isinstance(known[name], Bounded)
            if number == isinstance(given, list):
                yield f"start: {name} is {'a number' if number else 'a list of numbers'}"
            elif (why := known[name].why_not(given if isinstance(given, list) else [given])) is not None:
                yield f"start: {name}: {why}"

    def _outside(self) -> Iterator[str]:
        starts, links = self._starts(), self.links
        for name in self.tuned:
            if (why := links[name].why_not(starts[name])) is not None:
                yield f"start: {name}: {why}; move it or widen its bounds"

    def _starts(self) -> dict[str, list[float]]:
        return self.shape().starts()

    # -- the tunable ---------------------------------------------------------------------------------------------------

    def size(self, steps: int) -> int:
        return sum(self.links[name].size for name in self.tuned)

    def bounds_of(self, steps: int) -> list[tuple[float, float] | None]:
        links = [self.links[name] for name in self.tuned]
        pairs = [[(link.low, link.high) if isinstance(link, Bounded) else None] * link.size for link in links]
        return list(chain.from_iterable(pairs))

    def numbers(self, steps: int) -> list[float]:
        starts = self._starts()
        return list(chain.from_iterable(starts[name] for name in self.tuned))

    def coordinates(self, phi: Tensor) -> Tensor:
        return self._each("coordinates", phi)

    def value(self, u: Tensor) -> Tensor:
        return self._each("value", u)

    def _each(self, link: str, x: Tensor) -> Tensor:
        import torch

        links = self.links
        parts = x.split([links[name].size for name in self.tuned], dim=-1)
        return torch.cat([getattr(links[n], link)(part) for n, part in zip(self.tuned, parts, strict=True)], dim=-1)

    def schedule(self, phi: Tensor) -> Schedule:
        """The schedule at phi: (P,), or (M, P) for M members."""
        import torch

        from genbo.schedules.schedule import Schedule

        phi = phi if phi.ndim == 2 else phi[None]
        links = self.links
        values: dict[str, Tensor] = {
            name: torch.tensor([numbers], dtype=phi.dtype, device=phi.device)
            for name, numbers in self._starts().items()
        }
        parts = phi.split([links[name].size for name in self.tuned], dim=-1)
        values |= dict(zip(self.tuned, parts, strict=True))
        return Schedule(self.shape(), values, self.zero_terminal)

    def embed(self, process: Process, phi: Tensor) -> Process:
        """The process whose sampler stops at the schedule's levels, told in what the model is conditioned on."""
        from genbo.diffusion.network import Network

        schedule, model = self.schedule(phi), process.model
        if not isinstance(model, Network):  # an exact world is told the log-SNR itself
            return process.with_grid(schedule.grid(process.steps))
        return process.with_grid(schedule.grid(process.steps, told=model.conditioning, train_steps=model.train_steps))

    def spoken(self, phi: Tensor) -> list[float]:
        return [float(p) for p in phi]

    @property
    def labels(self) -> list[str]:
        """A name for each number of phi."""
        links = self.links
        sizes = [(name, links[name].size) for name in self.tuned]
        return [name if size == 1 else f"{name}_{k + 1}" for name, size in sizes for k in range(size)]

    def shown(self, phi: Tensor, steps: int) -> dict[str, list[Any]]:
        return {"curve": self.curve(phi)}

    def curve(self, phi: Tensor) -> list[list[float]]:
        """Time and log-SNR along the schedule at phi (P,)."""
        import torch

        t = torch.linspace(0, 1, POINTS, dtype=torch.float64)
        return [t.tolist(), self.schedule(phi).log_snr(t)[0].tolist()]

    def named(self, phi: Tensor) -> Mapping[str, Numbers]:
        """phi (P,) by the names of the parameters: what `start` takes."""
        links = self.links
        parts = phi.split([links[name].size for name in self.tuned])
        listed = {name: [float(p) for p in part] for name, part in zip(self.tuned, parts, strict=True)}
        return {name: numbers[0] if isinstance(links[name], Bounded) else numbers for name, numbers in listed.items()}
