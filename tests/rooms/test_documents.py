"""What CONTRIBUTING.md tells you to write works as it stands; docs/method.md names what the code has."""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from genbo.bilevel.estimators.reverse_mode import ReverseMode
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.kinds import class_name
from genbo.diffusion.models.mixture import Mixture
from genbo.diffusion.process import process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Seed, batch_of
from tests.rooms import test_estimators, test_rewards, test_tunables
from tests.rooms.conftest import ROOMS

ROOT = Path(__file__).parents[2]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", CONTRIBUTING, re.DOTALL))
METHOD = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")


@pytest.fixture
def added(tmp_path: Path) -> Iterator[Any]:
    """The class of one example, imported as if its file stood in its room, before one there of the same name."""
    undo = []

    def put(path: str) -> type[Any]:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(BLOCKS[path], encoding="utf-8")
        room = import_module("genbo." + ".".join(Path(path).parts[:-1]))
        places = list(room.__path__)
        name = f"{room.__name__}.{file.stem}"
        room.__path__ = [str(file.parent), *places]
        undo.append((room, places, name, sys.modules.pop(name, None)))
        found: type[Any] = getattr(import_module(name), class_name(file.stem))
        return found

    yield put
    for room, places, name, own in undo:
        room.__path__ = places
        sys.modules.pop(name, None)
        if own is not None:
            sys.modules[name] = own


def run_all(contract: ModuleType, **given: Any) -> int:
    """Every test of a room's contract that wants nothing but what is given; returns how many."""
    ran = 0
    for name, test in vars(contract).items():
        wanted = inspect.signature(test).parameters if name.startswith("test_") and callable(test) else None
        if wanted and set(wanted) <= set(given):
            test(**{key: given[key] for key in wanted})
            ran += 1
    return ran


def test_there_is_an_example_of_each_that_the_page_promises():
    assert sorted(path.rpartition("/")[0] for path in BLOCKS) == [
        "bilevel/estimators",
        "bilevel/lower",
        "bilevel/pruners",
        "bilevel/searchers",
        "bilevel/tunables",
        "cli/report/sections",
        "diffusion/guidance",
        "diffusion/samplers",
        "rewards",
    ]
    rooms = {f"genbo.{Path(path).parent}".replace("/", ".") for path in BLOCKS}
    assert rooms - set(ROOMS.values()) == {"genbo.cli.report.sections", "genbo.bilevel.searchers"} - set(ROOMS.values())


def test_the_reward_of_the_page_keeps_the_contract(added):
    cls = added("rewards/redness.py")
    images = torch.rand(5, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    assert run_all(test_rewards, reward=cls().open(), images=images, reward_class=cls) >= 5
    red = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert cls().open()(red, [""]).item() == 1
    assert cls().open()(1 - red, [""]).item() == -1


def test_the_tunable_of_the_page_keeps_the_contract(added):
    bump = added("bilevel/tunables/bump.py")(start=5.0)
    assert run_all(test_tunables, tunables=[bump, replace(bump, bounds=(1.0, 6.0))]) >= 6
    assert bump.name == "bump"
    table = bump.over_steps(torch.tensor([[5.0]], dtype=torch.float64), 4)[0]
    assert table.tolist() == pytest.approx([1 + 4 * math.sin(math.pi * x / 8) for x in (1, 3, 5, 7)])


def test_the_estimator_of_the_page_keeps_the_contract(added):
    cls = added("bilevel/estimators/richardson.py")
    assert run_all(test_estimators, estimator=cls()) >= 4
    for test in (
        test_estimators.test_it_costs_what_it_says,
        test_estimators.test_it_is_the_slope_of_the_same_samples,
    ):
        test(cls(), "scalar")


def test_the_estimator_of_the_page_has_the_bias_that_it_claims(added):
    cls = added("bilevel/estimators/richardson.py")
    exact = test_estimators.estimate(test_estimators.problem(), ReverseMode()).grad
    wrong = [
        (test_estimators.estimate(test_estimators.problem(), cls(h=h)).grad - exact).abs().item() for h in (0.1, 0.05)
    ]
    assert 3.5 < math.log2(wrong[0] / wrong[1]) < 4.5


def test_the_guidance_rule_of_the_page_rises_from_1_to_its_weight(added):
    rule = added("diffusion/guidance/cosine_ramp.py")(weight=5.0)
    weights = [rule.effective_weight({"weight": 5.0}, i, 1000) for i in range(1000)]
    assert weights == sorted(weights)
    assert weights[0] == pytest.approx(1, abs=1e-4) and weights[-1] == pytest.approx(5, abs=1e-4)
    assert sum(weights) / 1000 == pytest.approx(3)  # a cosine has no mean


def test_the_sampler_of_the_page_has_the_order_that_it_claims(added):
    """Twice the steps, a quarter of the distance from where fine steps end; DDIM's half, its first term alone."""
    batch, model = batch_of(("east", "north"), 8, Seed(0)), Mixture(log_snr_max=4.0).open()

    def end(sampler: Any) -> torch.Tensor:
        return sample(process_of(model, sampler, Plain(weight=1.0)), batch)

    taylor = added("diffusion/samplers/taylor.py")
    exact = end(taylor(steps=4096))
    wrong = {cls: [(end(cls(steps=n)) - exact).norm().item() for n in (64, 128)] for cls in (taylor, Ddim)}
    orders = {cls.__name__: math.log2(coarse / fine) for cls, (coarse, fine) in wrong.items()}
    assert 1.7 < orders["Taylor"] < 2.4 and 0.8 < orders["Ddim"] < 1.2, orders


def test_every_symbol_is_where_the_table_says():
    rows = re.findall(r"^\| ([^|]+) \| `(\w+)` \| [^|]+ \| `([\w/]+\.py)` \| \((\d+)\) \|$", METHOD, re.MULTILINE)
    assert len(rows) >= 18
    tags = re.findall(r"\\tag\{(\d+)\}", METHOD)
    assert tags == [str(n + 1) for n in range(len(tags))], "equations are numbered in order"
    for symbol, name, file, equation in rows:
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text(encoding="utf-8")), f"{symbol}: no {name} in {file}"
        assert equation in tags
    cited = set(re.findall(r"\((\d{1,2})\)", METHOD))
    assert cited <= set(tags) | {"1"}


def test_every_file_that_a_page_names_is_there():
    for text in (METHOD, CONTRIBUTING):
        for name in re.findall(r"`((?:bilevel|diffusion|rewards|schedules|tests|docs)/[\w/.]*)`", text):
            assert (ROOT / name).exists(), name
