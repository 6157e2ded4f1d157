"""A tree of YAML values -> a Job, in one pass that finds every mistake."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from genbo.cli.job import catalog
from genbo.cli.job.compatibility import misfits
from genbo.cli.job.job import (
    MAX_STEPS,
    NO_PROMPT,
    BudgetJob,
    EvaluateJob,
    Job,
    JudgeJob,
    KeepJob,
    Kind,
    LowerJob,
    ModelJob,
    Prompts,
    RewardJob,
    WeightsJob,
)
from genbo.cli.job.prompt_files import rows_of
from genbo.cli.job.user_code import Allowed, not_allowed, sealed
from genbo.cli.job.validation import sentences_of, shown
from genbo.cli.job.yaml_nodes import Mistake, Node, Place, below, node_of_value
from genbo.diffusion.data import DIGITS, Data

MAX_PROMPTS_BYTES = 16_000_000
MAX_PROMPT = 2_000  # characters
TOP = (
    "version",
    "model",
    "prompts",
    "tune",
    "reward",
    "data",
    "lower",
    "finetune",
    "keep",
    "estimator",
    "optimizer",
    "budget",
    "evaluate",
    "seed",
    "output",
)
REQUIRED = ("version", "prompts", "tune", "reward")
PATHS = (
    "pretrained",
    "clip",
    "lora",
    "like",
    "file",
    "features",
    "weights",
)  # may name a file, a folder, or a bundled thing
OPTIONAL = ("data", "lower", "finetune")
ROUNDS = 4  # of a search for lambda, where the job does not say
T = TypeVar("T", bound=BaseModel)


class Reading:
    """One pass over a tree. Each part gives its value, or None with its mistakes noted: all are found."""

    def __init__(self, base: Path, mistakes: list[Mistake], code: Allowed | None = None) -> None:
        self.base, self.mistakes, self.code = base, mistakes, code or {}
        self.rule: Kind | None = None  # what of the model is known where another part of it is wrong
        self.steps: int | None = None
        self.names: list[str] = []  # of rewards that are tuned for or kept

    def note(self, node: Node, message: str, *, place: Place | None = None, where: str | None = None) -> None:
        self.mistakes.append(node.mistake(message, place, where))

    def job(self, root: Node) -> Job | None:
        if not isinstance(root.value, dict) or not root.value:
            said = "this job is empty" if not root.value else "a job is a mapping of keys to values"
            self.note(root, f"{said}; `genbo init` prints one to begin with")
            return None
        if not self._version(root):
            return None
        at = root.value.get
        model, data = self.model(at("model") or Node({}, root.place, "model")), self.data(at("data"))
        told = self._told(model, data)
        prompted = told is None and (model is not None or self._is_prompted(at("model")))
        self._keys(root, TOP, [key for key in REQUIRED if key != "prompts" or prompted])
        lower = self.lower(at("lower"))
        usual = "bisection" if lower and lower.options.traits.walks else "adam"
        parts = {
            "model": model,
            "data": data,
            "prompt_list": self.prompts(at("prompts")) if at("prompts") else told,
            "tune": self.tune(at("tune")),
            "reward": self.rewards(at("reward")),
            "lower": lower,
            "finetune": self.finetune(at("finetune"), lower, model),
            "keep": self.keep(at("keep")),
            "estimator": self.kind(
                at("estimator") or Node("auto", root.place, "estimator"), "estimators", "an estimator"
            ),
            "optimizer": self.kind(
                at("optimizer") or Node(usual, root.place, "optimizer"), "optimizers", "an optimizer"
            ),
            "budget": self.budget(at("budget") or Node({}, root.place, "budget"), at("lower")),
            "evaluate": self.evaluate(at("evaluate") or Node({}, root.place, "evaluate")),
            "seed": self.seed(at("seed")),
            "output": self.output(at("output"), at("tune")),
        }
        if model is not None:
            self._known_prompts(model, root, parts)
            self._read_prompts(model, root, parts)
        if self.mistakes or any(part is None for name, part in parts.items() if name not in OPTIONAL):
            return None
        job = Job.model_construct(None, **parts)
        for node, message, where in misfits(job, root):
            self.note(node, message, where=where)
        return None if self.mistakes else job

    # -- parts --------------------------------------------------------------------------------------------

    def data(self, node: Node | None) -> Data | None:
        """A path, or a mapping of a path and how to read it."""
        if node is None or node.value is None:
            return None
        if isinstance(node.value, str):
            node = Node({"path": node}, node.place, node.where)
        values = self.validated(catalog.nested(Data), node)
        if values is None:
            return None
        found: Data = catalog.made(Data, values)
        if found.path != DIGITS:
            found = replace(found, path=resolved(f"./{found.path}" if _is_plain(found.path) else found.path, self.base))
        wrong = found.mistakes() if found.path.isprintable() else ["data: a path cannot hold control characters"]
        for text in wrong:
            self.note(node, text.removeprefix("data: "))
        return None if wrong else found

    @staticmethod
    def _is_prompted(node: Node | None) -> bool:
        """Whether a model with a mistake in it is one that is told prompts, as far as its kind says."""
        value = node.value if node else None
        kind = value.get("kind") if isinstance(value, dict) else None
        name = kind.value if kind else value if isinstance(value, str) else "diffusers"
        known = isinstance(name, str) and name in catalog.kinds("models")
        return known and not hasattr(catalog.options_of("models", str(name)), "learns")

    @staticmethod
    def _told(model: ModelJob | None, data: Data | None) -> Prompts | None:
        """The prompts of a network that takes none, or whose own data have its classes; None for any other."""
        if model is not None and getattr(model.options, "told_nothing", False):
            return Prompts(texts=NO_PROMPT)
        if model is None or not hasattr(model.options, "learns"):
            return None
        names = data.classes if data and getattr(model.options, "classes", False) else ()
        return Prompts(texts=names or NO_PROMPT)

    def _version(self, root: Node) -> bool:
        assert isinstance(root.value, dict)
        node = root.value.get("version")
        if node is not None and (node.value != 1 or isinstance(node.value, bool)):
            self.note(node, f"this genbo reads version 1, not {shown(node)}; write version: 1, or update genbo")
            return False
        return True

    def _keys(self, node: Node, known: Sequence[str], required: Sequence[str]) -> None:
        assert isinstance(node.value, dict)
        for key in node.value:
            if key not in known:
                self.unknown_key(node, key, known)
        for key in required:
            if key not in node.value:
                self.note(node, _MISSING.get(key, f"missing; add {key}:"), where=below(node.where, key))

    def unknown_key(self, node: Node, key: str, known: Sequence[str]) -> None:
        message = f"unknown key{catalog.nearest(key, known) or '; this kind takes no options, so delete it'}"
        self.note(node, message, place=node.keys.get(key), where=below(node.where, key))

    def model(self, node: Node) -> ModelJob | None:
        if not self._mapping(node, "pretrained: emoji"):
            return None
        assert isinstance(node.value, dict)
        own = {key: node.value.get(key) for key in ("sampler", "guidance", "batch")}
        rest = Node(
            {key: child for key, child in node.value.items() if key not in own},
            node.place,
            node.where,
            node.keys,
        )
        kind = self.kind(rest, "models", "a model", also=tuple(own))
        sampler = self.kind(
            own["sampler"] or Node("ddim", node.place, below(node.where, "sampler")), "samplers", "a sampler"
        )
        if sampler and sampler.options.steps > MAX_STEPS:
            at = own["sampler"] or node
            self.note(at.find(["steps"]), f"at most {MAX_STEPS} steps, not {sampler.options.steps}; use fewer")
            sampler = None
        usual = 1.0 if kind and hasattr(kind.options, "learns") else 5.0
        guidance = self.guidance(own["guidance"] or Node(usual, node.place, below(node.where, "guidance")), sampler)
        batch = self.batch(own["batch"])
        self.rule, self.steps = guidance, sampler.options.steps if sampler else None
        if kind is None or sampler is None or guidance is None or batch is None:
            return None
        return ModelJob.model_construct(**kind.__dict__, sampler=sampler, guidance=guidance, batch=batch)

    def guidance(self, node: Node, sampler: Kind | None) -> Kind | None:
        """A number, a list of one a step, or a rule with its options."""
        if not isinstance(node.value, (dict, str)):
            node = Node({"weight": node}, node.place, node.where)
        rule = self.kind(node, "guidance", "a guidance rule")
        weight = getattr(rule.options, "weight", None) if rule else None
        if rule and sampler and isinstance(weight, list) and len(weight) != sampler.options.steps:
            steps = sampler.options.steps
            self.note(
                node.find(["weight"]),
                f"{len(weight)} numbers for {steps} steps; give one number, or one a step",
            )
            return None
        return rule

    def batch(self, node: Node | None) -> int | str | None:
        value = "auto" if node is None else node.value
        if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65536):
            return value
        assert node is not None
        self.note(node, f"must be auto or a whole number from 1 to 65536, not {shown(node)}; auto fits most")
        return None

    def prompts(self, node: Node | None) -> Prompts | None:
        """A list, a file with a prompt a line or a column of them, or the name of a bundled list."""
        if node is None:
            return None
        if isinstance(node.value, str):
            return self._prompts_of_name(node, node.value)
        if not isinstance(node.value, list):
            self.note(node, f"must be a list of prompts, a text file, or a bundled list, not {shown(node)}")
            return None
        if not node.value:
            self.note(node, "the list is empty; give at least one prompt")
            return None
        good = [self._prompt(item, item.value) for item in node.value]
        return Prompts(texts=tuple(map(str.strip, filter(None, good)))) if all(good) else None

    def _prompt(self, node: Node, text: object, where: str = "") -> str | None:
        if not isinstance(text, str):
            seen = shown(node) if not where else f"{text!r:.40}"
            self.note(node, f"{where}a prompt must be a text, not {seen}; put it in quotes")
        elif not text.strip():
            self.note(node, f"{where}this prompt is empty; delete it, or write what the image should show")
        elif len(text) > MAX_PROMPT:
            self.note(node, f"{where}a prompt of {len(text)} characters; use at most {MAX_PROMPT}")
        elif not set(text).isdisjoint(map(chr, range(9))):
            self.note(node, f"{where}this prompt holds a control character; delete it")
        else:
            return text
        return None

    def _prompts_of_name(self, node: Node, name: str) -> Prompts | None:
        from genbo.diffusion import bundled

        listed = bundled.prompts_file(name)
        try:
            path = listed or self.base / Path(name).expanduser()
            if not name or not path.is_file():
                known = catalog.nearest(name, bundled.prompt_lists())
                self.note(
                    node,
                    f"no file {name!r} beside the job and no bundled list of that name{known}; "
                    f"one prompt is [{name or '...'}]",
                )
                return None
            with path.open("rb") as file:
                data = file.read(MAX_PROMPTS_BYTES + 1)
            if len(data) > MAX_PROMPTS_BYTES:
                self.note(node, f"{name} is larger than {MAX_PROMPTS_BYTES // 1_000_000} MB; use fewer prompts")
                return None
            text = data.decode("utf-8-sig")
        except (OSError, ValueError, RuntimeError) as error:
            self.note(
                node,
                f"{name!r} cannot be read as text ({_reason(error)}); give a file in UTF-8, a prompt a line",
            )
            return None
        try:
            rows = rows_of(name, text)
        except ValueError as error:
            self.note(node, str(error))
            return None
        if not rows:
            self.note(node, f"{name} holds no prompts; write one a line")
            return None
        good = [self._prompt(node, row.text, f"{row.where}: ") for row in rows]
        texts = tuple(text.strip() for text in good if text is not None)
        return Prompts(texts=texts, bundled=name if listed else None) if len(texts) == len(rows) else None

    def tune(self, node: Node | None) -> dict[str, Any] | None:
        if node is None:
            return None
        if not self._mapping(node, "guidance: {start: 1.0}", empty=False):
            return None
        assert isinstance(node.value, dict)
        found = {key: self.tunable(node, key, child) for key, child in node.value.items()}
        self._effects(node, set(found))
        return found if all(value is not None for value in found.values()) else None

    def _effects(self, node: Node, keys: set[str]) -> None:
        """An option of the rule does nothing where the weight is 1, and its gradient is nothing too."""
        weight = getattr(self.rule.options, "weight", None) if self.rule else None
        if (
            weight is None
            or "guidance" in keys
            or any(w != 1 for w in (weight if isinstance(weight, list) else [weight]))
        ):
            return
        for key in sorted(key for key in keys if key.startswith("guidance.")):
            message = "has no effect where the guidance weight is 1; set model.guidance.weight, or tune guidance"
            self.note(node, message, place=node.keys.get(key), where=below(node.where, key))

    def tunable(self, parent: Node, key: str, node: Node) -> Any:
        name, _, option = key.partition(".")
        rule = self.rule
        names = catalog.kinds("tunables")
        if name not in names:
            message = f"nothing to tune is called {name!r}{catalog.nearest(name, names)}"
            return self.note(parent, message, place=parent.keys.get(key), where=node.where)
        if not self._mapping(node, _LIKE.get(name, "start: 1.0, bounds: [0, 20]")):
            return None
        of_rule = name == "guidance"  # the only one that may be an option of something else
        if option and not of_rule:
            message = f"{name} has no parts to tune; write {name}:"
            return self.note(parent, message, place=parent.keys.get(key), where=node.where)
        if of_rule and rule and not self._tunable_option(parent, key, option, node, rule):
            return None
        given = {"option": option} if option else {}
        node = self._bounded(node, option, rule)
        values = self.validated(catalog.model_of("tunables", name), node)
        if values is None:
            return None
        tunable = catalog.build("tunables", name, self._with_paths(values), **given)
        wrong = tunable.mistakes(self.steps) if self.steps else []
        self.sentences(node, wrong)
        return None if wrong or (of_rule and rule and not self._inside(tunable, node, option, rule)) else tunable

    def _tunable_option(self, parent: Node, key: str, option: str, node: Node, rule: Kind) -> bool:
        """Whether the guidance rule has the option that `guidance.<option>` names."""
        numeric = tunable_options(rule)
        if key == "guidance" or (option in numeric and option != "weight"):
            return True
        if option == "weight":
            message = "the weight's own name is guidance; write guidance: for guidance.weight:"
        else:
            others = [name for name in numeric if name != "weight"]
            way_out = (
                catalog.nearest(option, others)
                if others
                else "; choose another rule under model.guidance, or tune guidance"
            )
            message = f"the rule {rule.kind} has no number called {option!r}{way_out}"
        self.note(parent, message, place=parent.keys.get(key), where=node.where)
        return False

    def _bounded(self, node: Node, option: str, rule: Kind | None) -> Node:
        """With the option's own domain as bounds, where it is finite and the job gives none."""
        assert isinstance(node.value, dict)
        if not option or rule is None or "bounds" in node.value:
            return node
        low, high = catalog.limits(catalog.hints_of(type(rule.options))[option])
        if low is None or high is None:
            return node
        bounds = node_of_value([float(low), float(high)], node.place.source, below(node.where, "bounds"))
        return Node({**node.value, "bounds": bounds}, node.place, node.where, node.keys)

    def _inside(self, tunable: Any, node: Node, option: str, rule: Kind) -> bool:
        """Whether the bounds keep the option inside its own domain."""
        hint = catalog.hints_of(type(rule.options))[option or "weight"]
        low, high = catalog.limits(hint)
        if (low is None or tunable.bounds[0] >= low) and (high is None or tunable.bounds[1] <= high):
            return True
        domain = catalog.words(hint).removeprefix("number ")
        self.note(
            node.find(["bounds"]),
            f"{option} must be {domain}; set bounds inside that",
            where=below(node.where, "bounds"),
        )
        return False

    def rewards(self, node: Node | None) -> tuple[RewardJob, ...] | None:
        found = self._many(node, "reward", self._reward) if node is not None else None
        if found is None:
            return None
        if not found:
            assert node is not None
            self.note(node, "the list is empty; give at least one reward, like {kind: clip, pretrained: emoji-clip}")
            return None
        if not any(reward["weight"] for reward in found):
            assert node is not None
            self.note(node, "every weight is 0, so there is nothing to maximise; give one reward another weight")
            return None
        rewards = tuple(RewardJob.model_construct(**reward) for reward in named(found))
        self.names += [reward.name for reward in rewards]
        return rewards

    def lower(self, node: Node | None) -> LowerJob | None:
        """`{kind: reweight, reward: ..., <options>}`."""
        if node is None or node.value is None:
            return None
        if not self._mapping(node, "kind: reweight, reward: {kind: aesthetic}", empty=False):
            return None
        bare, reward = self._without(node, "reward")
        kind = self.kind(bare, "lower", "a lower level", also=("reward",))
        if _trains(node):
            if reward is not None:
                self.note(reward, "training takes data, and no reward of its own; write it as the job's reward")
            return LowerJob.model_construct(**kind.__dict__, reward=()) if kind else None
        if reward is None:
            self.note(node, _MISSING["lower.reward"], where=below(node.where, "reward"))
        found = self.rewards(reward)
        return LowerJob.model_construct(**kind.__dict__, reward=found) if kind and found else None

    def finetune(self, node: Node | None, lower: LowerJob | None, model: ModelJob | None) -> WeightsJob | None:
        """`none`, or options; without a word, the usual ones for a model that has weights to tune."""
        if node is None or node.value == "auto":
            tilted = lower is not None and lower.kind in ("reweight", "finetune")
            has_weights = tilted and model is not None and model.kind == "diffusers"
            same = lower.options if lower and lower.kind == "finetune" else catalog.options_of("lower", "finetune")()
            return WeightsJob(options=same) if has_weights else None
        if node.value == "none":
            return None
        if not self._mapping(node, "steps: 300"):
            return None
        bare, also = self._without(node, "also")
        kind = self._of_kind(bare, "lower", "finetune", also=("also",))
        factors = [0.1, 10.0] if also is None else also.plain()
        if not isinstance(factors, list) or not all(_is_factor(x) for x in factors):
            assert also is not None
            self.note(also, "must be a list of factors of lambda greater than 0 and other than 1, like [0.1, 10]")
            return None
        return WeightsJob(options=kind.options, also=tuple(map(float, factors))) if kind else None

    def budget(self, node: Node, lower: Node | None) -> BudgetJob | None:
        """With a lower level a step is a round of the search, and how many samples it draws stands there."""
        found = self.validated(BudgetJob, node)
        if found is None or lower is None or lower.value is None or _trains(lower):
            return found
        assert isinstance(node.value, dict)
        for key in ("samples", "pool"):
            if key in node.value:
                message = "a search for lambda draws lower.samples a prompt; set that instead, and delete this"
                self.note(node.value[key], message)
        return found if "steps" in node.value else found.model_copy(update={"steps": ROUNDS})

    def keep(self, node: Node | None) -> tuple[KeepJob, ...] | None:
        found = self._many(node, "a constraint", self._keep) if node is not None and node.value is not None else []
        if found is None:
            return None
        constraints = tuple(KeepJob.model_construct(**keep) for keep in named(found))
        self.names += [constraint.name for constraint in constraints]
        return constraints

    def _many(self, node: Node, what: str, one: Callable[[Node], dict[str, Any] | None]) -> list[dict[str, Any]] | None:
        items = node.value if isinstance(node.value, list) else [node]
        found = [one(item) for item in items]
        return [part for part in found if part is not None] if all(part is not None for part in found) else None

    def _reward(self, node: Node) -> dict[str, Any] | None:
        node, weight = self._without(node, "weight")
        kind = self.kind(node, "rewards", "a reward", also=("weight",))
        value = 1.0 if weight is None else weight.value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            assert weight is not None
            self.note(weight, f"must be a number, not {shown(weight)}; 1.0 is usual")
            return None
        return {**kind.__dict__, "weight": float(value)} if kind else None

    def _keep(self, node: Node) -> dict[str, Any] | None:
        bare, level = self._without(node, "at_least")
        kind = self.kind(bare, "rewards", "a constraint", also=("at_least",))
        if level is None:
            if isinstance(node.value, (dict, str)):
                self.note(
                    node,
                    "missing; write at_least: start, start - 0.1 or a number",
                    where=below(node.where, "at_least"),
                )
            return None
        parsed = level_of(level.value)
        if parsed is None:
            self.note(level, f"must be a number, start, or start - 0.1, not {shown(level)}")
            return None
        return {**kind.__dict__, "at_least": parsed[0], "relative_to_start": parsed[1]} if kind else None

    def _without(self, node: Node, key: str) -> tuple[Node, Node | None]:
        if not isinstance(node.value, dict):
            return node, None
        rest = {k: v for k, v in node.value.items() if k != key}
        return Node(rest, node.place, node.where, node.keys), node.value.get(key)

    def evaluate(self, node: Node) -> EvaluateJob | None:
        if not self._mapping(node, "samples: 128"):
            return None
        bare, prompts = self._without(node, "prompts")
        bare, judges = self._without(bare, "judges")
        values = self.validated(EvaluateJob, bare, also=("prompts", "judges"))
        found = self.judges(judges)
        texts = None if prompts is None or prompts.value is None else self.prompts(prompts)
        wrong = values is None or found is None or (texts is None and prompts is not None and prompts.value is not None)
        return None if wrong or values is None else values.model_copy(update={"prompts": texts, "judges": found})

    def judges(self, node: Node | None) -> tuple[JudgeJob, ...] | None:
        """One reward or a list of them, each called by its weights where these have a name."""
        found = self._many(node, "a judge", self._judge) if node is not None and node.value is not None else []
        return None if found is None else tuple(JudgeJob.model_construct(**j) for j in distinct(found, self.names))

    def _judge(self, node: Node) -> dict[str, Any] | None:
        bare, weight = self._without(node, "weight")
        if weight is not None:
            self.note(weight, "judges are not added up: each gives an opinion of its own; delete the weight")
        kind = self.kind(bare, "rewards", "a judge")
        return {**kind.__dict__, "name": called(kind)} if kind else None

    def seed(self, node: Node | None) -> int | None:
        value = 0 if node is None else node.value
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
            return value
        assert node is not None
        self.note(node, f"must be a whole number from 0 to 2^63 - 1, not {shown(node)}; 0 is usual")
        return None

    def output(self, node: Node | None, tune: Node | None) -> str | None:
        if node is None:
            keys = list(tune.value) if tune is not None and isinstance(tune.value, dict) else []
            return f"runs/{keys[0] if keys else 'tune'}"
        path = node.value
        if not isinstance(path, str) or not path.strip():
            self.note(node, f"must be a folder, not {shown(node) or 'empty'}; write one like runs/guidance")
        elif not set(path).isdisjoint(map(chr, range(32))):
            self.note(node, "a folder's name cannot hold control characters; write one like runs/guidance")
        elif (file := _file_on(Path(path).expanduser())) is not None:
            self.note(node, f"{file} is a file, and a run needs a folder; choose another name")
        else:
            return os.path.expanduser(path)
        return None

    # -- rooms --------------------------------------------------------------------------------------------

    def kind(self, node: Node, room: str, what: str, also: Sequence[str] = ()) -> Kind | None:
        """`name`, or `{kind: name, <options>}`."""
        if isinstance(node.value, str):
            node = Node({"kind": node}, node.place, node.where)
        if not isinstance(node.value, dict):
            self.note(
                node,
                f"must be {what} like {{kind: {_example(room)}}}, not {shown(node)}; there is {_kinds(room)}",
            )
            return None
        named = node.value.get("kind")
        name = named.value if named is not None else catalog.DEFAULTS.get(room)
        if name is None:
            self.note(node, f"missing; write one of {_kinds(room)}", where=below(node.where, "kind"))
            return None
        if name not in catalog.kinds(room):
            assert named is not None
            said = f"{what} is called by a name, not {shown(named)}"
            if isinstance(name, str):
                said = f"{what} called {name!r} does not exist"
            known = catalog.nearest(str(name), catalog.kinds(room))
            self.note(named, f"{said}{known}")
            return None
        return self._of_kind(node, room, str(name), also)

    def _of_kind(self, node: Node, room: str, name: str, also: Sequence[str]) -> Kind | None:
        rest, _ = self._without(node, "kind")
        values = self.validated(catalog.model_of(room, name), rest, also)
        if values is None:
            return None
        options = sealed(catalog.build(room, name, self._with_paths(values)), self.code)
        wrong = self._option_mistakes(options) or not_allowed(options)
        self.sentences(rest, wrong)
        return None if wrong else Kind(kind=name, options=options)

    def _with_paths(self, values: BaseModel) -> BaseModel:
        """With every option that is a path made absolute."""
        written = {name: getattr(values, name, None) for name in PATHS}
        found = {name: resolved(text, self.base) for name, text in written.items() if isinstance(text, str) and text}
        return values.model_copy(update=found)

    def _option_mistakes(self, options: Any) -> list[str]:
        device = getattr(options, "device", "auto")
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", str(device)):
            said = f"device: must be auto, cpu, cuda or cuda:0, not {device!r}; auto takes a GPU if there is one"
            return [said, *self._option_mistakes(replace(options, device="auto"))]
        check = getattr(options, "mistakes", None)
        try:
            return list(check()) if check else []
        except (OSError, ValueError, RuntimeError) as error:
            return [f"pretrained: cannot be looked at ({_reason(error)}); correct the path"]

    def sentences(self, node: Node, found: Sequence[str]) -> None:
        """Note `option: sentence` mistakes of an options object at the option's own place."""
        for text in found:
            option, colon, rest = text.partition(": ")
            if colon and re.fullmatch(r"\w+", option):
                at = node.find([option])
                self.note(at, rest, where=below(node.where, option))
            else:
                self.note(node, text)

    # -- models -------------------------------------------------------------------------------------------

    def _mapping(self, node: Node, example: str, *, empty: bool = True) -> bool:
        """Whether the node is a mapping, one with something in it unless it may be empty."""
        if isinstance(node.value, dict) and (node.value or empty):
            return True
        seen = "empty" if isinstance(node.value, dict) else shown(node)
        self.note(node, f"must be a mapping of options, not {seen}; write {{{example}}}")
        return False

    def validated(self, model: type[T], node: Node, also: Sequence[str] = ()) -> T | None:
        """The node as that pydantic model, or its mistakes noted."""
        if not isinstance(node.value, dict):
            self._mapping(node, f"{next(iter(model.model_fields), 'kind')}: ...")
            return None
        try:
            return model.model_validate(node.plain())
        except ValidationError as error:
            for node_at, place, where, message in sentences_of(error, model, node, also):
                self.note(node_at, message, place=place, where=where)
            return None

    # -- across keys --------------------------------------------------------------------------------------

    def _known_prompts(self, model: ModelJob, root: Node, parts: Mapping[str, Any]) -> None:
        """An exact world knows a few prompts only, and a model of classes their names and numbers."""
        known = getattr(model.options, "known_prompts", None)
        if known is None:
            return
        held_out = parts["evaluate"].prompts if parts["evaluate"] else None
        for prompts, loc in ((parts["prompt_list"], ["prompts"]), (held_out, ["evaluate", "prompts"])):
            texts = prompts.texts if prompts else ()
            for i, text in enumerate(texts):
                if text not in known:
                    what = "this model" if model.kind == "diffusers" else f"the world {model.kind}"
                    said = f"{what} does not know the prompt {text!r}"
                    self.note(root.find([*loc, i]), f"{said}{catalog.nearest(text, list(known))}")

    def _read_prompts(self, model: ModelJob, root: Node, parts: Mapping[str, Any]) -> None:
        """A model that takes no prompts needs none, but a reward may: the images are scored by them."""
        if not getattr(model.options, "told_nothing", False) or parts["prompt_list"] != Prompts(texts=NO_PROMPT):
            return
        for scored in (*(parts["reward"] or ()), *(parts["keep"] or ())):
            if getattr(scored.options, "reads_prompts", False):
                self.note(root, f"missing; {scored.name} reads prompts, though the model takes none", where="prompts")


_LIKE = {"noise_schedule": "family: cosine", "timesteps": "start: karras"}  # how to write a tunable
_MISSING = {
    "version": "missing; write version: 1",
    "prompts": "missing; give a list of prompts, a text file, or a bundled list",
    "tune": "missing; say what to tune, like tune: {guidance: {start: 1.0}}",
    "lower.reward": "missing; say what the samples are tuned for at every lambda, like reward: {kind: aesthetic}",
    "reward": "missing; say what to maximise, like reward: {kind: clip, pretrained: emoji-clip}",
}
_LEVEL = re.compile(r"start(?:\s*([-+])\s*([0-9.]+(?:[eE][-+]?[0-9]+)?))?")


def _trains(lower: Node) -> bool:
    """Whether this says a lower level that trains the network, right or wrong in its options."""
    kind = lower.value.get("kind") if isinstance(lower.value, dict) else lower
    name = kind.value if kind is not None else None
    return name in catalog.kinds("lower") and catalog.options_of("lower", str(name)).traits.finds == "network"


def _is_plain(path: str) -> bool:
    """Whether a path is neither absolute nor of the home folder."""
    return bool(path) and not path.startswith(("/", "~", "."))


def _is_factor(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf and value != 1


def level_of(value: object) -> tuple[float, bool] | None:
    """`0.3`, `start`, `start - 0.1` -> (number, whether it is relative to the start)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value), False
    match = _LEVEL.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return None
    try:
        offset = float(match[2] or 0)
    except ValueError:
        return None
    return (-offset if match[1] == "-" else offset, True) if offset < float("inf") else None


def tunable_options(rule: Kind) -> list[str]:
    """The numeric options of a guidance rule."""
    return [
        name
        for name, value in vars(rule.options).items()
        if isinstance(value, (int, float, list)) and not isinstance(value, bool)
    ]


def resolved(written: str, base: Path) -> str:
    """A `pretrained` that names a path, absolute; a bundled name, a tag or a hub id as it is."""
    from genbo.diffusion import bundled as models
    from genbo.rewards import bundled as rewards

    scheme = "local-dir:" if written.startswith("local-dir:") else ""
    name = written.removeprefix(scheme)
    bundled = models.model_folder(name) or rewards.folder(name)
    if not name or bundled or "\0" in name or name.startswith("hf-hub:"):
        return written
    try:
        path = base / Path(name).expanduser()
        is_path = bool(scheme) or name.startswith((".", "/", "~")) or path.exists()
    except (OSError, RuntimeError):
        return written
    return scheme + os.path.normpath(path) if is_path else written


def _file_on(path: Path) -> Path | None:
    """The path or the nearest existing folder above it, where that is no folder."""
    for part in (path, *path.parents):
        try:
            if part.exists():
                return None if part.is_dir() else part
        except OSError:
            return None
    return None


def named(found: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each with a `name`: its kind, numbered from its second appearance on."""
    return distinct([{**part, "name": part["kind"]} for part in found])


def distinct(found: Sequence[dict[str, Any]], taken: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """With names that differ, also from those `taken`: numbered from the second appearance on."""
    seen = dict.fromkeys(taken, 1)
    for part in found:
        name = part["name"]
        seen[name] = seen.get(name, 0) + 1
        yield {**part, "name": name if seen[name] == 1 else f"{name}-{seen[name]}"}


def called(kind: Kind) -> str:
    """A reward by the name of its weights, where they have one: two CLIPs must be told apart."""
    written = getattr(kind.options, "model", "") or getattr(kind.options, "pretrained", "")
    return written.rstrip("/").split("/")[-1].removeprefix("local-dir:") or kind.kind


def _kinds(room: str) -> str:
    return ", ".join(catalog.kinds(room))


def _example(room: str) -> str:
    return catalog.DEFAULTS.get(room) or catalog.kinds(room)[0]


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
