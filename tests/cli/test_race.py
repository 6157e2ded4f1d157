"""A job whose climb goes astray: its race in the journal, the plan, the report, and after it was left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genbo.bilevel.optimizers.adam import Adam
from genbo.cli.commands.tune import tune
from genbo.cli.job.job import read_job
from genbo.cli.plan.counts import plan

STEPS = 20


def job(place: Path, start: float = 1.0, knots: int = 2) -> dict:
    return {
        "version": 1,
        "model": {
            "kind": "mixture",
            "means": [[2.0, 0.0], [2.5, 1.5], [0.0, 2.0], [-1.0, 2.5]],
            "labels": ["east", "east", "north", "north"],
            "weights": [0.3, 0.2, 0.3, 0.2],
            "sampler": {"kind": "ddim", "steps": 4},
        },
        "prompts": ["east", "north"],
        "tune": {"guidance": {"start": start, "bounds": [0, 20], "shape": {"knots": knots}}},
        "reward": {"kind": "quadratic", "target": [1.2, 1.2]},
        "budget": {"steps": STEPS, "samples": 32},
        "evaluate": {"samples": 64},
        "output": str(place / "run"),
    }


def lines(place: Path) -> list[dict]:
    return [json.loads(line) for line in (place / "run" / "steps.jsonl").read_text().splitlines()]


@pytest.fixture
def astray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step goes where the reward falls."""
    monkeypatch.setattr(
        Adam, "step", lambda self, u, grad, state, progress, **more: (u - (0.3 + progress / 9) * grad.sign(), {})
    )


def test_a_run_that_goes_astray_ends_at_its_start_and_costs_what_was_planned(tmp_path, astray):
    result = tune(job(tmp_path)).result()
    steps, document = lines(tmp_path), result.document
    assert [step["status"] for step in steps] == ["ok"] * 18 + ["raced"] * 2
    assert document["phi"]["guidance"]["tuned"] == [1.0, 1.0] and document["verdict"] == "no measurable difference"
    assert document["race"]["raced"] and "the start is" in document["race"]["text"]
    assert any("takes its place" in remark["text"] for remark in document["trust"])
    assert "the start is" in (tmp_path / "run" / "report.html").read_text()
    total = plan(read_job(job(tmp_path))).total
    counts = ("denoiser_calls", "reward_images")
    assert [document["cost"][name] for name in counts] == [getattr(total, name) for name in counts]
    tuning = plan(read_job(job(tmp_path))).tuning
    assert steps[-1]["cost"]["image_forwards"] == tuning.image_forwards  # two rows a sample, although the start has 1


@pytest.mark.parametrize("stop", [18, 19])
def test_left_within_the_race_and_resumed_it_ends_the_same(tmp_path, astray, stop):
    whole = tune(job(tmp_path / "whole")).result().document
    part = tune(job(tmp_path / "part"))
    for _ in range(stop):
        next(part)
    part.close()
    rest = tune(job(tmp_path / "part"), resume=True).result().document
    assert {key: rest[key] for key in ("phi", "race", "headline")} == {k: whole[k] for k in ("phi", "race", "headline")}
    timed = [[{**step, "elapsed_s": 0} for step in lines(tmp_path / name)] for name in ("whole", "part")]
    assert timed[0] == timed[1]


def test_a_run_that_gained_is_not_raced_and_says_so(tmp_path):
    document = tune(job(tmp_path, start=6.0)).result().document
    assert document["race"] == {"raced": False, "text": document["race"]["text"]}
    assert "rose by" in document["race"]["text"] and all(step["status"] == "ok" for step in lines(tmp_path))
