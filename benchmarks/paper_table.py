"""What the tables of the paper share: cells kept as they finish, searches in trials, intervals, and both files.

    OUT/cells.jsonl    a line for everything that was run, written when it finished; a stop loses the unfinished line
    OUT/table.md       a row for each method: mean and 95 % interval (Student's, over the seeds)
    OUT/table.json     the same numbers, all rows and trials, the sizes, the machine

The same command goes on where an earlier one stopped. A folder of other sizes is refused, not mixed.
"""

from __future__ import annotations

import json
import math
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.overhead import about, forget_peak
from genbo.bilevel.interval import student_t
from genbo.bilevel.searchers.gp import Gp
from genbo.bilevel.searchers.grid import Grid, points_of
from genbo.bilevel.searchers.random import Random
from genbo.bilevel.searchers.tpe import Tpe
from genbo.bilevel.trials import Candidate, Searcher, Space, Trial, resumed
from genbo.cli.report import number_format
from genbo.diffusion.process import Meter
from genbo.diffusion.seed import Seed

Cell = dict[str, Any]
Columns = Mapping[str, str]  # the key of a number -> its heading

SEARCHERS: dict[str, Searcher] = {"grid": Grid(ends=True), "random": Random(), "gp": Gp(), "tpe": Tpe()}
COST: Columns = {"seconds": "seconds", "work": "network rows", "peak_gib": "peak memory, GiB"}


# -- cells -------------------------------------------------------------------------------------------------------------


class Cells:
    """What was run so far, a line of JSON each; `sizes` are those of all of them."""

    def __init__(self, folder: Path, sizes: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file, self.sizes = folder / "cells.jsonl", dict(sizes)
        self.known = list(_lines(self.file))
        if not self.known:
            self.file.unlink(missing_ok=True)
            self.keep({"sizes": self.sizes, "about": about()})
        elif self.known[0].get("sizes") != json.loads(json.dumps(self.sizes)):
            raise SystemExit(f"{folder} holds a table of other sizes; give another folder with OUT=, or delete it")
        else:
            self.file.write_text("".join(json.dumps(cell) + "\n" for cell in self.known))  # without half a line

    def keep(self, cell: Cell) -> Cell:
        """Writes it to disk."""
        self.known.append(cell)
        with self.file.open("a") as stream:
            stream.write(json.dumps(cell, allow_nan=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        return cell

    def of(self, kind: str, **keys: Any) -> list[Cell]:
        """All of a kind that have these values, in the order in which they finished."""
        wanted = {"kind": kind, **keys}
        return [cell for cell in self.known if all(cell.get(key) == value for key, value in wanted.items())]

    def once(self, kind: str, run: Callable[[], Cell], **keys: Any) -> Cell:
        """The cell, run where it is not known yet."""
        found = self.of(kind, **keys)
        if found:
            return found[0]
        cell = self.keep({"kind": kind, **keys, **run()})
        print(json.dumps(cell), flush=True)
        return cell


def _lines(file: Path) -> Iterator[Cell]:
    """The whole lines of a file; what a kill left of the last one is dropped."""
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:
            return


# -- cost --------------------------------------------------------------------------------------------------------------


@contextmanager
def spent(*meters: Meter) -> Iterator[Cell]:
    """Fills a cell with seconds, peak memory and network rows (a backward row counts twice) of the block."""
    cell: Cell = {}
    _forget_peak()
    began, before = time.perf_counter(), sum(map(_work, meters))
    yield cell
    seconds = time.perf_counter() - began
    cell |= {"seconds": seconds, "work": sum(map(_work, meters)) - before, "peak_gib": _peak_gib()}


def together(cells: Sequence[Cell]) -> Cell:
    """The cost of all: seconds and rows add up, the peak is the highest."""
    summed = {key: sum(cell[key] for cell in cells) for key in ("seconds", "work")}
    return {**summed, "peak_gib": max((cell["peak_gib"] for cell in cells), default=0.0)}


def _work(meter: Meter) -> int:
    return meter.image_forwards + 2 * meter.image_backwards


def _forget_peak() -> None:
    forget_peak()
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # of this process' resident memory


def _peak_gib() -> float:
    """Of the GPU, or else of the process, libraries and weights included."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# -- searches ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Searching:
    """A search method under way for one seed; `score` runs a trial, on this meter, and higher is better."""

    cells: Cells
    seed: int
    method: str
    space: Space
    calls: int
    meter: Meter
    score: Callable[[Candidate], float]
    own: Mapping[str, Any] = field(default_factory=dict)

    def trials(self) -> list[Cell]:
        """All of them, those known from an earlier command first."""
        searcher, calls = SEARCHERS[self.method], self.calls
        if isinstance(searcher, Grid):
            if reason := searcher.why_not(self.space, calls):
                raise SystemExit(f"{self.method}: {reason}")
            calls = len(points_of(self.space, calls, ends=True))
        search = searcher.open(self.space, calls, Seed(self.seed).child("search", self.method))
        keys = {"seed": self.seed, "method": self.method}
        done = self.cells.of("trial", **keys)
        resumed(search, [Trial(Candidate(tuple(cell["shares"])), _number(cell["value"])) for cell in done])
        for number in range(len(done), calls):
            candidate = search.ask()
            with spent(self.meter) as cost:
                value = self.score(candidate)
            search.tell(value)
            told = {"trial": number, "shares": list(candidate.shares), "value": value if math.isfinite(value) else None}
            done.append(self.cells.keep({"kind": "trial", **keys, **told, **cost}))
            print(f"seed {self.seed} {self.method} {number + 1}/{calls}: {value:.4g}", flush=True)
        return done


def best(trials: Sequence[Cell]) -> Candidate:
    """The candidate with the highest value."""
    fine = [cell for cell in trials if cell["value"] is not None]
    if not fine:
        raise SystemExit("no trial of the search gave a finite value")
    return Candidate(tuple(max(fine, key=lambda cell: float(cell["value"]))["shares"]))


def _number(value: float | None) -> float:
    return math.nan if value is None else value


# -- the table ---------------------------------------------------------------------------------------------------------


def estimate(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean over the seeds, and half its 95 % interval by Student's t; None of a single seed."""
    x = torch.tensor(values, dtype=torch.float64)
    if len(x) < 2:
        return x.mean().item(), None
    return x.mean().item(), student_t(0.975, len(x) - 1) * x.std().item() / math.sqrt(len(x))


@dataclass(frozen=True)
class Table:
    """`methods` names the rows in order, `columns` the numbers; `against` is compared with every other, seed by seed.

    `gap` is the number that this comparison is of.
    """

    title: str
    note: str
    methods: Mapping[str, str]
    columns: Columns
    against: str
    gap: str

    def write(self, folder: Path, cells: Cells) -> str:
        """table.md and table.json of what there is so far; the markdown."""
        text = self.markdown(cells)
        document = {"title": self.title, "note": self.note, **cells.known[0], "table": self.summary(cells)}
        document |= {"rows": cells.of("row"), "trials": cells.of("trial"), "shared": cells.of("shared")}
        (folder / "table.md").write_text(text)
        (folder / "table.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
        return text

    def summary(self, cells: Cells) -> dict[str, Any]:
        """Of each method, every column as mean and half width."""
        found: dict[str, Any] = {}
        for method in self.methods:
            if rows := cells.of("row", method=method):
                every = {key: estimate([row[key] for row in rows]) for key in self.columns if key in rows[0]}
                gap = self._gap(cells, method)
                found[method] = {key: {"mean": m, "half": h} for key, (m, h) in every.items()}
                found[method] |= {"seeds": len(rows)} | ({"gap": {"mean": gap[0], "half": gap[1]}} if gap else {})
        return found

    def markdown(self, cells: Cells) -> str:
        heads = ["method", *self.columns.values(), f"{self.methods[self.against]} − it, {self.columns[self.gap]}"]
        lines = [f"# {self.title}", "", self.note, "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        for method, found in self.summary(cells).items():
            numbers = [_shown(found.get(key)) for key in (*self.columns, "gap")]
            asked, seeds = cells.sizes.get("seeds", found["seeds"]), found["seeds"]
            name = self.methods[method] + f" ({seeds} of {asked} seeds so far)" * (seeds < asked)
            lines.append(f"| {' | '.join([name, *numbers])} |")
        return "\n".join(lines) + "\n"

    def _gap(self, cells: Cells, method: str) -> tuple[float, float | None] | None:
        """How much higher the compared method stands, over the seeds that both have."""
        if method == self.against:
            return None
        mine, its = (
            {row["seed"]: row[self.gap] for row in cells.of("row", method=name)} for name in (self.against, method)
        )
        shared = sorted(set(mine) & set(its))
        return estimate([mine[seed] - its[seed] for seed in shared]) if shared else None


def _shown(found: Mapping[str, float | None] | None) -> str:
    if not found:
        return "—"
    return number_format.with_error(found["mean"], found["half"]) if found["mean"] else "0"


def machine(cells: Cells) -> str:
    """One sentence on where it was measured."""
    known = cells.known[0]["about"]
    return f"{known['device']}, torch {known['torch']}, {os.cpu_count()} cores"
