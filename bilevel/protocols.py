"""What the parts of a two-level problem promise each other. No algorithm lives here.

tunables    put phi into the process
lower       solves the lower level at phi
estimators  turn lower solves into a gradient in phi
optimizers  follow it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.process import Model, Process
    from genbo.diffusion.seed import Seed

S = TypeVar("S")


class Tunable(Protocol):
    """A hyperparameter phi and the link u -> phi; a file in `bilevel/tunables/` each, whose fields are its options.

    Options that must see the process to become a tunable have `of(process)`, which gives it. A tunable whose numbers
    cannot all be written down has `settled(phi)`, the nearest phi that can.
    """

    @property
    def name(self) -> str:
        """Its key under `tune:` in the job."""

    def size(self, steps: int) -> int:
        """How many numbers phi has, for a sampler of `steps` steps."""

    def first(self, steps: int) -> Tensor:
        """phi at the start, (P,), exactly as the user wrote it."""

    def coordinates(self, phi: Tensor) -> Tensor:
        """phi (..., P) -> u, the inverse of `value`."""

    def value(self, u: Tensor) -> Tensor:
        """u (..., P) -> phi, inside its domain for every u."""

    def embed(self, process: Process, phi: Tensor) -> Process:
        """A new process with phi, (M, P), in its place."""

    def spoken(self, phi: Tensor) -> float | list[float]:
        """phi (P,) as a person writes it in a job: a number, or a list."""


class TwoLevel(Protocol[S]):
    """A lower level and what is wanted of it, at hyperparameters q (P,). S is the solver's own."""

    @property
    def coupled(self) -> bool:
        """Whether L has q in it at all."""

    def solve(self, q: Tensor, tilt: float) -> S:
        """argmin over theta of L(theta; q) + tilt f(q, theta); with the same draws for every tilt."""

    def lower(self, q: Tensor, theta: S) -> Tensor:
        """L(theta; q), differentiable in q, on the same draws for every theta."""

    def upper(self, q: Tensor, theta: S) -> Tensor:
        """f(q, theta), on the same draws for every q and theta."""


class Learning(Protocol):
    """A lower level that trains the very network that is sampled: theta(phi) = argmin L(theta; phi).

    Its weights and their training state are its own; `state` and `load` carry them through a checkpoint.
    """

    @property
    def coupled(self) -> bool:
        """Whether L has phi in it at all."""

    @property
    def moves(self) -> bool:
        """Whether `update` trains at all."""

    def update(self, phi: Tensor, seed: Seed) -> None:
        """A few steps of training at phi (P,)."""

    def state(self) -> dict[str, Tensor]:
        """All that it takes to go on."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""

    def model(self, theta: Any = None) -> Model:
        """The network to sample from, with other weights than its own where they are given."""

    def answers(
        self, value: Callable[[Tensor], Tensor], wanted: Callable[[Tensor, Any], Tensor], seed: Seed
    ) -> TwoLevel[Any]:
        """The two levels in coordinates u, with `value` the link u -> phi, where `wanted` (u, theta) is made small."""


@dataclass(frozen=True)
class Facts:
    """What an estimator must know to say whether it can work; known before anything is loaded."""

    parameters: int
    differentiable_reward: bool = True
    differentiable_model: bool = True
    half_precision: bool = False
    coupled: bool = False  # whether the sampled network is trained for phi, so that it answers a change of it
    slope: str | None = None  # where lambda is tuned: the estimator that its lower solver is followed by

    @property
    def tilted(self) -> bool:
        """Whether what is sampled is the law that a lower level ends in."""
        return self.slope is not None


SAMPLED_ONLY = "a search for lambda follows the law that a lower level ends in; use estimator: auto"


@dataclass(frozen=True)
class Estimate:
    """A gradient in u of the objective, and what was seen on the way.

    `scores` is (K, N): every reward and constraint (rows) of every sample (columns), averaged over the members, which
    stand around u. `grad_se` is the standard error of each coordinate over the samples. Where the sampled network
    answers a change of u, `indirect` is the part of `grad` that comes of its answer, and `apart` tells how far two
    estimates of it stood from each other. `width` is half the stretch of u over which each coordinate of `grad` is an
    average, which a difference is: 0 for a derivative.
    """

    grad: Tensor
    grad_se: Tensor
    scores: Tensor
    indirect: Tensor | None = None
    apart: float | None = None
    width: float = 0.0


class Optimizer(Protocol):
    """u, gradient, state -> u, state; a file in `bilevel/optimizers/` each. It climbs: objectives here go up."""

    def step(
        self, u: Tensor, grad: Tensor, state: Mapping[str, Tensor], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`progress` runs from 0 to 1 over the budget; state tensors are float64 and empty at first."""
