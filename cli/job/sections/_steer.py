"""`model.steer`: rewards that samples climb on their way, how strongly, and by which rule."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, SkipValidation

from genbo.cli.job import forms
from genbo.cli.job.kind import FROZEN, Kind
from genbo.cli.job.reader import Reader
from genbo.cli.job.sections.reward import RewardJob, documents, read_rewards, written_rewards
from genbo.cli.job.validation import shown
from genbo.cli.job.yaml_nodes import Node, below
from genbo.diffusion.steer import SteeringRule
from genbo.diffusion.steer_document import why_no_climbing

KEYS = ("reward", "strength", "rule")
EXAMPLE = "reward: {kind: aesthetic, pretrained: emoji-style}, strength: 3.0"


class SteerJob(BaseModel):
    """`strength` is a number, or a list of one a step: 1 / lambda for the rule `tilt`."""

    model_config = FROZEN

    reward: tuple[RewardJob, ...]
    strength: float | list[float]
    rule: SkipValidation[Kind[SteeringRule]]

    def document(self) -> dict[str, Any]:
        """As a job writes it."""
        return {"reward": documents(self.reward), "strength": self.strength, "rule": self.rule.document("steering")}


def read_steer(reader: Reader, node: Node | None, steps: int | None) -> SteerJob | None:
    """None where nothing is written, or with its mistakes noted."""
    if node is None or node.value is None or not reader.mapping(node, EXAMPLE, empty=False):
        return None
    assert isinstance(node.value, dict)
    reader.keys(node, KEYS)
    named = list(reader.names)
    rewards = read_rewards(reader, node.value.get("reward"))
    reader.names[:] = named  # they are neither tuned for nor kept
    for key in ("reward", "strength"):
        if key not in node.value:
            reader.note(node, f"missing; write {{{EXAMPLE}}}", where=below(node.where, key))
    rule = reader.kind(
        node.value.get("rule") or Node("tilt", node.place, below(node.where, "rule")), "steering", "a rule"
    )
    strength = _strength(reader, node.value.get("strength"), steps)
    for number, reward in enumerate(rewards or ()):
        if reason := why_no_climbing(reward.options):
            place = node.value["reward"]
            reader.note(place.find([number]) if isinstance(place.value, list) else place, reason)
            rewards = None
            break
    if rewards is None or rule is None or strength is None:
        return None
    return SteerJob(reward=rewards, strength=strength, rule=rule)


def described() -> Any:
    """Its type, for the schema."""
    return forms.mapping(
        "Steer",
        reward=(written_rewards(), ...),
        strength=(float | list[float], ...),
        rule=(forms.room("steering"), "tilt"),
    )


def _strength(reader: Reader, node: Node | None, steps: int | None) -> float | list[float] | None:
    if node is None:
        return None
    value = node.plain()
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(_is_number(number) for number in listed):
        reader.note(node, f"must be a number, or a list of one a step, not {shown(node)}; for a tilt it is 1 / lambda")
        return None
    if isinstance(value, list) and steps is not None and len(value) != steps:
        reader.note(node, f"{len(value)} numbers for {steps} steps; give one number, or one a step")
        return None
    return [float(number) for number in value] if isinstance(value, list) else float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
