"""The table of `benchmarks.lambda_weights`: what it kept of every seed, read again and compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from benchmarks.paper_table import Cell
from genbo.bilevel.verdict import Comparison, compare
from genbo.cli.report import number_format
from genbo.cli.run.tensors import read_tensors

METHODS = ("adjoint", "adjoint-0.1", "adjoint-10", "draft", "policy", "policy-0.1", "weighted", "gradient")


@dataclass(frozen=True)
class Scores:
    """Both rewards (N,) on fresh seeds of the tuning prompts, and the same on the held-out ones where it was asked."""

    r1: Tensor
    r2: Tensor
    held_r1: Tensor
    held_r2: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return vars(self)


class OneSeed:
    """What was kept of a seed, read again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about = self.cell("about")
        sizes = self.about["sizes"]
        self.prompts = [c for c in range(sizes["prompts"]) for _ in range(sizes["tuned"])]
        self.held = [c for c in range(sizes["held_out_prompts"]) for _ in range(sizes["held_out"])]

    def cell(self, name: str) -> Cell:
        found: Cell = json.loads((self.folder / f"{name}.json").read_text())
        return found

    def has(self, name: str) -> bool:
        return (self.folder / f"{name}.json").is_file()

    def scores(self, name: str) -> Scores:
        found = read_tensors(self.folder / f"{name}.safetensors", {})
        assert found is not None
        return Scores(**found)

    def row(self, name: str) -> Cell:
        cell, law = self.cell(name), self.about["laws"]["1"]
        start, now = self.scores("start"), self.scores(name)
        gain = _compared(start.r2, now.r2, self.prompts)
        told = {k: cell[k] for k in ("lam", "work", "seconds", "peak_gib", "steps", "kl", "kl_se", "kl_ddim")}
        told |= {"share": gain.difference / law["r2"], "kl_over_law": cell["kl"] / law["kl"], "r2": _told(gain)}
        told["r1"] = _told(_compared(start.r1, now.r1, self.prompts))
        told["held_r2"] = _told(_compared(start.held_r2, now.held_r2, self.held, fresh=True))
        told["held_r1"] = _told(_compared(start.held_r1, now.held_r1, self.held, fresh=True))
        if name != "adjoint" and self.has("adjoint"):
            ours = self.scores("adjoint")
            told["r2_from_adjoint"] = _told(_compared(ours.r2, now.r2, self.prompts))
            told["r1_from_adjoint"] = _told(_compared(ours.r1, now.r1, self.prompts))
            if cell["looks"]:
                told["r1_at_our_r2"] = self._matched(name, cell, start, ours)
        return told

    def _matched(self, name: str, cell: Cell, start: Scores, ours: Scores) -> Cell | None:
        """A baseline's r1 less ours at our r2, between the two looks that hold it; None where it is never reached."""
        points = [start, *(self.scores(f"{name}@{n + 1}") for n in range(len(cell["looks"])))]
        level = ours.r2.mean()
        for a, b in pairwise(points):
            low, high = a.r2.mean(), b.r2.mean()
            if low <= level <= high and high > low:
                t = (level - low) / (high - low)
                return _told(_compared(ours.r1, (1 - t) * a.r1 + t * b.r1, self.prompts))
        return None


def _compared(before: Tensor, after: Tensor, prompts: Sequence[int], *, fresh: bool = False) -> Comparison:
    return compare(before, after, [str(c) for c in prompts], fresh_prompts=fresh)


def _told(found: Comparison) -> Cell:
    return {"difference": found.difference, "interval": list(found.interval)}


def table(out: Path) -> str:
    """Markdown, and table.json beside it."""
    text, document = [], {}
    for folder in sorted(path for path in out.iterdir() if path.is_dir()):
        seeds = {path.name: OneSeed(path) for path in sorted(folder.glob("seed-*")) if (path / "about.json").is_file()}
        rows = {n: {m: s.row(m) for m in METHODS if s.has(m)} for n, s in seeds.items()}
        document[folder.name] = {n: {"about": s.about, "rows": rows[n]} for n, s in seeds.items()}
        text += [f"## r2 = {folder.name}", "", *(_law_line(n, s) for n, s in seeds.items()), "", HEAD, RULE]
        text += [_line(n, m, row) for m in METHODS for n in rows for row in [rows[n].get(m)] if row]
        text.append("")
    (out / "table.json").write_text(json.dumps(document, indent=1))
    found = "\n".join(text)
    (out / "table.md").write_text(found)
    return found


TITLES = (
    *("method", "seed", "share of the law's r2", "r2, tuned prompts", "r1, tuned", "r2, held-out", "r1, held-out"),
    *("path KL / law's", "r2 from adjoint", "r1 from adjoint", "r1 at adjoint's r2", "network rows", "seconds", "GiB"),
)
HEAD = "| " + " | ".join(TITLES) + " |"
RULE = "|" + "---|" * len(TITLES)


def _law_line(name: str, seed: OneSeed) -> str:
    laws = (
        f"at {factor} lambda r2 {law['r2']:+.3f}, r1 {law['r1']:+.4f}, KL {law['kl']:.3g} ({law['verdict']})"
        for factor, law in seed.about["laws"].items()
    )
    return f"- {name}: lambda {seed.about['lam']:.3g} ({seed.about['kind']}); the law " + "; ".join(laws)


def _line(seed: str, method: str, row: Cell) -> str:
    def change(key: str) -> str:
        found = row.get(key)
        return "" if found is None else number_format.change(found["difference"], tuple(found["interval"]))

    reached = "never reached" if "r1_at_our_r2" in row and row["r1_at_our_r2"] is None else change("r1_at_our_r2")
    cells = [
        method,
        seed.removeprefix("seed-"),
        f"{row['share']:.2f}",
        *map(change, ("r2", "r1", "held_r2", "held_r1")),
    ]
    cells += [f"{row['kl_over_law']:.2f}", change("r2_from_adjoint"), change("r1_from_adjoint"), reached]
    cells += [f"{row['work']:,}", f"{row['seconds']:.0f}", f"{row['peak_gib']:.1f}"]
    return "| " + " | ".join(cells) + " |"
