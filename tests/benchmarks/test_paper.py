"""The paper's tables: what was run is kept and gone on with, intervals are Student's, and both commands end."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import t as student

from benchmarks import paper_lambda, paper_schedule
from benchmarks.paper_table import COST, SEARCHERS, Cells, Searching, Table, best, estimate, spent, together
from genbo.bilevel.trials import Candidate, Space
from genbo.diffusion.process import Meter

ROOT = Path(__file__).parents[2]
FREE = {"seconds": 0.0, "work": 0, "peak_gib": 0.0}


# -- cells -------------------------------------------------------------------------------------------------------------


def test_a_cell_is_run_once(tmp_path):
    ran: list[int] = []

    def run() -> dict[str, Any]:
        ran.append(1)
        return {"fid": 2.5}

    for _ in range(2):
        cells = Cells(tmp_path, {"bank": 4})
        assert cells.once("row", run, method="grid", seed=0)["fid"] == 2.5
    assert len(ran) == 1 and len((tmp_path / "cells.jsonl").read_text().splitlines()) == 2


def test_half_a_line_is_dropped_and_run_again(tmp_path):
    cells = Cells(tmp_path, {})
    cells.once("row", lambda: {"fid": 1.0}, method="grid", seed=0)
    whole = cells.file.read_text()
    cells.file.write_text(whole + whole.splitlines()[-1][:20])
    again = Cells(tmp_path, {})
    assert again.known == cells.known and cells.file.read_text() == whole


def test_a_table_of_other_sizes_is_not_mixed(tmp_path):
    Cells(tmp_path, {"bank": 4})
    with pytest.raises(SystemExit, match="holds a table of other sizes; give another folder with OUT="):
        Cells(tmp_path, {"bank": 5})


# -- searches ----------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def searching(cells: Cells, method: str, after: int = 99) -> list[dict[str, Any]]:
    """Six trials of a parabola, killed after some."""
    asked: list[Candidate] = []

    def score(candidate: Candidate) -> float:
        asked.append(candidate)
        if len(asked) > after:
            raise Killed
        return -((candidate.shares[0] - 0.3) ** 2) if len(asked) != 2 else math.nan

    return Searching(cells, 0, method, Space(("x",)), 6, Meter(), score).trials()


@pytest.mark.parametrize("method", ["grid", "random", "tpe"])
def test_a_search_goes_on_with_the_trials_that_it_would_have_had(method, tmp_path):
    whole = searching(Cells(tmp_path / "whole", {}), method)
    with pytest.raises(Killed):
        searching(Cells(tmp_path / "cut", {}), method, after=3)
    cut = searching(Cells(tmp_path / "cut", {}), method)
    assert [cell["shares"] for cell in cut[:4]] == [cell["shares"] for cell in whole[:4]]
    assert len(cut) == len(whole) == 6
    assert whole[1]["value"] is None, "a trial that failed is kept as one"


def test_the_best_trial_is_the_highest_finite_one():
    trials = [{"shares": [0.1], "value": -1.0}, {"shares": [0.2], "value": None}, {"shares": [0.3], "value": -0.5}]
    assert best(trials) == Candidate((0.3,))
    with pytest.raises(SystemExit, match="no trial"):
        best(trials[1:2])


def test_the_grid_of_lambda_is_that_of_the_paper(tmp_path):
    found = Searching(Cells(tmp_path, {}), 0, "grid", paper_lambda.SPACE, 5, Meter(), lambda c: 0.0).trials()
    assert sorted(cell["shares"][0] for cell in found) == [0, 0.25, 0.5, 0.75, 1]


# -- cost --------------------------------------------------------------------------------------------------------------


def test_work_counts_a_backward_row_twice_and_memory_is_that_of_the_block():
    import numpy as np

    meter = Meter(image_forwards=5)
    with spent(meter) as small:
        meter.image_forwards += 3
        meter.image_backwards += 2
    with spent(meter) as large:
        block = np.ones(2**27, dtype=np.uint8)
    del block
    with spent(meter) as after:
        pass
    assert small["work"] == 7 and large["work"] == 0
    assert large["peak_gib"] - small["peak_gib"] > 0.1 and large["peak_gib"] - after["peak_gib"] > 0.1
    assert together([small, large])["work"] == 7 and together([small, large])["peak_gib"] == large["peak_gib"]
    assert together([]) == {"seconds": 0, "work": 0, "peak_gib": 0.0}


# -- the table ---------------------------------------------------------------------------------------------------------


def test_intervals_are_students():
    values = [1.0, 2.0, 4.5]
    low, high = student.interval(0.95, 2, loc=2.5, scale=(sum((v - 2.5) ** 2 for v in values) / 2 / 3) ** 0.5)
    mean, half = estimate(values)
    assert half is not None and (mean - half, mean + half) == pytest.approx((low, high))
    assert estimate([3.0]) == (3.0, None)


def test_the_table_compares_seed_by_seed(tmp_path):
    cells = Cells(tmp_path, {"seeds": 2})
    for seed, (mine, its) in enumerate([(1.0, 0.75), (5.0, 4.5)]):
        cells.keep({"kind": "row", "method": "bilevel", "seed": seed, "r1": mine, **FREE})
        cells.keep({"kind": "row", "method": "grid", "seed": seed, "r1": its, **FREE})
    cells.keep({"kind": "row", "method": "grid", "seed": 2, "r1": 100.0, **FREE})
    methods = {"grid": "grid", "random": "random", "bilevel": "bilevel"}
    table = Table("A title", "A note.", methods, {"r1": "CLIP", "lam": "λ", **COST}, against="bilevel", gap="r1")
    text = table.write(tmp_path, cells)
    found = json.loads((tmp_path / "table.json").read_text())
    assert found["table"]["grid"]["gap"]["mean"] == pytest.approx(0.375), "of the seeds that both have"
    assert "gap" not in found["table"]["bilevel"] and "random" not in found["table"]
    lines = text.splitlines()
    assert lines[4] == "| method | CLIP | λ | seconds | network rows | peak memory, GiB | bilevel − it, CLIP |"
    assert lines[6].startswith("| grid | 35 ± ") and lines[7].startswith("| bilevel | 3 ± ")
    cells.sizes["seeds"] = 3
    assert "| bilevel (2 of 3 seeds so far) | 3 ± " in table.markdown(cells)
    assert lines[6].startswith("| grid | 35 ± ") and "| — | 0 | 0 | 0 | 0.4 ± 1.6 |" in lines[6]


def test_methods_are_those_that_searches_have():
    for script in (paper_lambda, paper_schedule):
        assert set(SEARCHERS) < set(script.METHODS) and {"bilevel", "fixed"} < set(script.METHODS)


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ([], ""),
        (["QUICK=1"], " --quick"),
        (["QUICK="], ""),
        (["MODEL=/sd", "CLIP=/clip", "OUT=/x"], " --model /sd --clip /clip --out /x"),
    ],
)
def test_make_passes_on_what_it_is_given(asked, given):
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
    done = subprocess.run(  # as from a shell: the tests may run under a make of their own
        ["make", "--no-print-directory", "--dry-run", "--assume-old=.venv/installed", "paper-lambda", *asked],
        cwd=ROOT,
        env=plain,
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    last = done.stdout.splitlines()[-1].split("benchmarks.paper_lambda")[1]
    assert last.split() == given.split()


# -- the commands ------------------------------------------------------------------------------------------------------


def checked(folder: Path, methods: set[str], columns: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "table.json").read_text())
    assert set(found["table"]) == methods
    for row in found["rows"]:
        assert all(math.isfinite(row[key]) for key in columns if key in row)
        assert columns <= set(row) | {"lam"}
    return found


@pytest.mark.slow
def test_the_table_of_lambda(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    paper_lambda.main(["--quick", "--out", str(tmp_path)])
    found = checked(tmp_path, set(paper_lambda.METHODS) - {"tpe"}, set(paper_lambda.COLUMNS))
    assert len(found["trials"]) == 2 + 3 + 3
    cells = (tmp_path / "cells.jsonl").read_text()
    paper_lambda.main(["--quick", "--out", str(tmp_path)])
    assert (tmp_path / "cells.jsonl").read_text() == cells, "everything was there already"
    by_name = {row["method"]: row for row in found["rows"]}
    assert by_name["grid"]["work"] > by_name["bilevel"]["work"] > by_name["pretrained"]["work"] == 0
    assert capsys.readouterr().out.count("# KL strength") == 2


@pytest.mark.slow
def test_the_table_of_lambda_on_a_model_of_ones_own(tmp_path, monkeypatch, tiny_sd):
    monkeypatch.chdir(ROOT)
    clip = ROOT / "rewards" / "bundled" / "emoji-clip"
    options = ["--quick", "--model", str(tiny_sd), "--clip", str(clip), "--out", str(tmp_path)]
    paper_lambda.main([*options, "--methods", "pretrained", "fixed", "grid", "bilevel"])
    checked(tmp_path, {"pretrained", "fixed", "grid", "bilevel"}, set(paper_lambda.COLUMNS))


@pytest.mark.slow
def test_the_table_of_schedules(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    paper_schedule.main(["--quick", "--out", str(tmp_path)])
    found = checked(tmp_path, set(paper_schedule.METHODS) - {"tpe"}, set(paper_schedule.COLUMNS))
    assert len(found["trials"]) == 3 * 12
    by_name = {row["method"]: row for row in found["rows"]}
    assert by_name["grid"]["work"] > by_name["fixed"]["work"] == 0
