"""A steer as plain values, and back: rewards with their options and the hashes of their files, strength and rule.

    {"reward": [{"kind": "aesthetic", "pretrained": "emoji-style", ..., "weight": 1.0, "files": {name: sha256}}],
     "strength": 1.3, "rule": {"kind": "tilt", "most": 0.3}}

Without `files` this is `model.steer` of a job. A reward is made again from its kind and options; what it reads must be
what it was judged with. One that runs the user's own code is made only of code that the caller allows, by its hash.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genbo.diffusion.file_hashes import files_of, sha256_of
from genbo.diffusion.kinds import declared, kind_of
from genbo.diffusion.refused import Refused
from genbo.diffusion.steer import Climbed, Steer, SteeringRule
from genbo.diffusion.stored_parts import part_from
from genbo.rewards._traits import RewardTraits, RunsCode

if TYPE_CHECKING:
    import torch

    from genbo.diffusion.process import Process

REWARDS, RULES = "genbo.rewards", "genbo.diffusion.steering"
WHERE = "genbo.json: steer"
ALLOWED = ("sha256",)  # of code that the command line has allowed: no file may say so


def steer_settings(steer: Steer) -> dict[str, Any]:
    """Everything about a steer but the hashes of files, as plain values; that of the first member."""
    strength = steer.strength[0].tolist()
    return {
        "reward": [_reward_document(one) for one in steer.rewards],
        "strength": strength[0] if len(set(strength)) == 1 else strength,
        "rule": {"kind": kind_of(steer.rule), **asdict(steer.rule)},  # type: ignore[call-overload]
    }


def steer_document(steer: Steer) -> dict[str, Any]:
    """The same with the sha256 of every file that a reward was read from."""
    found = steer_settings(steer)
    for document, one in zip(found["reward"], steer.rewards, strict=True):
        document["files"] = files_of(one.reward)
    return found


def _reward_document(one: Climbed) -> dict[str, Any]:
    if one.options is None:
        raise ValueError("a process that is steered by a bare function cannot be stored; steer it by a reward")
    options = {name: value for name, value in asdict(one.options).items() if name not in ALLOWED}
    return {"kind": kind_of(one.options), **options, "weight": one.weight}


# -- back --------------------------------------------------------------------------------------------------------------


def steered_by(process: Process, document: object, allow_code: Sequence[str | Path] = ()) -> Process:
    """The process, steered as a tuned folder says. Raises `Refused` with a sentence for whatever is wrong with it."""
    from genbo.diffusion.process import Whole

    if isinstance(process.model, Whole):
        raise Refused(
            f"{WHERE}: a black box draws by its own call, which cannot be steered; take steer out of the file"
        )
    written = document if isinstance(document, Mapping) else {}
    rule: SteeringRule = part_from(RULES, written.get("rule"), f"{WHERE}.rule")
    if wrong := rule.mistakes():
        raise Refused(f"{WHERE}.rule: {wrong[0]}")
    strength = written.get("strength")
    listed: list[Any] = strength if isinstance(strength, list) else [strength] * process.steps
    if len(listed) != process.steps or not all(_is_number(number) for number in listed):
        raise Refused(f"{WHERE}.strength must be a number, or {process.steps}, one a step")
    rewards = written.get("reward")
    if not isinstance(rewards, list) or not rewards:
        raise Refused(f"{WHERE}.reward must be a list of rewards, each with its kind")
    allowed = _allowed(allow_code)
    made = [_reward_from(one, process.model.device, allowed) for one in rewards]
    return process.steered(made, listed, rule)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _allowed(paths: Sequence[str | Path]) -> dict[Path, str]:
    """The real path of each file of code and the sha256 of what it holds now."""
    found = {}
    for written in paths:
        path = Path(written).expanduser()
        if not path.is_file():
            raise Refused(f"allow_code: there is no file {written}; correct the path")
        found[path.resolve()] = sha256_of(path)
    return found


def _reward_from(document: object, device: str | torch.device, allowed: Mapping[Path, str]) -> Climbed:
    where = f"{WHERE}.reward"
    written = dict(document) if isinstance(document, Mapping) else {}
    weight, files = written.get("weight", 1.0), written.get("files", {})
    if not _is_number(weight) or not isinstance(files, Mapping):
        raise Refused(f"{where}: weight must be a number and files a mapping; write what the run has written")
    options = part_from(REWARDS, {k: v for k, v in written.items() if k not in ALLOWED}, where)
    if reason := why_no_climbing(options):
        raise Refused(f"{where}: {reason}")
    options = _consented(options, allowed, where)
    if wrong := options.mistakes():
        raise Refused(f"{where}: {'; '.join(wrong)}")
    reward = options.open(device)
    _check_files(files, files_of(reward), where, str(written["kind"]))
    return Climbed(float(weight), reward, options)


def why_no_climbing(options: Any) -> str | None:
    """None, or a sentence: why these options of a reward give nothing that a sample can climb on its way."""
    traits, kind = declared(RewardTraits, options), kind_of(options)
    if not traits.differentiable:
        return f"{kind} has no gradient, and steering climbs one; take a differentiable reward"
    if traits.of_sets:
        return f"{kind} scores all samples together, and steering needs a score of each; take another reward"
    if traits.lesson:
        return f"{kind} compares with samples that are not drawn yet; take a reward of the image alone"
    return None


def _consented(options: Any, allowed: Mapping[Path, str], where: str) -> Any:
    """The options; those that run code get the hash of what was allowed, or are refused."""
    if not isinstance(options, RunsCode):
        return options
    digest = allowed.get(options.path.resolve())
    if digest is None:
        raise Refused(
            f"{where}: {options.path} is code, which a tuned folder may not run by itself; read it, then allow it: "
            f"genbo.load(folder, allow_code=[{str(options.path)!r}]), or --allow-code {options.path}"
        )
    return replace(options, sha256=digest)  # type: ignore[type-var]


def _check_files(stored: Mapping[str, Any], found: Mapping[str, str], where: str, kind: str) -> None:
    if missing := sorted(stored.keys() - found.keys()):
        raise Refused(f"{where}: the {kind} that was judged had a file {missing[0]}, which is not there; put it back")
    if changed := sorted(name for name in found if found[name] != stored.get(name)):
        raise Refused(
            f"{where}: {changed[0]} of {kind} is not the file that was judged, since its sha256 is another; put the "
            "old file back, or tune again"
        )
