"""What every file of every room promises: one frozen dataclass of its name, a sentence, no heavy import."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from dataclasses import asdict, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest
from pydantic import TypeAdapter

from tests.rooms.conftest import ROOMS, example_of, files, options_class, required

# Keys that genbo itself reads beside a part's options.
TAKEN = {
    "reward": {"weight", "at_least"},
    "lower_solver": {"reward", "also"},
    "searcher": {"common"},
    "model": {"sampler", "guidance", "batch"},
}
HEAVY = ("torch", "diffusers", "transformers", "open_clip", "numpy", "safetensors", "PIL", "torchvision")


def test_every_room_has_files():
    assert all(files(room) for room in ROOMS)


def test_a_file_is_one_frozen_dataclass_of_its_name(component):
    room, kind = component
    cls = options_class(room, kind)
    assert is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert cls.__module__ == f"{ROOMS[room]}.{kind}"


def test_the_first_line_of_a_file_is_its_help(component):
    room, kind = component
    help_line = (import_module(f"{ROOMS[room]}.{kind}").__doc__ or "").partition("\n")[0]
    assert help_line.endswith((".", ":")), f"the first line is no sentence: {help_line!r}"
    assert 20 <= len(help_line) <= 120 and help_line[0].isupper()


def test_options_have_defaults_or_words(component):
    room, kind = component
    cls = options_class(room, kind)
    words = f"{inspect.getdoc(import_module(cls.__module__))} {cls.__doc__}"
    assert [name for name in required(cls) if f"`{name}`" not in words] == []


def test_options_are_annotated_by_what_is_there_without_torch(component):
    room, kind = component
    cls = options_class(room, kind)
    hints = get_type_hints(cls, include_extras=True)
    assert {f.name for f in fields(cls)} <= set(hints)


def test_no_option_has_the_name_of_a_key_beside_them(component):
    room, kind = component
    own = {f.name for f in fields(options_class(room, kind))}
    assert own & {"kind", *TAKEN.get(room, ())} == set(), "a job cannot set these; genbo reads them itself"


def test_options_survive_a_file(component, example):
    room, kind = component
    options = example(options_class(room, kind))
    written = json.dumps(asdict(options))
    assert TypeAdapter(type(options)).validate_json(written) == options


def test_what_opens_files_says_its_mistakes_first(component, example):
    room, kind = component
    if room not in ("model", "reward"):
        pytest.skip("opens no files")
    options = example(options_class(room, kind))
    mistakes = options.mistakes()
    assert isinstance(mistakes, list) and all(isinstance(m, str) for m in mistakes)
    assert callable(options.open)
    if room == "reward":
        assert mistakes == []


def test_nothing_heavy_is_imported_to_read_options():
    """All files of all rooms, their defaults and their mistakes, with the heavy libraries blocked."""
    every = [(ROOMS[room], kind, example_of(options_class(room, kind))) for room in ROOMS for kind in files(room)]
    program = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise AssertionError(name + " was imported")
sys.meta_path.insert(0, Blocked())
from genbo.diffusion.kinds import class_of
for room, kind, example in {every}:
    options = class_of(room, kind)(**example)
    if hasattr(options, "mistakes") and "tunables" not in room:
        options.mistakes()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def test_torch_is_imported_where_it_is_used(component):
    """The same by reading: at the top of a file, heavy imports stand under TYPE_CHECKING alone."""
    room, kind = component
    tree = ast.parse(Path(import_module(f"{ROOMS[room]}.{kind}").__file__ or "").read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [a.name for node in top if isinstance(node, ast.Import) for a in node.names]
    names += [node.module or "" for node in top if isinstance(node, ast.ImportFrom)]
    assert [name for name in names if name.partition(".")[0] in HEAVY] == []
