"""A section of the report is two files and nothing else: those of CONTRIBUTING.md, in a copy of the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from genbo.cli.report import html
from genbo.diffusion.kinds import class_of, kinds
from tests.rooms.house import ROOT, house_with
from tests.rooms.test_one_file_each import CONTRIBUTING, FILES, run

TEMPLATES = dict(re.findall(r"```jinja\n\{# (\S+\.j2) #\}\n(.*?)```", CONTRIBUTING, re.DOTALL))
OLD_RUN = ROOT / "tests" / "cli" / "old_runs" / "guidance"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a stored run, in a house with the section of CONTRIBUTING.md."""
    folder = tmp_path_factory.mktemp("sections")
    added = {path: text for path, text in {**FILES, **TEMPLATES}.items() if "/report/" in path}
    assert sorted(Path(path).suffix for path in added) == [".j2", ".py"]
    output = folder / "report.html"
    run(house_with(folder / "house", added), "-m", "genbo", "report", str(OLD_RUN), "--output", str(output))
    return output.read_text(encoding="utf-8")


def test_a_section_is_two_files_and_comes_before_the_trust(page):
    assert page.count("<h2>Every held-out prompt</h2>") == 1
    assert page.index("Every held-out prompt") < page.index("How far to trust it")


@pytest.mark.parametrize("kind", kinds(html.SECTIONS))
def test_every_section_has_its_template_and_an_order_of_its_own(kind):
    assert (ROOT / "cli" / "report" / "sections" / f"{kind}.html.j2").is_file()
    orders = [class_of(html.SECTIONS, name).order for name in kinds(html.SECTIONS)]
    assert orders.count(class_of(html.SECTIONS, kind).order) == 1
