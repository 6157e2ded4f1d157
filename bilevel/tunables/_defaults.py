"""What most tunables have in common: phi at the start written once, and nothing to round, to bound or to open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.process import Process


class TunableDefaults:
    """To inherit from; `genbo.bilevel.protocols.Tunable` says what each is for."""

    def numbers(self, steps: int) -> list[float]:
        raise NotImplementedError

    def first(self, steps: int) -> Tensor:
        import torch

        return torch.tensor(self.numbers(steps), dtype=torch.float64)

    def size(self, steps: int) -> int:
        raise NotImplementedError

    @property
    def rule_option(self) -> str | None:
        return None

    def bounds_of(self, steps: int) -> list[tuple[float, float] | None]:
        return [None] * self.size(steps)

    @property
    def labels(self) -> list[str]:
        return []

    def shown(self, phi: Tensor, steps: int) -> dict[str, list[Any]]:
        return {}

    def settled(self, phi: Tensor) -> Tensor:
        return phi

    def of(self, process: Process) -> Self:
        return self
