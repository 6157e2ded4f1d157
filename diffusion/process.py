"""A process turns noise into samples at fixed hyperparameters: a network, a sampler, a guidance rule and their numbers.

A `Process` is a value. Hyperparameters are put into it by making a new one; its tensors have a leading member axis M,
so that one batch carries M settings at once, each with gradients of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

from genbo.diffusion.numbers import N
from genbo.diffusion.prediction import Prediction
from genbo.diffusion.room import Room
from genbo.diffusion.steer import Climbed, Steer, SteeringRule
from genbo.diffusion.traits import GuidanceTraits, SamplerTraits

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genbo.diffusion.seed import Batch
    from genbo.schedules.clock import Clock
    from genbo.schedules.grid import Grid


T = TypeVar("T")
ROUNDING = 1e-9  # as near to 1 as a guidance weight must be for its unconditional half to be left out


@dataclass(frozen=True)
class Condition:
    """What the network is told beside x_t and t, a row a prompt: named tensors (rows, ...)."""

    tensors: Mapping[str, Tensor]

    def take(self, rows: Tensor) -> Condition:
        """These rows, (B,) of their numbers."""
        return Condition({name: value[rows] for name, value in self.tensors.items()})

    def cat(self, other: Condition) -> Condition:
        """Its rows, then those of another with the same names."""
        import torch

        return Condition({name: torch.cat([value, other.tensors[name]]) for name, value in self.tensors.items()})

    def told(self, numbers: Mapping[str, Tensor]) -> Condition:
        """With more named tensors beside these."""
        return Condition({**self.tensors, **numbers}) if numbers else self


@dataclass
class Meter:
    """What a run cost, counted where it is spent.

    `denoiser_calls` are calls of the network whatever their batch, `image_forwards` the rows in them (a guided sample
    takes two), `reward_images` the images scored. `image_backwards` are the rows of calls that a gradient goes back
    through, to what the network was given or to its weights; what a checkpoint computes again on the way is a call.
    """

    denoiser_calls: int = 0
    image_forwards: int = 0
    reward_images: int = 0
    image_backwards: int = 0

    def called(self, rows: int) -> None:
        """The network was called on so many rows."""
        self.denoiser_calls += 1
        self.image_forwards += rows

    def goes_back(self, output: Tensor, rows: int) -> None:
        """Counts these rows when a gradient comes back to what the network made of them."""
        if output.requires_grad:
            output.register_hook(lambda grad: self._went_back(rows))

    def _went_back(self, rows: int) -> None:
        self.image_backwards += rows

    def as_dict(self) -> dict[str, int]:
        """Each count by its name."""
        return dict(vars(self))


class Model(Protocol):
    """A network with what belongs to it. Files in `diffusion/models/` hold options and open such an object."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample's noise, without the batch axis: (C, H, W) of latents or pixels."""

    @property
    def prediction(self) -> str:
        """What the network returns: epsilon | v_prediction | sample | flow_prediction."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def dtype(self) -> torch.dtype:
        """In what precision."""

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Rows of conditioning, one for each of B prompts; "" (or the negative prompt) is the unconditional half.

        Raises:
            ValueError: a sentence, for a prompt that the model does not know.
        """

    def unconditional(self) -> Condition:
        """One row: the other end of classifier-free guidance."""

    def __call__(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """One pass through the network.

        Args:
            x_t: Noisy samples, (B, *shape).
            time: What the network gets as time, (B,), in the units of its own clock.
            condition: B rows.

        Returns:
            The raw prediction, (B, *shape), of the kind that `prediction` names; differentiable in `x_t`.
        """

    def decode(self, x: Tensor) -> Tensor:
        """Samples (B, *shape) -> images (B, C, H, W) in [0, 1], differentiable; exact worlds return x as it is."""

    def grid(self, sampler: Sampler) -> Grid:
        """The levels that this model's own settings give the sampler: tensors (1, T) in float64 on the CPU.

        Raises:
            Refused: a sentence, where this sampler cannot draw from this model.
        """


@runtime_checkable
class Told(Model, Protocol):
    """A model whose network is told a number a step beside the prompt, like guidance that it was distilled for.

    They reach it as tensors (B,) of its condition.
    """

    @property
    def told(self) -> Mapping[str, float]:
        """Each number by name, as it stands where nobody tunes it."""


@runtime_checkable
class Whole(Model, Protocol):
    """A model that draws by itself, with no step that genbo could take, and no gradient."""

    def draw(self, process: Process, batch: Batch) -> Tensor:
        """Samples (M * N, *shape), member by member."""


@runtime_checkable
class Timed(Model, Protocol):
    """A model whose sampler may stop at any times of its clock."""

    @property
    def clock(self) -> Clock:
        """The times that the network may be told."""

    def stops(self, sampler: Sampler, spacing: Spacing) -> Tensor:
        """The times (N,) of a usual spacing for this sampler: `own` are those of `grid`."""

    def grid_at(self, sampler: Sampler, times: Tensor) -> Grid:
        """The levels of steps that stop at `times` (M, N), each where the next begins, and end as `grid` ends.

        At the times of `grid` they are its levels; differentiable in the times.
        """


Spacing = Literal["own", "uniform", "trailing"]


class Sampler(Protocol):
    """One step from level t to level s; a file in `diffusion/samplers/` each, whose fields are its options."""

    @property
    def steps(self) -> int:
        """How many steps there are, T >= 1."""

    @property
    def traits(self) -> SamplerTraits:
        """What it declares; the same for all of its class."""

    @property
    def stochastic(self) -> bool:
        """Whether `step` wants fresh noise."""

    def step(self, at: Step, x_t: Tensor, x_0: Tensor, eps: Tensor, memory: Memory, noise: Tensor | None) -> Stepped:
        """One step from level t to the cleaner level s, differentiable in every tensor.

        Args:
            at: The coefficients of both levels, alpha and sigma (B, 1, ...), with x_t = alpha_t x_0 + sigma_t eps.
            x_t: The noisy samples, (B, *shape).
            x_0: The predicted clean samples, (B, *shape).
            eps: The predicted noise, (B, *shape), which follows from `x_0`.
            memory: What the last step returned; () at the first.
            noise: Fresh noise of variance 1, (B, *shape); None unless the sampler is stochastic.

        Returns:
            x_s (B, *shape), and the memory for the next step.
        """


@runtime_checkable
class Markov(Sampler, Protocol):
    """A sampler whose step is a Gaussian law of x_s given x_t, linear in (x_0, eps): mean + scale * fresh noise."""

    def transition(self, at: Step, x_t: Tensor, x_0: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """The mean (B, *shape) and the standard deviation (B, 1, ...), which is 0 where the step draws nothing."""


Memory = tuple[Any, ...]
Stepped = tuple[Any, Memory]


@dataclass(frozen=True)
class Step:
    """The coefficients of one step, (B, 1, ...) each, ready to multiply x_t."""

    index: int
    last: bool
    alpha_t: Tensor
    sigma_t: Tensor
    alpha_s: Tensor
    sigma_s: Tensor
    order: int | None = None  # of a multistep solver, as `Grid.orders`
    heun: bool = False
    variance: str = "small"
    noisy_end: bool = False


class GuidanceRule(Protocol):
    """How the conditional and the unconditional prediction become one; a file in `diffusion/guidance/` each.

    Its fields are its options. Every numeric option, `weight` first, may be tuned, and reaches `combine` as a tensor a
    row.
    """

    @property
    def weight(self) -> float | list[float]:
        """The guidance weight, or a list of one for each step; 1 is the conditional model, 0 the unconditional one."""

    @property
    def traits(self) -> GuidanceTraits:
        """What it declares; the same for all of its class."""

    def effective_weight(self, options: Mapping[str, N], step: int, steps: int) -> N:
        """The weight that is in effect at one step; where it is exactly 1 the unconditional half is not computed.

        Args:
            options: Every numeric option of the rule by name, at this step: numbers, for the plan, or tensors (M,),
                which stay differentiable. One formula serves both, by plain arithmetic and `diffusion.numbers`.
            step: 0 at pure noise, `steps` - 1 at the last step.
            steps: How many there are.

        Returns:
            A number, or a tensor (M,), as the options are.
        """

    def combine(
        self,
        cond: Tensor,
        uncond: Tensor,
        options: Mapping[str, Tensor],
        predict: Prediction,
        state: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The guided prediction of one step, differentiable in every tensor.

        Args:
            cond: The network's raw prediction with the prompt, (B, *shape).
            uncond: The same without it; a row whose weight is 1 repeats `cond`.
            options: Every numeric option by name, (B, 1, ...).
            predict: Turns raw predictions at this step into x_0 and eps, and x_0 back.
            state: What the last step returned; None at the first, and where `traits.keeps_state` is false.

        Returns:
            The guided raw prediction, (B, *shape), and the state for the next step.
        """


def effective_weights(rule: GuidanceRule, options: Mapping[str, Tensor]) -> Tensor:
    """(M, T), of options (M, T): the weight in effect at each step, differentiable in every option."""
    import torch

    steps = options["weight"].shape[1]
    now = ({name: value[:, i] for name, value in options.items()} for i in range(steps))
    return torch.stack([rule.effective_weight(at, i, steps) for i, at in enumerate(now)], dim=1)


@dataclass(frozen=True)
class Process:
    """Noise to samples at fixed hyperparameters.

    `options` holds every numeric option of the guidance rule as (M, T) on the CPU; `grid` the levels, (M, T); `told`
    the numbers that the network itself is told at each step, (M, T).
    `batch` is how many images go through the network in one call, at most (a guided image is two rows).
    `steer` moves every prediction up the gradient of a reward: a network pass there and back for each step.
    """

    model: Model
    sampler: Sampler
    rule: GuidanceRule
    options: Mapping[str, Tensor]
    grid: Grid
    batch: int = 32
    meter: Meter = field(default_factory=Meter, compare=False)
    steer: Steer | None = None
    told: Mapping[str, Tensor] = field(default_factory=dict)
    room: Room = field(default_factory=Room, compare=False)

    @property
    def steps(self) -> int:
        """T, of the sampler."""
        return self.sampler.steps

    @property
    def members(self) -> int:
        """M, how many settings one batch carries."""
        strength = () if self.steer is None else (self.steer.strength,)
        tables = (*self.options.values(), *self.told.values(), *strength)
        return max(self.grid.members, *(int(v.shape[0]) for v in tables))

    def over(self, batch: Batch, one: Callable[[Batch], T], *, members: int = 1) -> Iterator[T]:
        """`one` of every part of the batch that fits into one call of the network, a sample's members with it."""
        return self.room.over(len(batch), self.batch, members, lambda part: one(batch.part(part)))

    def with_option(self, name: str, value: Tensor) -> Process:
        """A new process whose guidance option `name` is `value`, (M, T).

        Raises:
            KeyError: where the rule has no such option.
        """
        if name not in self.options:
            raise KeyError(f"the guidance rule has no option {name!r}; it has {sorted(self.options)}")
        return replace(self, options={**self.options, name: value})

    def with_told(self, name: str, value: Tensor) -> Process:
        """A new process whose network is told `value`, (M, T), under this name.

        Raises:
            KeyError: where the network is told no such number.
        """
        if name not in self.told:
            raise KeyError(f"this network is told no {name!r}")
        return replace(self, told={**self.told, name: value})

    def with_grid(self, grid: Grid) -> Process:
        """A new process with these levels, (M, T) each."""
        return replace(self, grid=grid)

    def steered(self, rewards: Iterable[Climbed], strength: float | Sequence[float], rule: SteeringRule) -> Process:
        """A new process on the same meter that climbs these rewards; `strength` is one number, or one a step."""
        import torch

        table = torch.as_tensor(strength, dtype=torch.float64).expand(self.steps)[None].clone()
        return replace(self, steer=Steer(tuple(rewards), table, rule))

    def with_strength(self, value: Tensor) -> Process:
        """A new process that is steered with `value`, (M, T), as its strength."""
        if self.steer is None:
            raise ValueError("nothing is steered here, so there is no strength to set")
        return replace(self, steer=replace(self.steer, strength=value))


def image_cost(process: Process) -> dict[str, int]:
    """What one image costs by itself, member 0's, with the names of `Meter`; its reward at the end is not counted."""
    weight = effective_weights(process.rule, process.options)[0]
    once = process.steps + int(((weight - 1).abs() > ROUNDING).sum())
    looks, passes = (0, 0) if process.steer is None else process.steer.looks(process.steps)
    calls = {"denoiser_calls": process.steps * (1 + passes), "image_forwards": once * (1 + passes)}
    return {**calls, "reward_images": looks, "image_backwards": once * max(passes, 1) if looks else 0}


def process_of(model: Model, sampler: Sampler, rule: GuidanceRule, *, batch: int = 32) -> Process:
    """A process at the options that stand in the rule; a number holds at every step, a list is one a step."""
    import torch

    numbers = {
        name: value
        for name, value in vars(rule).items()
        if isinstance(value, (int, float, list)) and not isinstance(value, bool)
    }

    def tables(named: Mapping[str, float | list[float]]) -> dict[str, Tensor]:
        every = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in named.items()}
        return {name: value.expand(sampler.steps)[None].clone() for name, value in every.items()}

    told = tables(dict(model.told)) if isinstance(model, Told) else {}
    return Process(model, sampler, rule, tables(numbers), model.grid(sampler), batch, told=told)
