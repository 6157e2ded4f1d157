"""docs/schedules.md names what the code has, and its table of best times is what the code finds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from genbo.bilevel.training.penalty import TRUSTED
from genbo.schedules.cosine import Cosine
from genbo.schedules.linear import Linear
from genbo.schedules.piecewise import Piecewise
from genbo.schedules.schedule import LINE, schedule_of
from tests.bilevel.test_noise_schedule import best, spread

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "schedules.md").read_text(encoding="utf-8")


def test_every_symbol_is_where_the_table_says():
    rows = re.findall(r"^\| ([^|]*) \| `(\w+)` \| [^|]+ \| `([\w/]+\.py)` \| \((\d+)\) \|$", PAGE, re.MULTILINE)
    assert len(rows) >= 14
    tags = re.findall(r"\\tag\{(\d+)\}", PAGE)
    assert tags == [str(n + 1) for n in range(len(tags))], "equations are numbered in order"
    for symbol, name, file, equation in rows:
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text(encoding="utf-8")), f"{symbol}: no {name} in {file}"
        assert equation in tags
    assert set(re.findall(r"(?<![\w)])\((\d{1,2})\)", PAGE)) <= set(tags)


def test_every_file_that_the_page_names_is_there():
    names = re.findall(r"`((?:bilevel|diffusion|schedules|tests|docs)/[\w/.]*)`", PAGE)
    assert len(set(names)) >= 12
    for name in names:
        assert (ROOT / name).exists(), name


def test_the_table_of_best_times_is_what_the_code_finds():
    rows = re.findall(r"^\| −(\d+) \| ([\d,]+) \|" + r" (−?[\d.]+) \|" * 4 + "$", PAGE, re.MULTILINE)
    assert len(rows) == 9
    for row in rows:
        low, steps = -float(row[0]), int(row[1].replace(",", ""))
        written = [float(number.replace("−", "-")) for number in row[2:]]
        t = 1 - torch.arange(steps, dtype=torch.float64) / steps
        levels = [schedule_of(kind(log_snr_min=low)).log_snr(t)[0].numpy() for kind in (Cosine, Linear, Piecewise)]
        found = [1 - spread(stops[1:], 0.5, stops[0]) / 0.5 for stops in levels]
        found.append(1 - spread(best(steps, 0.5, low), 0.5, low) / 0.5)
        assert written == pytest.approx(found, abs=6e-4)


def test_numbers_on_the_page_are_those_of_the_code():
    assert LINE == 1e-4 and "A ten-thousandth of the straight line" in PAGE
    assert f"more than {TRUSTED} is" in PAGE
    assert Cosine().log_snr_min == -10 and "default −10: α² = 4.5e-5" in PAGE
