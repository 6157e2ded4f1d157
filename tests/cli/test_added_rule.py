"""A guidance rule whose name has an underscore, added as one file: checked, tuned, exported and loaded again."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import genbo
from genbo.cli.job import catalog
from genbo.cli.job.job import JobMistakes, read_job
from genbo.diffusion import guidance
from genbo.diffusion.kinds import class_name, class_of, kind_of, kinds
from genbo.diffusion.refused import Refused

ROOM = "genbo.diffusion.guidance"
RULE = '''\
"""Guidance along half a cosine: the weight of `weight` at the first step, and 1 + (weight - 1) `rest` at the last."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Interval

from genbo.diffusion.numbers import N
from genbo.diffusion.traits import GuidanceTraits

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.diffusion.prediction import Prediction


@dataclass(frozen=True)
class CosineRamp:
    traits: ClassVar[GuidanceTraits] = GuidanceTraits()

    weight: float | list[float] = 5.0
    rest: Annotated[float, Interval(ge=0, le=1)] = 0.5

    def effective_weight(self, options: Mapping[str, N], step: int, steps: int) -> N:
        level = (1 + math.cos(math.pi * step / max(steps - 1, 1))) / 2
        return 1 + (options["weight"] - 1) * (options["rest"] + (1 - options["rest"]) * level)

    def combine(
        self,
        cond: Tensor,
        uncond: Tensor,
        options: Mapping[str, Tensor],
        predict: Prediction,
        state: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        return uncond.lerp(cond, options["weight"]), state
'''


@pytest.fixture
def cosine_ramp(tmp_path: Path) -> Iterator[None]:
    """The file as if it stood in its room, before one there of the same name."""
    places = list(guidance.__path__)
    folder = tmp_path / "guidance"
    folder.mkdir()
    (folder / "cosine_ramp.py").write_text(RULE, encoding="utf-8")
    guidance.__path__ = [str(folder), *places]
    _forget()
    yield
    guidance.__path__ = places
    _forget()


def _forget() -> None:
    sys.modules.pop(f"{ROOM}.cosine_ramp", None)
    class_of.cache_clear()
    catalog.model_of.cache_clear()


def test_a_kind_and_its_class(cosine_ramp):
    assert class_name("cosine_ramp") == "CosineRamp"
    assert "cosine_ramp" in kinds(ROOM)
    made = class_of(ROOM, "cosine_ramp")(weight=3.0)
    assert (type(made).__name__, kind_of(made)) == ("CosineRamp", "cosine_ramp")
    assert catalog.options_of("guidance", "cosine_ramp") is type(made)


@pytest.mark.parametrize("name", ["_damage", "nothing", "plain.Plain", "..samplers.ddim", ""])
def test_no_other_file_is_imported_by_a_name(name):
    with pytest.raises(KeyError):
        class_of("genbo.diffusion.models" if name == "_damage" else ROOM, name)


def test_from_the_job_to_the_tuned_folder_and_back(cosine_ramp, tiny_sd, tiny_clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rule = {"kind": "cosine_ramp", "weight": 4.0, "rest": 0.25}
    job = {
        "version": 1,
        "model": {
            "pretrained": str(tiny_sd),
            "device": "cpu",
            "sampler": {"kind": "ddim", "steps": 3},
            "guidance": rule,
        },
        "prompts": ["a red apple", "a dog"],
        "tune": {"guidance": {"start": 4.0, "bounds": [1, 8]}, "guidance.rest": {"start": 0.25}},
        "reward": {"kind": "clip", "pretrained": str(tiny_clip)},
        "budget": {"steps": 2, "samples": 2},
        "evaluate": {"samples": 4},
        "output": "run",
    }
    read = read_job(job)
    assert read.document()["model"]["guidance"] == rule
    assert read_job(read.document()) == read
    result = genbo.tune(job).result()
    written = json.loads((result.folder / "tuned" / "genbo.json").read_text(encoding="utf-8"))["guidance"]
    assert written["kind"] == "cosine_ramp"
    assert written["weight"] != 4.0 and written["rest"] != 0.25, "both were tuned"
    process = genbo.load(result.folder, device="cpu").process
    assert kind_of(process.rule) == "cosine_ramp"
    assert process.options["weight"].tolist() == [[written["weight"]] * 3]
    assert process.options["rest"].tolist() == [[written["rest"]] * 3]
    first, last = (process.rule.effective_weight(written, step, 3) for step in (0, 2))
    assert (first, last) == pytest.approx((written["weight"], 1 + (written["weight"] - 1) * written["rest"]))
    file = result.folder / "tuned" / "genbo.json"
    file.write_text(file.read_text(encoding="utf-8").replace("cosine_ramp", "cosine_rump"), encoding="utf-8")
    with pytest.raises(Refused, match=r"unknown guidance kind 'cosine_rump'; choose from apg, cosine_ramp, interval"):
        genbo.load(result.folder, device="cpu")


def test_a_misspelt_rule_is_named(cosine_ramp):
    with pytest.raises(JobMistakes, match="did you mean 'cosine_ramp'"):
        read_job({"version": 1, "model": {"guidance": {"kind": "cosine-ramp"}}, "tune": {}, "reward": "linear"})
