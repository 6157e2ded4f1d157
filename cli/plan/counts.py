"""What a job will cost, before anything is loaded: network calls, rows there and back, images scored, memory, time.

    training    = the network's own steps before the first of tuning, where the job trains one
    tuning      = the first step + (steps - 1) x a later step, as the estimator says that it draws
    evaluation  = the held-out samples at the start, and again tuned
    a search for lambda = its banks, or a law at every lambda that it asks for; the held-out ones
    rows        = samples x members x sum over the steps of (2 where guided, 1 where the weight is 1)

A plan is exact: the meter of a run that comes to its end shows the same numbers. Or it is a range, from `least` to
`total`, and `inexact` says what decides where in it the run ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genbo.cli.job.job import Chosen, Job, likely_device
from genbo.cli.job.sections.evaluate import PAIRS
from genbo.cli.plan import warnings
from genbo.cli.plan.ascent_counts import ROUNDING, Stepping
from genbo.cli.plan.choice_counts import Trying, differ
from genbo.cli.plan.cost import Cost
from genbo.cli.plan.lambda_counts import PATHS, Searching, held_out_bank
from genbo.cli.plan.memory import Memory, memory
from genbo.cli.plan.throughput import expected_s, record_speed
from genbo.cli.report.number_format import duration

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["PAIRS", "PATHS", "Cost", "Plan", "expected_s", "held_out_bank", "plan", "record_speed"]

BATCH_ON_CPU, BATCH_ON_GPU = 32, 128


@dataclass(frozen=True)
class Plan:
    """The cost of a job, where it comes from, and what is worth saying about it.

    Where `inexact` says why the cost is not known to the last row, `training`, `tuning` and `evaluation` are the most
    that a run spends, and `least` has the least, under the same names.
    """

    training: Cost
    tuning: Cost
    evaluation: Mapping[str, Cost]
    least: Mapping[str, Cost]
    steps: int
    chosen: Chosen
    parameters: int
    batch: int
    device: str
    memory: Memory | None
    expected_s: float | None
    expected_at_least_s: float | None
    inexact: str | None
    warnings: tuple[str, ...]

    @property
    def total(self) -> Cost:
        return sum(self.evaluation.values(), self.training + self.tuning)

    @property
    def total_at_least(self) -> Cost:
        return sum(self.least.values(), Cost())

    @property
    def denoiser_calls(self) -> int:
        return self.total.denoiser_calls

    @property
    def image_forwards(self) -> int:
        return self.total.image_forwards

    @property
    def reward_images(self) -> int:
        return self.total.reward_images

    @property
    def image_backwards(self) -> int:
        return self.total.image_backwards

    def document(self) -> dict[str, Any]:
        """For programs."""
        least = self.total_at_least
        return {
            "estimator": self.chosen.name,
            "estimator_reason": self.chosen.reason,
            "parameters": self.parameters,
            "steps": self.steps,
            "batch": self.batch,
            "device": self.device,
            "training": self.training.document(),
            "tuning": self.tuning.document(),
            "evaluation": {name: cost.document() for name, cost in self.evaluation.items()},
            "total": self.total.document(),
            "at_least": {**{name: cost.document() for name, cost in self.least.items()}, "total": least.document()},
            "exact": self.inexact is None,
            "inexact": self.inexact,
            "memory_bytes": self.memory.total if self.memory else None,
            "memory_rule": self.memory.rule if self.memory else None,
            "expected_s": self.expected_s,
            "expected_at_least_s": self.expected_at_least_s,
            "warnings": list(self.warnings),
        }

    def text(self) -> str:
        """For a person, without colours."""
        from io import StringIO

        from rich.console import Console

        out = StringIO()
        self.show(Console(file=out, width=100, color_system=None))
        return out.getvalue().rstrip()

    def show(self, console: Console) -> None:
        """A table of the counts, then a line each for estimator, memory and time."""
        from rich.table import Table

        table = Table(title="Plan", title_justify="left", box=None, pad_edge=False, header_style="bold")
        for name in ("", *COLUMNS.values()):
            table.add_column(name, justify="right" if name else "left")
        rows = {name: (f"evaluation: {name.replace('_', ' ')}", cost) for name, cost in self.evaluation.items()}
        first = {"training": ("training", self.training)} if self.training != Cost() else {}
        total = {"total": ("total", self.total)}
        least = {**self.least, "total": self.total_at_least}
        for key, (name, cost) in {**first, "tuning": ("tuning", self.tuning), **rows, **total}.items():
            known = least[key] == cost
            ends = {name: cost} if known else {f"{name}, at least": least[key], " " * len(name) + "  at most": cost}
            for label, end in ends.items():
                numbers = [f"{getattr(end, count):,}" for count in COLUMNS]
                table.add_row(label, *numbers, style="bold" if key == "total" else None)
        console.print(table)
        for name, text in self._lines():
            console.print(f"{name:<10} {text}", markup=False, highlight=False)

    def _lines(self) -> Iterator[tuple[str, str]]:
        yield "estimator", f"{self.chosen.name}: {self.chosen.reason}"
        without = "not estimated: the network in training decides" if self.training != Cost() else "little"
        yield "memory", f"about {_bytes(self.memory.total)} ({self.memory.rule})" if self.memory else without
        unknown = "unknown until measured: genbo check --measure"
        yield "time", self._time() or unknown
        yield "counts", f"a range: {self.inexact}" if self.inexact else "exact"
        for warning in self.warnings:
            yield "note", warning

    def _time(self) -> str | None:
        if self.expected_s is None or self.expected_at_least_s is None:
            return None
        least, most = duration(self.expected_at_least_s), duration(self.expected_s)
        return f"about {most}" if least == most else f"from about {least} to {most}"


COLUMNS = {
    "denoiser_calls": "network calls",
    "image_forwards": "image forwards",
    "image_backwards": "backwards",
    "reward_images": "images scored",
}


def plan(job: Job) -> Plan:
    """The plan of a job; imports no torch and loads nothing."""
    device = likely_device(job.model.options)
    batch = batch_of(job, device)
    chosen = job.chosen()
    of = _searching if job.tilts else Trying if differ(job) else Stepping
    counter, least = (of(job, chosen.options, batch, most=most) for most in (True, False))
    training, tuning, evaluation = counter.training(), counter.tuning(), counter.evaluation()
    at_least = {"training": least.training(), "tuning": least.tuning(), **least.evaluation()}
    if isinstance(counter, Stepping) and isinstance(least, Stepping):
        at_least["tuning"] = least.tuning(counter.fewest_steps())
        tuning = counter.tuning(least.tuning_steps())
    forwards = sum(evaluation.values(), training + tuning).image_forwards
    return Plan(
        training=training,
        tuning=tuning,
        evaluation=evaluation,
        least=at_least,
        steps=counter.tuning_steps(),
        chosen=chosen,
        parameters=job.parameters,
        batch=batch,
        device=device,
        memory=memory(job, counter.rows(), counter.differentiated or job.model.steer is not None),
        expected_s=expected_s(job, forwards),
        expected_at_least_s=expected_s(job, sum(at_least.values(), Cost()).image_forwards),
        inexact=counter.inexact(),
        warnings=tuple((warnings.of_lambda_search if job.tilts else warnings.of_ascent)(job)),
    )


def _searching(job: Job, estimator: object, batch: int, *, most: bool) -> Searching:
    rule = job.model.guidance.options
    own = {name: value for name, value in vars(rule).items() if isinstance(value, (int, float, list))}
    at = [{n: v[i] if isinstance(v, list) else v for n, v in own.items()} for i in range(job.steps)]
    guided = [abs(rule.effective_weight(now, i, job.steps) - 1) > ROUNDING for i, now in enumerate(at)]
    return Searching(job, guided, batch, most=most)


def batch_of(job: Job, device: str) -> int:
    """Images a network call: as the job says, or by the device."""
    if job.model.batch != "auto":
        return int(job.model.batch)
    return BATCH_ON_GPU if device.startswith("cuda") else BATCH_ON_CPU


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"
