"""Choices under `tune`: parts of the job with a finite set of values, such as `sampler.kind: [ddim, dpmpp]`.

The name of a choice is the path of a key under `model`, or `lower.prediction`. Each combination of values is a job of
its own, a variant, whose own choices are the same; the job itself is the variant at the start. Where another kind is
chosen, it has the options of the job's own kind that it knows too, and its defaults for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import product
from typing import TYPE_CHECKING

from genbo.cli.job import catalog
from genbo.cli.job.kind import Kind

if TYPE_CHECKING:
    from genbo.bilevel.protocols import Tunable

Value = str | int | float | bool
Chosen = Mapping[str, Value]
ROOMS = {"sampler": "samplers", "guidance": "guidance"}  # parts of `model` and where their kinds are
PREDICTION = "lower.prediction"


@dataclass(frozen=True)
class Choice:
    """`start` is the job's own value, one of `values`."""

    name: str
    values: tuple[Value, ...]
    start: Value

    @property
    def words(self) -> tuple[str, ...]:
        """The values as a searcher knows them, all different."""
        return tuple(catalog.spoken(value) for value in self.values)

    def value(self, word: str) -> Value:
        """What a word stands for."""
        return self.values[self.words.index(word)]


@dataclass(frozen=True)
class TuneJob:
    """All that is tuned: numbers by tunables, and choices, each by its key."""

    tunables: dict[str, Tunable]
    choices: dict[str, Choice] = field(default_factory=dict)

    @property
    def combinations(self) -> int:
        """How many combinations of values there are; 1 without choices."""
        found = 1
        for choice in self.choices.values():
            found *= len(choice.values)
        return found

    def starts(self) -> dict[str, Value]:
        """The job's own value of each choice."""
        return {name: choice.start for name, choice in self.choices.items()}

    def every(self) -> Iterator[dict[str, Value]]:
        """All combinations, those with few differences from the start first."""
        starts = self.starts()
        lists = [choice.values for choice in self.choices.values()]
        found = [dict(zip(self.choices, values, strict=True)) for values in product(*lists)]
        yield from sorted(found, key=lambda chosen: sum(chosen[name] != starts[name] for name in chosen))


def below(chosen: Chosen, part: str) -> dict[str, Value]:
    """What was chosen of one part of the job, by option."""
    return {name.partition(".")[2]: value for name, value in chosen.items() if name.partition(".")[0] == part}


def chosen_kind(own: Kind, room: str, chosen: dict[str, Value]) -> Kind:
    """The kind that was chosen, with the options that were, and those of the own kind that it has."""
    if not chosen:
        return own
    kind = str(chosen.get("kind", own.kind))
    cls = catalog.options_of(room, kind)
    known = {f.name for f in fields(cls) if f.init}
    kept = {name: value for name, value in vars(own.options).items() if name in known}
    return Kind(kind=kind, options=cls(**{**kept, **{name: value for name, value in chosen.items() if name != "kind"}}))
