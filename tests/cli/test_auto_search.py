"""The search that `estimator: auto` takes in place of gradients, and the work that it is given."""

from __future__ import annotations

from pathlib import Path

from genbo.cli.job.job import read_job
from genbo.cli.plan.counts import plan


def test_auto_takes_a_search_of_equal_work_unless_the_job_says_how_to_tune(tmp_path):
    root = Path(__file__).parents[2] / "examples" / "noise-schedule-digits.yaml"
    taken, followed = read_job(root), read_job(root, ["optimizer=adam"])
    assert taken.search is not None and taken.search.kind == "gp" and followed.search is None
    assert plan(taken).tuning.image_forwards == plan(followed).tuning.image_forwards  # in larger calls
    assert "noise schedule" in plan(taken).document()["estimator_reason"] and "gp" in plan(taken).text()
    assert any("optimizer: newton" in note for note in plan(taken).warnings)
    assert read_job(taken.document()) == taken and read_job(followed.document()) == followed
    few = read_job(root, ["budget={steps: 4, samples: 32}"])  # 32 samples a candidate: too few to tell two apart
    assert few.search is None and read_job(root, ["search=tpe"]).search.kind == "tpe"  # type: ignore[union-attr]
    tree = read_job(root, ["tune.noise_schedule={family: piecewise, inner: 4}", "lower.pretrain=1"])
    assert tree.search is None  # four numbers that have no bounds


def test_with_less_work_a_search_has_as_many_candidates(tmp_path):
    from genbo.cli.plan.entrants import entrants_of

    job = read_job(Path(__file__).parents[2] / "examples" / "noise-schedule-digits.yaml")
    own, rival = entrants_of(job, ["gp"], tmp_path, share=0.25).each
    assert (own.job.budget.steps, own.job.budget.samples) == (16, 96)
    assert (rival.job.budget.steps, rival.job.budget.samples) == (16, 96)
