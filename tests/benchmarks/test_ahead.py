"""The tables against search: what an answer is compared with, the true curve, and methods at equal work."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks import ahead
from benchmarks.ahead_curve import Curve
from genbo.cli.plan.counts import plan
from genbo.cli.plan.entrants import work_of


def curve_of(top: float) -> Curve:
    """A parabola in log phi with a dent of noise at every second point."""
    phi = [20 / (1 + math.exp(-(-4.6 + 0.2 * k))) for k in range(47)]
    value = [-((math.log(p / top)) ** 2) / 10 + (-1) ** k * 0.001 for k, p in enumerate(phi)]
    return Curve((0.0, 20.0), phi, value, [0.001] * len(phi))


def test_the_curve_finds_the_top_between_its_points_through_the_noise():
    found, value = curve_of(2.25).best()
    assert found == pytest.approx(2.25, abs=0.05) and value == pytest.approx(0.0, abs=5e-4)


def test_answers_are_judged_by_the_curve(tmp_path):
    place = tmp_path / "curve.json"
    place.write_text(json.dumps(curve_of(2.25).document()))
    line = {"problem": "guidance", "method": "grid", "share": 1, "seed": 0, "phi": [2.25], "start": [1.0]}
    at_top, beside = ahead.by_curve([line, {**line, "phi": [4.5]}], place)
    assert at_top["best"] - at_top["gain"] == pytest.approx(0.0, abs=1e-3)
    (without,) = ahead.by_curve([{key: line[key] for key in line if key != "start"}], place)
    assert without["gain"] == at_top["gain"]
    assert at_top["gain"] - beside["gain"] == pytest.approx(math.log(2) ** 2 / 10, abs=1e-3)


def test_where_every_seed_has_a_network_answers_are_compared_within_it():
    common = {"share": 1.0, "steps": 1, "samples": 1, "elapsed_s": 1.0}
    lines = [
        {**common, "problem": "digits", "method": name, "seed": seed, "gain": gain}
        for name, seed, gain in (("a", 0, 1.0), ("a", 1, 0.5), ("b", 0, 0.9), ("b", 1, 0.5))
    ]
    rows = [row.split(" | ") for row in ahead.rows(lines)][2:]
    assert [float(row[7]) for row in rows] == [0.0, pytest.approx(0.05)]


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_what_auto_takes_has_the_work_of_the_gradients(share):
    methods = ahead.methods_of(ahead.PROBLEMS["digits"])
    auto, adam, gp = (ahead.job_of("digits", methods[name], share, 0, "cpu") for name in ("auto", "adam", "gp"))
    assert auto.search is not None and adam.search is None and auto.budget == gp.budget
    work = [work_of(plan(job).tuning) for job in (auto, adam)]
    assert work[0] == pytest.approx(work[1], rel=0.02)


def test_a_grid_within_other_bounds_has_its_points_elsewhere():
    methods = ahead.methods_of(ahead.PROBLEMS["guidance"])
    for top in ahead.RANGES:
        job = ahead.job_of("guidance", methods[f"grid, to {top}"], 1.0, 0, "cpu")
        assert job.tune["guidance"].bounds == (0.0, top) and job.search is not None and job.budget.steps == 12
