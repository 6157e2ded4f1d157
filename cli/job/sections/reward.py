"""`reward`: what is maximised, one reward or a weighted sum of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from genbo.cli.job import forms
from genbo.cli.job.kind import Kind
from genbo.cli.job.reader import Part, Reader, named, without
from genbo.cli.job.section import Entry, Level, Section
from genbo.cli.job.validation import shown
from genbo.cli.job.yaml_nodes import Node
from genbo.rewards._traits import RewardOptions


class RewardJob(Kind[RewardOptions]):
    """A part of what is maximised; `name` is its kind, numbered where a kind stands twice."""

    name: str
    weight: float = 1.0


class RewardSection(Section[tuple[RewardJob, ...]]):
    key = "reward"
    missing = "missing; say what to maximise, like reward: {kind: clip, pretrained: emoji-clip}"

    def read(self, reader: Reader) -> tuple[RewardJob, ...] | None:
        return read_rewards(reader, reader.at("reward"))

    def described(self) -> Entry:
        return written_rewards(), ...

    def written(self, value: tuple[RewardJob, ...], level: Level) -> Any:
        return documents(value)


def read_rewards(reader: Reader, node: Node | None) -> tuple[RewardJob, ...] | None:
    """One reward or a list of them, not all of weight 0; their names are kept in the reader."""
    found = reader.many(node, lambda one: _reward(reader, one)) if node is not None else None
    if node is None or found is None:
        return None
    if not found:
        reader.note(node, "the list is empty; give at least one reward, like {kind: clip, pretrained: emoji-clip}")
        return None
    if not any(reward["weight"] for reward in found):
        reader.note(node, "every weight is 0, so there is nothing to maximise; give one reward another weight")
        return None
    rewards = tuple(RewardJob.model_construct(**reward) for reward in named(found))
    reader.names += [reward.name for reward in rewards]
    return rewards


@cache
def written_rewards() -> object:
    """The type of one reward or a list of them, as they may be written."""
    return forms.one_or_many(forms.room("rewards", weight=(float, 1.0)), least=1)


def documents(rewards: Sequence[RewardJob]) -> list[dict[str, object]]:
    """Rewards with their weights in plain YAML values."""
    return [{**r.document("rewards"), "weight": r.weight} for r in rewards]


def _reward(reader: Reader, node: Node) -> Part | None:
    node, weight = without(node, "weight")
    kind = reader.kind(node, "rewards", "a reward", also=("weight",))
    value = 1.0 if weight is None else weight.value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        assert weight is not None
        reader.note(weight, f"must be a number, not {shown(weight)}; 1.0 is usual")
        return None
    return {**kind.__dict__, "weight": float(value)} if kind else None


REWARD = RewardSection()
