"""What the parts of a two-level problem promise each other. No algorithm lives here.

tunables    put phi into the process
lower       solves the lower level at phi
estimators  turn lower solves into a gradient in phi
optimizers  follow it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypeVar, cast, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.process import Model, Process
    from genbo.diffusion.seed import Seed

S = TypeVar("S")
Level = TypeVar("Level", contravariant=True)
At = TypeVar("At", contravariant=True)
Gradient = TypeVar("Gradient", covariant=True)
Context = TypeVar("Context", contravariant=True)
Begun = TypeVar("Begun", covariant=True)

Follows = Literal["samples", "law", "network"]
Draw = list[frozenset[int] | None]


class Tunable(Protocol):
    """A hyperparameter phi and the link u -> phi; a file in `bilevel/tunables/` each, whose fields are its options.

    P is `size(steps)`, M the number of settings that are sampled at once. `tunables/_defaults.py` has the members that
    most tunables share.
    """

    @property
    def name(self) -> str:
        """Its key under `tune:` in the job."""

    def mistakes(self, steps: int) -> list[str]:
        """What is wrong with these options for a sampler of `steps` steps, a sentence each, with the remedy.

        A sentence that begins with `option: ` is shown at that option's place in the job.
        """

    def size(self, steps: int) -> int:
        """P >= 1, how many numbers phi has, for a sampler of `steps` steps."""

    def numbers(self, steps: int) -> list[float]:
        """phi at the start, P numbers exactly as the user wrote them; for the plan, which is made without torch."""

    def first(self, steps: int) -> Tensor:
        """The same as a tensor, (P,) in float64."""

    def bounds_of(self, steps: int) -> list[tuple[float, float] | None]:
        """Low and high of each of the P numbers, None for one that has no bounds of its own."""

    @property
    def rule_option(self) -> str | None:
        """The option of the guidance rule that phi is a value of, or None where it acts elsewhere."""

    @property
    def labels(self) -> list[str]:
        """A name for each of the P numbers, where they have names of their own; else none."""

    def shown(self, phi: Tensor, steps: int) -> dict[str, list[Any]]:
        """Numbers to draw phi (P,) by, for a report: a value a step as `over_steps`, or what else there is to see."""

    def of(self, process: Process) -> Tunable:
        """The tunable itself, where its options must see the process first.

        Raises:
            ValueError: a sentence, where this process has no place for it.
        """

    def settled(self, phi: Tensor) -> Tensor:
        """The nearest phi (P,) that can be written down and used."""

    def coordinates(self, phi: Tensor) -> Tensor:
        """phi (..., P) -> u, the inverse of `value`."""

    def value(self, u: Tensor) -> Tensor:
        """u (..., P) -> phi, inside its domain for every u."""

    def embed(self, process: Process, phi: Tensor) -> Process:
        """A new process with phi in its place.

        Args:
            process: The process to put it into; it stays as it is.
            phi: (M, P) in float64 on the CPU, inside its domain; the new process is differentiable in it.

        Returns:
            A process with M members.
        """

    def spoken(self, phi: Tensor) -> float | list[float]:
        """phi (P,) as a person writes it in a job: a number, or a list."""


class RuleTunable(Tunable, Protocol):
    """A tunable whose phi is an option of the guidance rule: its `rule_option` is not None."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Low and high of each of the P numbers."""

    def spread(self, numbers: Sequence[float], steps: int) -> list[float]:
        """`over_steps` of P plain numbers without torch, a value a step, for the plan."""


def of_rule(tunable: Tunable) -> RuleTunable:
    """The same tunable, which must be one whose phi is an option of the guidance rule."""
    assert tunable.rule_option is not None
    return cast("RuleTunable", tunable)


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
    """What an estimator must know to say whether it can work; known before anything is loaded.

    Attributes:
        parameters: P, how many numbers are tuned.
        differentiable_reward: whether every reward and constraint has gradients.
        differentiable_model: whether the network has.
        half_precision: whether the network computes in fp16 or bf16.
        coupled: whether the sampled network is trained for phi, so that it answers a change of it.
        slope: where lambda is tuned, the estimator that its lower solver is followed by.
        steered: whether samples are steered by a reward's gradient, so that a derivative needs the second one of the
            network and of that reward.
        constrained: whether rewards are kept at levels, whose multipliers change the objective at every step.
        schedule: whether a noise schedule is tuned alone, by numbers within bounds, of a network that serves them all.
        candidates: how many samples each candidate of a usual search would have for the work of the gradients.
    """

    parameters: int
    differentiable_reward: bool = True
    differentiable_model: bool = True
    half_precision: bool = False
    coupled: bool = False
    slope: str | None = None
    constrained: bool = False
    schedule: bool = False
    candidates: int = 0
    steered: bool = False

    @property
    def tilted(self) -> bool:
        """Whether what is sampled is the law that a lower level ends in."""
        return self.slope is not None


STEERED = "where samples are steered the network would need a second derivative; use estimator: zeroth_order"
LAW_ONLY = "this estimator is the gradient of tune: regularization only; use estimator: auto"
SAMPLED_ONLY = "a search for lambda follows the law that a lower level ends in; use estimator: auto"


@dataclass(frozen=True)
class Estimate:
    """A gradient in u of the objective, and what was seen on the way. All tensors are in float64, on the CPU.

    Attributes:
        grad: (P,); up is better.
        grad_se: its standard error over the samples, (P,).
        scores: (K, N), every reward and constraint (rows) of every sample (columns), averaged over the members, which
            stand around u.
        indirect: the part of `grad` that comes of the network's answer to a change of u, (P,), where it is trained.
        apart: the distance of two estimates of that answer, relative to the gradient's length.
        width: half the stretch of u over which each coordinate of `grad` is an average, which a difference is: 0 for a
            derivative.
        state: what the estimator wants back at the next step; tensors in float64.
        slopes: (P, N), the derivative of each sample's total, of which `grad` is the mean, where it is known.
    """

    grad: Tensor
    grad_se: Tensor
    scores: Tensor
    indirect: Tensor | None = None
    apart: float | None = None
    width: float = 0.0
    state: Mapping[str, Tensor] = field(default_factory=dict)
    slopes: Tensor | None = None


@dataclass(frozen=True)
class GradientCost:
    """What one gradient costs, known before anything is loaded.

    `draws` are the samplings, a list for each that goes through the network by itself; in it a member an entry: which
    coordinates of u are moved there, or None where u is differentiated. `laws` are the lower solves of a gradient in
    lambda, "y" or "z" with the upper reward let in. `solves`, of which `tilted_solves` let the upper objective in, are
    those of a network in training, and `direct_parts` counts how often the sampler's own part is estimated there.
    """

    draws: Sequence[Draw] = ()
    network_passes: int = 1  # network calls a sampling step: 2 where a step is computed again on the way back
    goes_back: bool = False  # whether a gradient goes back through the network
    idle_steps: int = 0  # steps at first whose gradient is 0, for want of one before them
    shared_samples: bool = True  # whether all draws of a step are of the same samples
    laws: Sequence[Literal["y", "z"]] = ()
    solves: int = 0
    tilted_solves: int = 0
    direct_parts: int = 1

    @property
    def trajectories(self) -> int:
        """How many samplings of every sample one gradient takes."""
        return sum(map(len, self.draws))


class Estimator(Protocol[Level, At, Gradient]):
    """Turns lower solves into a gradient; a file in `bilevel/estimators/` each, whose fields are its options.

    What it can ask, and where, depends on what it `follows`:

        samples   (Problem, SamplesAt)   -> Estimate, the gradient in u of the mean score of samples at phi
        network   (Problem, SamplesAt)   -> Estimate, the same where the sampled network is trained for phi
        law       (SolveLaw, lambda)     -> Measured, dF / dlog lambda of the law that a lower level ends in
    """

    follows: ClassVar[Follows]

    def why_not(self, facts: Facts) -> str | None:
        """None, or a sentence: why it cannot work here, and what to do instead."""

    def cost(self, parameters: int) -> GradientCost:
        """Of one gradient in so many parameters."""

    def __call__(self, level: Level, at: At, /) -> Gradient:
        """The gradient at a point; `level` can be asked there and anywhere near.

        Raises:
            FloatingPointError: where a lower level leaves the finite numbers.
        """


@runtime_checkable
class Chooser(Protocol):
    """A file in `bilevel/estimators/` that chooses among the others."""

    def choose(self, facts: Facts) -> tuple[str, dict[str, object], str]:
        """The kind of an estimator, its options, and the reason in a sentence."""

    def search(self, facts: Facts) -> tuple[str, str] | None:
        """The kind of a searcher that is better than any gradient there, and the reason; None elsewhere."""


def cannot_follow(estimator: Estimator[Any, Any, Any], facts: Facts) -> str | None:
    """None, or a sentence: why this estimator cannot work on such a problem.

    An estimator's own `why_not` comes first; what it follows is looked at in any case, so that one which never refuses
    is still not asked for the gradient of something that it does not know.
    """
    if reason := estimator.why_not(facts):
        return reason
    if facts.tilted == (estimator.follows == "law"):
        return None
    return LAW_ONLY if estimator.follows == "law" else SAMPLED_ONLY


@dataclass(frozen=True)
class LowerTraits:
    """What the rest of the house must know of a lower solver, whatever its options."""

    finds: Literal["law", "network"]  # a law at each lambda, or the network that is sampled
    estimator: str  # what `estimator: auto` takes
    meaning: str  # whose numbers these are, as the report says it
    on_paper: bool = False  # known in closed form: nothing is drawn
    free: bool = False  # another lambda costs no network call

    @property
    def walks(self) -> bool:
        """Whether an optimizer takes lambda a step at a time, because every law costs network calls."""
        return self.finds == "law" and not self.free


@dataclass(frozen=True)
class Drawing:
    """What a lower solver draws with its options, known before anything is loaded.

    `bank` says which samples of the pretrained model it works on, a bank that may be shifted where "shifted".
    `precision` is the standard error of log lambda at which a search may stop.
    """

    samples: int = 0  # a prompt, at each lambda or in the first bank
    bank: Literal["none", "plain", "shifted"] = "none"
    precision: float = 0.1


class LowerSolver(Protocol[Context, Begun]):
    """Finds what is generated at the hyperparameters; a file in `bilevel/lower/` each, whose fields are its options.

    One that finds a law begins with a `LawContext` and gives a `SolveLaw`, lambda -> law; one that finds a network
    begins with a `NetworkContext` and gives the network in training.
    """

    traits: ClassVar[LowerTraits]

    @property
    def drawing(self) -> Drawing:
        """What it draws."""

    def mistakes(self) -> list[str]:
        """What is wrong with these options, a sentence each."""

    def why_not(self, model: Any, *rewards: Sequence[tuple[float, Any]]) -> str | None:
        """None, or a sentence: why this model's options and these weighted rewards, upper then lower, do not suit."""

    def shortened(self, samples: int) -> Self:
        """The same with so many samples a prompt and hardly any training, to see how long it takes."""

    def begin(self, context: Context) -> Begun:
        """The lower level, ready to be solved at any hyperparameters.

        Raises:
            ValueError: where the context lacks what these options need.
        """


class Optimizer(Protocol):
    """u, gradient, state -> u, state; a file in `bilevel/optimizers/` each. It climbs: objectives here go up."""

    def why_not(self, facts: Facts) -> str | None:
        """None, or a sentence: why it cannot work here, and what to do instead."""

    def step(
        self,
        u: Tensor,
        grad: Tensor,
        state: Mapping[str, Tensor],
        progress: float,
        *,
        noise: Tensor | None = None,
        width: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step uphill.

        Args:
            u: Where it stands, (P,) in float64.
            grad: The gradient of the objective there, (P,) in float64.
            state: What the last step returned, tensors in float64; empty at first.
            progress: From 0 to 1 over the budget.
            noise: The standard error of `grad`, (P,), where it is known.
            width: Half the stretch of u over which `grad` is an average, as `Estimate.width`; 0 for a derivative.

        Returns:
            The next u, (P,), and the state for the next step.
        """
