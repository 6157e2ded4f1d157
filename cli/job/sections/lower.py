"""`lower`: what the process generates at a value of the hyperparameters, where that is a problem of its own."""

from __future__ import annotations

from typing import Any, Literal, cast

from genbo.bilevel.lower.denoising import Denoising
from genbo.bilevel.lower.guided import Guided
from genbo.bilevel.protocols import LowerSolver
from genbo.cli.job import catalog, forms
from genbo.cli.job.kind import Kind
from genbo.cli.job.reader import Reader, without
from genbo.cli.job.section import Entry, Level, Section
from genbo.cli.job.sections.reward import RewardJob, documents, read_rewards, written_rewards
from genbo.cli.job.yaml_nodes import Node, below

MISSING = "missing; say what the samples are tuned for at each lambda, like reward: {kind: aesthetic}"


class LowerJob(Kind[LowerSolver[Any, Any]]):
    """What the sampled law is tuned for at every lambda: `reward` is maximised, lambda KL(p || p_pretrained) paid.

    Or, with no reward, how the network itself is trained.
    """

    reward: tuple[RewardJob, ...] = ()

    @property
    def tilts(self) -> bool:
        """Whether it is a law at a strength lambda, which is searched for."""
        return self.options.traits.finds == "law"

    @property
    def trains(self) -> bool:
        """Whether it trains the network that is sampled."""
        return self.options.traits.finds == "network"

    @property
    def training(self) -> Denoising | None:
        """Its options, where it trains the network."""
        return cast("Denoising", self.options) if self.trains else None


class LowerSection(Section[LowerJob]):
    key = "lower"
    optional = True

    def read(self, reader: Reader) -> LowerJob | None:
        """`{kind: reweight, reward: ..., <options>}`."""
        node = reader.at("lower")
        if node is None or node.value is None:
            return None
        if not reader.mapping(node, "kind: reweight, reward: {kind: aesthetic}", empty=False):
            return None
        bare, reward = without(node, "reward")
        kind = reader.kind(bare, "lower", "a lower level", also=("reward",))
        if trains(node):
            if reward is not None:
                message = "a lower level that trains takes data and no reward; write it as the job's reward"
                reader.note(reward, message)
            return LowerJob.model_construct(**kind.__dict__, reward=()) if kind else None
        if reward is None:
            reader.note(node, MISSING, where=below(node.where, "reward"))
        found = read_rewards(reader, reward)
        return LowerJob.model_construct(**kind.__dict__, reward=found) if kind and found else None

    def described(self) -> Entry:
        """With a reward of its own, or, of one that trains the network on data, without."""
        own = {"reward": (written_rewards(), ...)}
        kinds = catalog.kinds("lower")
        alone = [kind for kind in kinds if catalog.options_of("lower", kind).traits.finds == "network"]
        mappings = [forms.kind("lower", kind, {} if kind in alone else own) for kind in kinds]
        return forms.one_of([Literal[tuple(alone)], *mappings]) | None, None

    def written(self, value: LowerJob | None, level: Level) -> Any:
        if value is None:
            return None
        climbs = isinstance(value.options, Guided) and value.options.target is None
        unused = ("target", "passes") if climbs else ()  # as jobs were written before there was a target
        own = {key: entry for key, entry in value.document("lower").items() if key not in unused}
        return {**own, **({"reward": documents(value.reward)} if value.reward else {})}


def trains(lower: Node) -> bool:
    """Whether this names a lower level that trains the network, right or wrong in its options."""
    kind = lower.value.get("kind") if isinstance(lower.value, dict) else lower
    name = kind.value if kind is not None else None
    return name in catalog.kinds("lower") and catalog.options_of("lower", str(name)).traits.finds == "network"


LOWER = LowerSection()
