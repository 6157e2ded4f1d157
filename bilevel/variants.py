"""Choices that a search makes beside its numbers: a problem for each combination of them.

A choice has a finite number of values, each a word: which sampler, which guidance rule, how many steps. A `Problem` is
a value, so each combination is a problem of its own, with the same hyperparameters phi and the same meter. All of them
are held against the teachers, and against the levels, of the problem at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from genbo.bilevel.problem import Problem

Words = Mapping[str, str]


@dataclass(frozen=True)
class Variants:
    """Problems by the words of every choice.

    Attributes:
        start: the problem at the start.
        choices: the words of each choice by its name, at least two.
        first: the word of each choice at the start.
        make: words -> the problem of that combination.
    """

    start: Problem
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    first: Words = field(default_factory=dict)
    make: Callable[[Words], Problem] | None = None

    def at(self, words: Words) -> Problem:
        """The problem of this combination."""
        if self.make is None or dict(words) == dict(self.first):
            return self.start
        return self.make(words)
