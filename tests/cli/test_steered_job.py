"""`model.steer` in a job: read, refused, planned, tuned, and what it leaves as a job's model again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from genbo.cli.commands import tune
from genbo.cli.job.job import JobMistakes, read_job
from genbo.cli.job.schema import job_schema
from genbo.cli.plan.cost import Cost
from genbo.cli.plan.counts import plan

LINEAR = {"kind": "linear", "direction": 1.0}
JOB: dict[str, Any] = {
    "version": 1,
    "model": {
        "kind": "gaussian",
        "means": {"a": [0.0], "b": [0.0]},
        "std": 1.0,
        "guidance": 1.0,
        "sampler": {"kind": "ddim", "steps": 12},
        "steer": {"reward": LINEAR, "strength": 0.5, "rule": {"kind": "tilt", "most": None}},
        "batch": 64,
    },
    "prompts": ["a", "b"],
    "tune": {"steer.strength": {"start": 0.5, "bounds": [0, 4]}},
    "reward": {"kind": "quadratic", "target": 1.5},
    "budget": {"steps": 3, "samples": 100},
    "evaluate": {"samples": 100},
    "output": "run",
}


def changed(steer: Any = None, **more: Any) -> dict[str, Any]:
    """The job with another steer, and other keys."""
    own = JOB["model"]["steer"] if steer is None else steer
    return {**JOB, "model": {**JOB["model"], "steer": own}, **more}


def mistakes(job: dict[str, Any]) -> str:
    with pytest.raises(JobMistakes) as found:
        read_job(job)
    return str(found.value)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- reading -----------------------------------------------------------------------------------------------------------


def test_it_is_read_and_written_with_every_default():
    job = read_job(changed({"reward": LINEAR, "strength": 2}))
    assert job.model.steer is not None
    written = job.document()["model"]["steer"]
    assert written == {"reward": [{**LINEAR, "weight": 1.0}], "strength": 2.0, "rule": {"kind": "tilt", "most": 0.3}}
    assert read_job(job.document()) == job and read_job(job.document()).digest() == job.digest()


def test_a_job_without_it_is_written_as_it_always_was():
    plain = {**JOB, "model": {k: v for k, v in JOB["model"].items() if k != "steer"}}
    plain["tune"] = {"timesteps": {"start": "trailing"}}
    assert "steer" not in read_job(plain).document()["model"]


def test_a_guided_job_without_a_target_is_written_as_it_always_was():
    """Its digest is that of the runs that were begun before there was one."""
    lower = {"kind": "guided", "reward": LINEAR, "samples": 8}
    tilted = {"tune": {"regularization": {"start": 1.0}}, "budget": {"steps": 2}, "model": {"kind": "gaussian"}}
    tilted["prompts"] = ["left"]
    written = read_job({**JOB, **tilted, "lower": lower}).document()["lower"]
    assert set(written) == {"kind", "samples", "most", "reward"}
    aimed = read_job({**JOB, **tilted, "lower": {**lower, "target": 1.0}}).document()["lower"]
    assert (aimed["target"], aimed["passes"]) == (1.0, 0)


def test_an_editor_knows_it():
    schema = json.dumps(job_schema())
    assert '"steer.strength"' in schema and '"strength"' in schema and '"passes"' in schema


WRONG: list[tuple[Any, str]] = [
    ({"reward": LINEAR}, "model.steer.strength: missing; write {reward:"),
    ({"strength": 1.0}, "model.steer.reward: missing; write {reward:"),
    ({"reward": LINEAR, "strength": 1.0, "power": 2}, "model.steer.power: unknown key"),
    ({"reward": LINEAR, "strength": "high"}, "model.steer.strength: must be a number, or a list of one a step"),
    ({"reward": LINEAR, "strength": [1.0, 2.0]}, "model.steer.strength: 2 numbers for 12 steps"),
    (
        {"reward": LINEAR, "strength": 1.0, "rule": "tilts"},
        "model.steer.rule: unknown rule 'tilts'; did you mean 'tilt'",
    ),
    ({"reward": LINEAR, "strength": 1.0, "rule": "target"}, "model.steer.rule.value: missing"),
    ({"reward": LINEAR, "strength": 1.0, "rule": {"kind": "tilt", "most": 0}}, "model.steer.rule.most"),
    ({"reward": "compressibility", "strength": 1.0}, "model.steer.reward: compressibility has no gradient"),
    (
        {"reward": [LINEAR, {"kind": "diversity", "features": "pixels"}], "strength": 1.0},
        "model.steer.reward.1: diversity scores all samples together",
    ),
    ({"reward": {"kind": "clip", "pretrained": "./none"}, "strength": 1.0}, "model.steer.reward.pretrained"),
    (7, "model.steer: must be a mapping of options, not 7"),
]


@pytest.mark.parametrize(("steer", "said"), WRONG, ids=[said for _, said in WRONG])
def test_what_is_wrong_is_said_at_its_place(steer, said):
    assert said in mistakes(changed(steer))


def test_what_does_not_go_together():
    tilted = {"tune": {"regularization": {"start": 1.0}}, "lower": {"kind": "closed_form", "reward": LINEAR}}
    tilted["budget"] = {"steps": 2}
    assert "model.steer: lambda is searched for with the model as it is; delete this" in mistakes(changed(**tilted))
    plain = {**JOB, "model": {k: v for k, v in JOB["model"].items() if k != "steer"}}
    assert "tune.steer.strength: nothing is steered; add model.steer" in mistakes(plain)
    judged = changed(evaluate={"samples": 100, "judges": [LINEAR]})
    assert "the job is tuned with this reward, under model.steer" in mistakes(judged)
    for kind in ("reverse_mode", "forward_mode"):
        assert "use estimator: zeroth_order" in mistakes(changed(estimator=kind))
    steps = changed(tune={"steer.strength": {"start": 0.5, "bounds": [0, 4], "shape": "per_step"}})
    assert "samples that are steered" in read_job(steps).chosen().reason
    assert "unknown tunable 'steer_strength'" in mistakes(changed(tune={"steer_strength": {"start": 1.0}}))


# -- running -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "guidance"),
    [
        ({"kind": "tilt"}, 1.0),
        ({"kind": "target", "value": 1.0}, 2.0),
        ({"kind": "target", "value": 1.0, "passes": 2}, 1.0),
    ],
    ids=["tilt", "target", "passes"],
)
def test_the_plan_is_exact(workplace, rule, guidance):
    job = changed({"reward": LINEAR, "strength": 0.5, "rule": rule}, output="run")
    job["model"]["guidance"] = guidance
    planned = plan(read_job(job))
    cost = tune.tune(job).result().document["cost"]
    assert planned.inexact is None and planned.total.image_backwards > 0
    assert {key: cost[key] for key in vars(Cost())} == planned.total.document()


def test_the_best_strength_is_the_one_whose_law_has_the_target_as_its_mean(workplace):
    """N(0, 1) exp(s x) is N(s, 1), and E -(x - 1.5)^2 is greatest at s = 1.5."""
    tune.run({**JOB, "budget": {"steps": 25, "samples": 200}}, [], quiet=True)  # type: ignore[arg-type]
    report = json.loads(Path("run/report.json").read_text())
    assert report["phi"]["steer.strength"]["tuned"] == pytest.approx(1.5, abs=0.15)
    assert report["verdict"] == "better"
    left = json.loads(Path("run/tuned/genbo.json").read_text())["steer"]
    assert left["strength"] == report["phi"]["steer.strength"]["tuned"]
    assert report["use"]["settings"]["steer"] == {**left, "reward": [{**LINEAR, "weight": 1.0}]}
    again = changed(report["use"]["settings"]["steer"], tune={"timesteps": {"start": "trailing"}})
    assert read_job(json.loads(json.dumps(again))).model.steer.strength == left["strength"]
