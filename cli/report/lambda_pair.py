"""Two laws of a search for lambda on held-out samples, and how they compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from genbo.bilevel.measured import Measured
    from genbo.bilevel.regularization.tilted import Law
    from genbo.bilevel.verdict import Comparison

Which = Literal["r1", "r2", "kl"]


@dataclass(frozen=True)
class Pair:
    """The laws at the start's lambda and at the tuned one, by held-out samples: the same ones, or others for each."""

    start: Law
    tuned: Law
    shared: bool
    prompts: tuple[str, ...]
    samples: int  # in all; 0 where the laws have a closed form
    fresh_prompts: bool

    @property
    def has_enough_samples(self) -> bool:
        """Whether both laws can be known from them."""
        return "refuse" not in (self.start.fit.verdict, self.tuned.fit.verdict)

    def compared(self, which: Which) -> Comparison:
        """A number of both laws, its difference and the interval of that."""
        from genbo.bilevel.verdict import compare_laws

        return compare_laws(
            _of(self.start, which),
            _of(self.tuned, which),
            self.prompts,
            samples=self.samples,
            shared=self.shared,
            fresh_prompts=self.fresh_prompts,
            reliable=self.start.fit.verdict == self.tuned.fit.verdict == "reliable",
        )


def _of(law: Law, which: Which) -> Measured:
    return law.r1 if which == "r1" else law.r2 if which == "r2" else law.kl
