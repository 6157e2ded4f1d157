"""docs/architecture.md: its tree is that of the repository, and its arrows are those that the linter enforces."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from textwrap import shorten

import pytest

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docs" / "architecture.md"
PAGE = FILE.read_text(encoding="utf-8")
START, END = "<!-- tree -->\n\n```text\n", "```\n\n<!-- end of tree -->"
COLUMN, WIDTH = 30, 120
IN_FULL = re.compile(r"(cli|bilevel)(/[^/]+)?|cli/job/sections")  # folders whose files have a line each
ROOMS = {"bilevel/estimators", "bilevel/lower", "bilevel/optimizers", "bilevel/searchers", "bilevel/tunables"}
DATA = {"bundled", "old_runs"}  # folders whose own folders have no line
WRITE = "write it with `GENBO_WRITE_PAGE=1 pytest tests/test_architecture.py`, then shorten the new lines"


def tracked() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\n") if name and (ROOT / name).exists()]


def places(names: list[str]) -> list[str]:
    """What has a line: every folder, as `name/`, and the files of some; in a folder, its folders come first."""
    paths = [PurePosixPath(name) for name in names if not name.startswith(".")]
    folders = {f"{folder}/" for path in paths for folder in path.parents if str(folder) != "."}
    files = {str(path) for path in paths if IN_FULL.fullmatch(str(path.parent)) and path.name != "__init__.py"}
    return sorted((place for place in folders | files if not DATA & set(parts(place)[:-1])), key=order)


def order(place: str) -> list[tuple[bool, str]]:
    *above, name = parts(place)
    return [*((False, part) for part in above), (not place.endswith("/"), name)]


def parts(place: str) -> tuple[str, ...]:
    return PurePosixPath(place).parts


def line(place: str, words: str) -> str:
    """`  name/   words`, by the depth of its folder."""
    depth, name = len(parts(place)) - 1, parts(place)[-1] + ("/" if place.endswith("/") else "")
    return f"{'  ' * depth + name:{COLUMN - 1}} {shorten(words, WIDTH - COLUMN, placeholder=' ...')}".rstrip()


def written() -> dict[str, str]:
    """Of the page: place -> words, in the order of its lines."""
    _, _, rest = PAGE.partition(START)
    found: dict[str, str] = {}
    above: list[str] = []
    for row in rest.partition(END)[0].splitlines():
        name, _, words = row.strip().partition(" ")
        depth = (len(row) - len(row.lstrip())) // 2
        above = [*above[:depth], name]
        found["".join(above)] = words.strip()
    return found


def first_sentence(place: str) -> str:
    """Of the docstring of a file, or of a folder's `__init__.py`; empty where there is none."""
    file = ROOT / place / "__init__.py" if place.endswith("/") else ROOT / place
    if file.suffix != ".py" or not file.exists():
        return ""
    doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return doc.partition("\n")[0].partition(". ")[0].removesuffix(".")


def tree(words: Mapping[str, str]) -> Iterator[str]:
    for place in places(tracked()):
        yield line(place, words.get(place) or first_sentence(place))


def test_the_tree_is_that_of_the_repository():
    """But for a file that was added to a room, which need not have a line: its own first line is its help."""
    if os.environ.get("GENBO_WRITE_PAGE"):
        before, rest = PAGE.split(START)
        _, after = rest.split(END)
        FILE.write_text(before + START + "\n".join(tree(written())) + "\n" + END + after, encoding="utf-8")
        return
    has = list(written())
    wanted = [place for place in places(tracked()) if place in has or str(PurePosixPath(place).parent) not in ROOMS]
    missing = "\n".join(line(place, first_sentence(place)) for place in wanted if place not in has)
    gone = "\n".join(line(place, "") for place in has if place not in wanted)
    assert not missing, f"docs/architecture.md has no line for\n{missing}\n{WRITE}"
    assert not gone, f"docs/architecture.md has a line for what is not there:\n{gone}\n{WRITE}"
    assert has == wanted, f"the lines of docs/architecture.md are not in order; {WRITE}"


def test_every_line_says_what_the_place_is_for():
    empty = [place for place, words in written().items() if len(words) < 10]
    assert empty == [], f"docs/architecture.md: say in a few words what {', '.join(empty)} is for"


def contracts() -> dict[str, list[str]]:
    """Of pyproject.toml: what holds the layers -> the layers, highest first."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layered = [contract for contract in tool["contracts"] if contract["type"] == "layers"]
    return {contract.get("containers", ["genbo"])[0]: contract["layers"] for contract in layered}


@pytest.mark.parametrize("of", ["genbo", "genbo.cli", "genbo.bilevel"])
def test_the_arrows_are_those_of_the_linter(of):
    layers = [layer.replace("genbo.", "") for layer in contracts()[of]]
    (drawn,) = re.findall(rf"```text\n{re.escape(of)}: (.*?)```", PAGE, flags=re.DOTALL)
    assert [layer.strip() for layer in drawn.split("->")] == layers, f"the arrows of {of} are {' -> '.join(layers)}"


def test_every_file_that_the_page_names_is_there():
    names = re.findall(r"`((?:api|bilevel|cli|diffusion|docs|rewards|schedules|tests)/[\w/.]*)`", PAGE)
    assert len(names) >= 12
    assert [name for name in names if not (ROOT / name).exists()] == []
