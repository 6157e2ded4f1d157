"""docs/regularization.md names what the code has, and its worked example is what the code finds."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "regularization.md").read_text(encoding="utf-8")


def test_every_symbol_is_where_the_table_says():
    rows = re.findall(r"^\| ([^|]+) \| `(\w+)` \| [^|]+ \| `([\w/]+\.py)` \| \((\d+)\) \|$", PAGE, re.MULTILINE)
    assert len(rows) >= 14
    tags = re.findall(r"\\tag\{(\d+)\}", PAGE)
    assert tags == [str(n + 1) for n in range(len(tags))], "equations are numbered in order"
    for symbol, name, file, equation in rows:
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text(encoding="utf-8")), f"{symbol}: no {name} in {file}"
        assert equation in tags
    assert set(re.findall(r"(?<![\w)])\((\d{1,2})\)", PAGE)) <= {*tags, "1"}


def test_every_file_that_the_page_names_is_there():
    names = re.findall(r"`((?:bilevel|diffusion|rewards|docs)/[\w/.]*)`", PAGE)
    assert len(set(names)) >= 12
    for name in names:
        assert (ROOT / name).exists(), name


def test_thresholds_on_the_page_are_those_of_the_code():
    from genbo.bilevel.measured import MANY_PROMPTS
    from genbo.bilevel.regularization.curve import POINTS, WIDER
    from genbo.bilevel.regularization.proposal import SHARES
    from genbo.bilevel.regularization.tilted import Fit

    edge = {"reliable": (0.01, 0.5, 2), "doubtful": (0.05, 0.7, 1)}
    for verdict, (weight, khat, times) in edge.items():
        least = times * 10 ** (1 / (1 - khat))
        assert Fit(1e3, weight, khat, least + 0.01).verdict == verdict
        row = rf"\*{verdict}\* \| ≤ {weight:g} \| ≤ {khat:g} \| ≥ {'2 ' if times == 2 else ''}N"
        assert re.search(row, PAGE)
    assert f"from {MANY_PROMPTS} prompts" in PAGE.lower() and f"read at {POINTS} λ" in PAGE
    assert f"shares ({', '.join(map(str, SHARES))})" in PAGE and WIDER["doubtful"] == 2.0
