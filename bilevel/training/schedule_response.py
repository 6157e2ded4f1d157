"""How a network in training answers a change of the schedule that it is trained under.

theta(q) = argmin L(theta; q)        q -> schedule -> network
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import Module

if TYPE_CHECKING:
    from genbo.bilevel.training.network_trainer import NetworkTrainer
    from genbo.diffusion.network import Network
    from genbo.diffusion.seed import Seed
    from genbo.schedules.schedule import Schedule


@dataclass(frozen=True)
class ScheduleLevels:
    """A network in training as a `bilevel.protocols.TwoLevel`: q -> schedule, and what is wanted of samples at q.

    `wanted` is made small, and differentiable in the module's weights where the schedule has a part in the loss; it
    sees the same noise at every call.
    """

    trainer: NetworkTrainer
    schedule: Callable[[Tensor], Schedule]
    wanted: Callable[[Tensor, Module], Tensor]
    seed: Seed

    @property
    def coupled(self) -> bool:
        return self.trainer.loss.coupled

    def solve(self, q: Tensor, tilt: float) -> Module:
        if not self.coupled and not tilt:
            return self.trainer.average
        q = q.detach()
        steps = self.trainer.options.z_steps
        return self.trainer.answer(self.schedule(q), lambda z: self.wanted(q, z), tilt, steps, self.seed)

    def lower(self, q: Tensor, theta: Module) -> Tensor:
        return self.trainer.measured(theta, self.schedule(q), self.trainer.options.z_batches, self.seed)

    def upper(self, q: Tensor, theta: Module) -> Tensor:
        return self.wanted(q, theta)


@dataclass(frozen=True)
class ScheduleResponse:
    """A network in training as a problem's lower level (`bilevel.protocols.Learning`): phi -> schedule -> network."""

    trainer: NetworkTrainer
    schedule: Callable[[Tensor], Schedule]
    start: Schedule

    @property
    def coupled(self) -> bool:
        return self.trainer.loss.coupled

    @property
    def moves(self) -> bool:
        return self.trainer.options.steps_of_update > 0

    def update(self, phi: Tensor, seed: Seed) -> None:
        """The options' `steps` of training under the schedule at phi (P,)."""
        if self.moves:
            self.trainer.train(self.schedule(phi.detach()), self.trainer.options.steps_of_update, seed)

    def state(self) -> dict[str, Tensor]:
        return self.trainer.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.trainer.load(state)

    def model(self, theta: Module | None = None) -> Network:
        return self.trainer.network(self.start, theta)

    def answers(
        self, value: Callable[[Tensor], Tensor], wanted: Callable[[Tensor, Module], Tensor], seed: Seed
    ) -> ScheduleLevels:
        """The two levels in coordinates u, `value` being u -> phi."""
        return ScheduleLevels(self.trainer, lambda u: self.schedule(value(u)), wanted, seed)
