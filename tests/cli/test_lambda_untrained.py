"""What a search for lambda reports of what needs no tuning: best-of-n in a world whose order statistics are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from genbo.cli.commands import tune
from tests.cli.test_regularize import JOB, report_of


def test_best_of_n_is_in_the_report_and_better_than_the_tuned_lambda(searched_lambda):
    """The tilt's best is -1 at a KL of 1.125; best-of-7 has -0.71 at 1.089, best-of-8 -0.689 at 1.204."""
    report = report_of(searched_lambda)
    found = report["search"]["best_of_n"]
    assert [point["n"] for point in found["points"]][-1] == 64 and found["samples"] == 1024
    eight = next(point for point in found["points"] if point["n"] == 8)
    assert eight["kl"] == pytest.approx(1.2044, abs=1e-4) and eight["kl_se"] == 0
    assert abs(eight["r1"] + 0.689) < 4 * eight["r1_se"]
    against = found["against"]
    assert against["r1"]["verdict"] == "better" and against["r1"]["interval"][0] > 0
    assert against["lam"] == report["search"]["optimum"]["lam"] and against["kl"] <= 1.3
    sentence = f"Best-of-{against['n']} by linear, which needs no tuning, has a higher quadratic than"
    assert sentence in report["headline"] and any(sentence in remark["text"] for remark in report["trust"])
    assert "Without tuning: best-of-n" in (searched_lambda / "report.html").read_text()


def test_weighted_sums_have_the_kl_of_the_tuned_lambda(searched_lambda):
    """In this world p_w is normal with variance tau / (tau + 1) and mean (1.5 + w) / (tau + 1) along r2."""
    rows = report_of(searched_lambda)["search"]["weighted_sums"]
    assert len(rows) == 5 and max(row["kl"] for row in rows) == pytest.approx(min(row["kl"] for row in rows), rel=1e-3)
    for row in rows:
        mean, variance = (1.5 + row["weight"]) / (row["strength"] + 1), row["strength"] / (row["strength"] + 1)
        assert row["r2"] == pytest.approx(mean, abs=5 * row["r2_se"])
        exact = -((mean - 1.5) ** 2 + 2 * variance) / 2
        assert row["r1"] == pytest.approx(exact, abs=5 * row["r1_se"])
    assert "Tuning for a weighted sum" in (searched_lambda / "report.html").read_text()


def with_keep(at_least: float | str, kind: str = "reweight") -> dict[str, Any]:
    """r1 rises for ever as lambda falls; the kept reward is -((1 / lambda - 0.5)^2 + 2) / 2."""
    lower = {"kind": kind, "reward": {"kind": "linear", "direction": [1.0, 0.0]}}
    keep = {"kind": "quadratic", "target": [0.5, 0.0], "scale": 0.5, "at_least": at_least}
    drawn = {"samples": 2048} if kind == "reweight" else {}
    return {**JOB, "reward": {"kind": "linear", "direction": [1.0, 1.0]}, "lower": {**lower, **drawn}, "keep": [keep]}


def test_a_kept_reward_gives_the_best_lambda_and_is_checked_on_held_out_samples(workplace):
    assert tune.run(with_keep(-1.5), [], quiet=True) == 0  # type: ignore[arg-type]
    report = report_of(Path("run"))
    best, kept = report["search"]["optimum"], report["keep"]["quadratic"]
    assert best["kind"] == "constrained" and best["interval"][0] < 2 / 3 < best["interval"][1]
    assert kept["at_least"] == -1.5 and abs(kept["gap"]) < 0.15 and not kept["broken"]
    assert any(remark["text"].startswith("Quadratic is kept down to lambda = ") for remark in report["trust"])
    assert "keep ≥" in (Path("run") / "report.html").read_text()


def test_on_paper_a_kept_reward_is_kept_exactly(workplace):
    """At the start, 3, it is -1.01389; 0.5 less than that at lambda = 1 / (0.5 + sqrt(1.02778))."""
    assert tune.run(with_keep("start - 0.5", "closed_form"), [], quiet=True) == 0  # type: ignore[arg-type]
    report = report_of(Path("run"))
    kept = report["keep"]["quadratic"]
    start = -((1 / 3 - 0.5) ** 2 + 2) / 2
    lam = 1 / (0.5 + math.sqrt(-2 * (start - 0.5) - 2))
    assert report["phi"]["regularization"]["tuned"] == pytest.approx(lam, rel=1e-9)
    assert kept["at_least"] == pytest.approx(start - 0.5) and kept["gap"] == pytest.approx(0, abs=1e-9)


def test_a_level_out_of_reach_is_named_and_broken(workplace):
    assert tune.run(with_keep(-0.5), [], quiet=True) == 0  # type: ignore[arg-type]
    report = report_of(Path("run"))
    assert report["search"]["optimum"]["kind"] == "infeasible" and report["keep"]["quadratic"]["broken"]
    assert "but quadratic fell below its level" in report["headline"]
