"""What fine-tuning at the best lambda did, on held-out samples: the part of the report about tuned weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genbo.cli.report import number_format

if TYPE_CHECKING:
    from genbo.bilevel.verdict import Comparison
    from genbo.cli.report.held_out_side import Side
    from genbo.diffusion.process import Process

Document = dict[str, Any]


@dataclass(frozen=True)
class Finetuned:
    """Samples of one set of weights: (rewards of both levels, N) on the held-out noise, and the KL of its paths."""

    factor: float | None  # of the lambda that was found; None is the pretrained model
    lam: float | None
    side: Side
    kl: tuple[float, float] | None  # and its standard error


@dataclass(frozen=True)
class Weights:
    """What came of fine-tuning: the pretrained model first, then one for each factor, 1 among them."""

    tuned: Process
    laws: tuple[Finetuned, ...]
    prompts: tuple[str, ...]
    upper: tuple[float, ...]  # the weights of the upper rewards; the rows that follow are the lower ones
    lower: tuple[float, ...]
    fresh_prompts: bool
    judges: tuple[str, ...] = ()  # names; their rows stand behind those of both levels

    def at(self, factor: float | None) -> Finetuned:
        return next(law for law in self.laws if law.factor == factor)

    def scores(self, law: Finetuned, level: str) -> Any:
        """(N,), the weighted rewards of a level, or what a judge says, by its name."""
        import torch

        rows = law.side.scores.double()
        split, end = len(self.upper), len(self.upper) + len(self.lower)
        if level in self.judges:
            return rows[end + self.judges.index(level)]
        weights, rows = (self.upper, rows[:split]) if level == "r1" else (self.lower, rows[split:end])
        return torch.tensor(weights, dtype=torch.float64) @ rows

    def compared(self, factor: float | None, other: float | None, level: str) -> Comparison:
        """`factor` after `other`."""
        from genbo.bilevel.verdict import compare

        before, after = (self.scores(self.at(f), level) for f in (other, factor))
        return compare(before, after, self.prompts, fresh_prompts=self.fresh_prompts)

    def document(self) -> list[Document]:
        """The key `weights` of `report.json`: a row a law, against the pretrained model."""
        from genbo.cli.report.summary import plain

        rows = []
        for law in self.laws:
            row: Document = {"factor": law.factor, "lam": law.lam, "kl": None, "kl_se": None}
            if law.kl is not None:
                row |= {"kl": law.kl[0], "kl_se": law.kl[1]}
            for level in ("r1", "r2"):
                row[level] = self.scores(law, level).mean().item()
                row[f"{level}_gain"] = None if law.factor is None else plain(self.compared(law.factor, None, level))
            if self.judges and law.factor is not None:
                row["judges"] = {name: plain(self.compared(law.factor, None, name)) for name in self.judges}
            rows.append(row)
        return rows

    def remarks(self, upper: str, lower: str) -> Iterator[Document]:
        """Sentences: what the tuned weights did, and whether less KL is over-optimised as the curve says."""
        from genbo.cli.report.summary import remark

        names = {"r1": upper, "r2": lower}
        opinions = {name: name for name in self.judges}
        if 1.0 in [law.factor for law in self.laws]:
            gains = [f"{name} {_change(self.compared(1.0, None, level))}" for level, name in (names | opinions).items()]
            yield remark("note", f"The weights tuned at lambda against the pretrained model: {' and '.join(gains)}.")
        for law in self.laws:
            if law.factor is None or law.factor == 1:
                continue
            both = {level: self.compared(law.factor, 1.0, level) for level in names}
            gains = [f"{names[level]} {_change(found)}" for level, found in both.items()]
            said = f"Weights tuned at {law.factor:g} lambda against lambda: {' and '.join(gains)}"
            yield remark("note", f"{said}{_meaning(law.factor, both)}.")


def _change(found: Comparison) -> str:
    return number_format.change(found.difference, found.interval)


def _meaning(factor: float, both: Mapping[str, Comparison]) -> str:
    """In words, where the samples show it."""
    r1, r2 = both["r1"].verdict, both["r2"].verdict
    none = "no measurable difference"
    if factor < 1 and r2 == "better" and r1 == "worse":
        return ": over-optimised"
    if factor > 1 and r2 == "worse" and r1 == "worse":
        return ": held back too much"
    return ": no measurable difference in either" if r1 == r2 == none else ""
