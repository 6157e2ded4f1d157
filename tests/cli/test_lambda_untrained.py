"""What a search for lambda reports of what needs no tuning: best-of-n in a world whose order statistics are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from genbo.cli.commands import tune
from tests.cli.test_regularize import JOB, report_of


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("untrained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        assert tune.run(JOB, [], quiet=True) == 0  # type: ignore[arg-type]
    return place / "run"


def test_best_of_n_is_in_the_report_and_better_than_the_tuned_lambda(done):
    """The tilt's best is -1 at a KL of 1.125; best-of-7 has -0.71 at 1.089, best-of-8 -0.689 at 1.204."""
    report = report_of(done)
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
    assert "Without tuning: best-of-n" in (done / "report.html").read_text()


def test_weighted_sums_have_the_kl_of_the_tuned_lambda(done):
    """In this world p_w is normal with variance tau / (tau + 1) and mean (1.5 + w) / (tau + 1) along r2."""
    rows = report_of(done)["search"]["weighted_sums"]
    assert len(rows) == 5 and max(row["kl"] for row in rows) == pytest.approx(min(row["kl"] for row in rows), rel=1e-3)
    for row in rows:
        mean, variance = (1.5 + row["weight"]) / (row["strength"] + 1), row["strength"] / (row["strength"] + 1)
        assert row["r2"] == pytest.approx(mean, abs=5 * row["r2_se"])
        exact = -((mean - 1.5) ** 2 + 2 * variance) / 2
        assert row["r1"] == pytest.approx(exact, abs=5 * row["r1_se"])
    assert "Tuning for a weighted sum" in (done / "report.html").read_text()
