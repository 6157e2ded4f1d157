"""Markdown is readable as plain text: lines of at most 120 characters, and links that lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("docs", "benchmarks", "rewards")
PAGES = [
    ROOT / "CONTRIBUTING.md",
    ROOT / "README.md",
    *sorted(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md")),
]
WIDTH = 120


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def too_long(text: str) -> list[int]:
    """Numbers of the lines that can be broken and are not: a row of a table cannot."""
    rows = enumerate(text.splitlines(), start=1)
    return [n for n, row in rows if len(row) > WIDTH and not row.startswith("|")]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_are_short(page):
    found = too_long(page.read_text(encoding="utf-8"))
    assert not found, f"{name_of(page)}: break lines {found} at {WIDTH} characters"


def test_a_long_line_is_found_and_a_row_of_a_table_is_not():
    assert too_long("a" * 121 + "\n" + "b" * 120 + "\n| " + "c" * 130 + " |") == [1]


@cache
def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them: lower case, no punctuation, dashes for spaces."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> Iterator[str]:
    """Links to files and headings of this repository that are not there."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        file = (page.parent / name) if name else page
        if not link.startswith("http") and (not file.exists() or (anchor and anchor not in anchors(file))):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    assert list(broken(page)) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A title, here\n[a](#a-title-here) [b](#other) [c](none.md) [d](https://example.org)")
    assert list(broken(page)) == ["#other", "none.md"]
