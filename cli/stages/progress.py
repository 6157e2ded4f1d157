"""What a person sees while a run goes on, on stderr: a live table on a terminal, a line a step in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from genbo.cli.report import number_format
from genbo.cli.report.words import noise_ratio

if TYPE_CHECKING:
    from rich.console import Group

Record = Mapping[str, Any]
ROWS = 10  # of the live table: the latest steps


def watch(steps: int, *, quiet: bool) -> Quiet:
    """The watch that suits stderr."""
    if quiet:
        return Quiet()
    return Live(steps) if sys.stderr.isatty() else Lines(steps)


class Quiet:
    """Says nothing; the others speak through the same verbs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def note(self, text: str) -> None:
        """Something to know, once."""

    def begin(self, records: Sequence[Record]) -> None:
        """The steps that a resumed run has behind it."""

    def step(self, record: Record, left_s: float | None) -> None:
        """A step is done and safe on the disk."""

    def evaluating(self, side: str, done: int, total: int, left_s: float | None) -> None:
        """`done` of `total` held-out images of a side are drawn."""

    def drawing(self, what: str, done: int, total: int, left_s: float | None) -> None:
        """`done` of `total` calls' worth of samples are drawn."""


class Lines(Quiet):
    """One plain line a step."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def begin(self, records: Sequence[Record]) -> None:
        if records:
            self.note(f"going on after step {len(records)} of {self.steps}")

    def step(self, record: Record, left_s: float | None) -> None:
        cells = [f"{name} {value}" for name, value in zip(HEAD[1:], row(record)[1:], strict=True) if value]
        left = "" if left_s is None else f"  left {number_format.duration(left_s)}"
        self.note(f"step {record['step'] + 1}/{self.steps}  {'  '.join(cells)}{left}")

    def evaluating(self, side: str, done: int, total: int, left_s: float | None) -> None:
        if done == total:
            self.note(f"held-out images at {side}: {total} drawn")

    def drawing(self, what: str, done: int, total: int, left_s: float | None) -> None:
        if done == total:
            self.note(f"{what}: done")


HEAD = ("step", "at", "reward", "gradient", "")


def row(record: Record) -> tuple[str, ...]:
    """A step as the cells of `HEAD`; the last says what went wrong, if anything."""
    chosen = [f"{name} {value}" for name, value in record.get("choices", {}).items()]
    at = ", ".join([*chosen, *(f"{name} {number_format.numbers(value)}" for name, value in record["phi"].items())])
    grads = record["grad"]
    if all(g is None for g in grads):
        gradient = ""  # a search has none
    elif len(grads) == 1:
        gradient = number_format.with_error(grads[0], record["grad_se"][0])
    else:
        ratio = noise_ratio(grads, record["grad_se"])
        gradient = "—" if ratio is None else f"{number_format.number(ratio, 1)} standard errors"
    status = {"ok": "", "flat": "flat: the gradient is exactly zero", "non_finite": "not finite: skipped"}
    reward = number_format.with_error(record["value"], record["value_se"])
    return str(record["step"] + 1), at, reward, gradient, status.get(record["status"], str(record["status"]))


class Live(Quiet):
    """A table of the latest steps over a progress bar with the time left."""

    def __init__(self, steps: int) -> None:
        from rich.console import Console
        from rich.live import Live as Screen
        from rich.progress import BarColumn, Progress, TextColumn

        self.steps, self.records = steps, list[Record]()
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
        )
        self.task = self.progress.add_task("tuning", total=steps, left="")
        self.screen = Screen(get_renderable=self._picture, console=self.console, refresh_per_second=4)

    def __enter__(self) -> Self:
        self.screen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.screen.stop()

    def _picture(self) -> Group:
        from rich.console import Group

        return Group(table(self.records[-ROWS:]), self.progress) if self.records else Group(self.progress)

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)

    def begin(self, records: Sequence[Record]) -> None:
        self.records = list(records)
        self.progress.update(self.task, completed=len(records), left="")

    def step(self, record: Record, left_s: float | None) -> None:
        self.records.append(record)
        self._bar(f"step {record['step'] + 1} of {self.steps}", record["step"] + 1, self.steps, left_s)

    def evaluating(self, side: str, done: int, total: int, left_s: float | None) -> None:
        self._bar(f"held-out images at {side}", done, total, left_s)

    def drawing(self, what: str, done: int, total: int, left_s: float | None) -> None:
        self._bar(what, done, total, left_s)

    def _bar(self, text: str, done: int, total: int, left_s: float | None) -> None:
        left = "" if left_s is None else f"{number_format.duration(left_s)} left"
        self.progress.update(self.task, description=text, completed=done, total=total, left=left)


def table(records: Sequence[Record]) -> Any:
    """Steps as a rich table."""
    from rich.markup import escape
    from rich.table import Table

    drawn = Table(box=None, pad_edge=False, header_style="dim")
    for name in HEAD:
        drawn.add_column(name, justify="right" if name in ("step", "reward", "gradient") else "left")
    for record in records:
        drawn.add_row(*(escape(cell) for cell in row(record)), style=None if record["status"] == "ok" else "yellow")
    return drawn
