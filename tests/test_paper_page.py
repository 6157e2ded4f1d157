"""docs/paper.md names files that are there, and options that a job can have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from genbo.cli.job import catalog

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
ROOMS = ("estimators", "optimizers", "lower")


def paths_in(text: str) -> list[str]:
    """What stands in code and looks like a file of this repository."""
    return re.findall(r"`([\w/-]+/[\w.-]+\.(?:py|yaml|md))`", text)


def kinds_in(text: str) -> list[str]:
    return re.findall(r"`(\{kind: [^`]*\})`", text)


@pytest.mark.parametrize("path", sorted(set(paths_in(PAGE))))
def test_every_file_that_is_named_is_there(path):
    assert (ROOT / path).is_file()


def test_a_file_that_is_gone_is_found():
    assert paths_in("`bilevel/loop.py`, `nowhere/at_all.py` and `kid`") == ["bilevel/loop.py", "nowhere/at_all.py"]
    assert not (ROOT / "nowhere/at_all.py").exists()
    assert len(set(paths_in(PAGE))) > 30


@pytest.mark.parametrize("written", sorted(set(kinds_in(PAGE))))
def test_every_option_that_is_named_can_be_set(written):
    options = dict(YAML(typ="safe").load(written))
    kind = options.pop("kind")
    (room,) = [room for room in ROOMS if kind in catalog.kinds(room)]
    made = catalog.options_of(room, kind)(**options)
    assert {name: getattr(made, name) for name in options} == options


@pytest.mark.parametrize("number", range(1, 7))
def test_every_algorithm_has_a_row(number):
    rows = [row for row in PAGE.splitlines() if row.startswith(f"| Alg. {number},")]
    assert len(rows) == 1 and paths_in(rows[0])


def test_every_estimator_of_the_room_has_a_place():
    """Two are not in the paper at all: they follow samples exactly, where the reward has a gradient."""
    named = {Path(path).stem for path in paths_in(PAGE) if path.startswith("bilevel/estimators/")}
    assert set(catalog.kinds("estimators")) - named == {"auto", "forward_mode", "reverse_mode"}
