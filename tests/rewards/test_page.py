"""docs/rewards.md says what the files say."""

from __future__ import annotations

import re
from dataclasses import fields
from importlib import import_module
from inspect import getdoc
from pathlib import Path

import pytest

from tests.rooms.conftest import files, options_class

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


ROWS = {
    kind for row in PAGE.splitlines() if row.startswith("| `") for kind in re.findall(r"`(\w+)`", row.split("|")[1])
}


def test_every_row_is_of_a_reward():
    assert set(files("reward")) >= ROWS


@pytest.mark.parametrize("kind", files("reward"))
def test_a_reward_with_weights_has_a_row_that_says_under_which_licence(kind):
    """One without weights says all there is to say in its own first line."""
    weighty = {"pretrained", "features", "file"} & {field.name for field in fields(options_class("reward", kind))}
    assert kind in ROWS or not weighty, f"docs/rewards.md: give `{kind}` a row, with the licence of its weights"


@pytest.mark.parametrize(("kind", "block"), [("hps", 0), ("image_reward", 1), ("external", 2)])
def test_the_code_is_that_of_the_file(kind, block):
    said = getdoc(import_module(f"genbo.rewards.{kind}"))
    assert said is not None
    assert " ".join(BLOCKS[block].split()) in " ".join(said.split())


def test_what_it_says_of_a_reward_of_ones_own_works(tmp_path):
    import hashlib

    import torch

    from genbo.rewards.external import External

    (tmp_path / "my_reward.py").write_text(BLOCKS[2])
    sha256 = hashlib.sha256(BLOCKS[2].encode()).hexdigest()
    reward = External(str(tmp_path / "my_reward.py"), sha256=sha256).open()
    assert reward(torch.full((2, 3, 4, 4), 0.25), ["a", "b"]).tolist() == [0.25, 0.25]
