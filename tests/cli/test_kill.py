"""Killed at any moment, a run goes on with --resume and ends with the same numbers, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.cli.conftest import JOB, Warm

RANDOM = 20
OFTEN_ENOUGH = 6  # of them, and one place of each kind, are among the quick tests
POINTS = [
    "folder.made:1", "job.yaml.before_rename:1", "job.written:1", "environment.json.before_rename:1",
    "status.json.before_rename:1", "status.json.before_rename:3", "step.computed:1", "step.computed:3",
    "journal.before:1", "journal.torn:1", "journal.torn:3", "journal.after:2", "checkpoint.begin:1",
    "checkpoint.state_safetensors:2", "checkpoint.state_json:3", "checkpoint.environment_json:3",
    "checkpoint.manifest:2", "checkpoint.before_rename:1", "checkpoint.before_rename:4",
    "checkpoint.after_rename:1", "checkpoint.after_rename:3", "checkpoint.verified:3",
    "checkpoint.pruned:1", "evaluation.part:1", "evaluation.part:3", "evaluation.side:1",
    "evaluation.side:2", "start.safetensors.before_rename:1", "tuned.begin:1", "tuned.before_rename:1",
    "tuned.after_rename:1", "report.begin:1", "report.json.before_rename:1", "report.json:1",
    "report.html.before_rename:1", "report.html:1",
]  # fmt: skip


def quick_or_slow(points: list[str]) -> list[object]:
    """The first of each name is a quick test; the same file at another time is a slow one."""
    seen: set[str] = set()
    found: list[object] = []
    for point in points:
        name = point.partition(":")[0]
        found.append(pytest.param(point, marks=pytest.mark.slow) if name in seen else point)
        seen.add(name)
    return found


def outcome(run: Path) -> dict:
    """Everything that must be equal: all but the times."""
    report = json.loads((run / "report.json").read_text())
    report["cost"].pop("elapsed_s")
    lines = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    for record in (*lines, *report["steps"]):
        record.pop("elapsed_s")
    from safetensors.torch import load_file

    scores = {n: load_file(run / "evaluation" / f"{n}.safetensors")["seen-0"].tolist() for n in ("start", "tuned")}
    return {
        "report": report,
        "steps": lines,
        "scores": scores,
        "tuned": (run / "tuned" / "genbo.json").read_text(),
    }


def leftovers(run: Path) -> list[str]:
    return [str(p.relative_to(run)) for p in run.rglob(".tmp-*")]


@pytest.fixture(scope="session")
def uninterrupted(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "job.yaml").write_text(JOB)
    assert warm.start(folder, "job.yaml").wait() == 0  # once for what a process does only the first time
    started = warm.start(folder, "job.yaml", "--overwrite")
    began = time.monotonic()
    assert started.wait() == 0, started.said
    took_s = time.monotonic() - began
    return {"outcome": outcome(folder / "run"), "took_s": took_s}


@pytest.mark.parametrize("point", quick_or_slow(POINTS))
def test_a_kill_at_every_write_loses_nothing(point: str, workplace: Path, warm: Warm, uninterrupted: dict) -> None:
    name, _, nth = point.partition(":")
    killed = warm.start(workplace, "job.yaml", GENBO_FAULT=f"{name}:kill:{nth}")
    assert killed.wait() == -signal.SIGKILL, killed.said
    resumed = warm.start(workplace, "job.yaml", "--resume")
    assert resumed.wait() == 0, resumed.said
    assert outcome(workplace / "run") == uninterrupted["outcome"]
    assert leftovers(workplace / "run") == []
    checkpoints = sorted(p.name for p in (workplace / "run" / "ckpt").iterdir())
    assert checkpoints == ["step-000003", "step-000004"]


def test_killed_again_and_again(workplace: Path, warm: Warm, uninterrupted: dict) -> None:
    for fault in (
        "journal.torn:kill:1",
        "checkpoint.manifest:kill:2",
        "evaluation.part:kill:2",
        "report.begin:kill:1",
    ):
        killed = warm.start(workplace, "job.yaml", "--resume", GENBO_FAULT=fault)
        assert killed.wait() == -signal.SIGKILL, killed.said
    assert warm.start(workplace, "job.yaml", "--resume").wait() == 0
    assert outcome(workplace / "run") == uninterrupted["outcome"]


@pytest.mark.parametrize(
    "trial",
    [n if n < OFTEN_ENOUGH else pytest.param(n, marks=pytest.mark.slow) for n in range(RANDOM)],
)
def test_a_kill_at_a_random_moment(trial: int, workplace: Path, warm: Warm, uninterrupted: dict) -> None:
    draw = random.Random(trial)
    number = signal.SIGKILL if trial % 2 else signal.SIGTERM
    started = warm.start(workplace, "job.yaml")
    hanging = time.monotonic() + 600
    while not (workplace / "run" / "status.json").exists():
        assert time.monotonic() < hanging, started.said
        time.sleep(0.001)
    time.sleep(draw.uniform(0, uninterrupted["took_s"]))
    os.kill(started.pid, number)
    code = started.wait()
    assert code in {0, 75 if number == signal.SIGTERM else -signal.SIGKILL}, started.said
    if code == 75:
        status = json.loads((workplace / "run" / "status.json").read_text())
        assert (status["state"], status["resumable"]) == ("preempted", True)
    resumed = warm.start(workplace, "job.yaml", "--resume")
    assert resumed.wait() == 0, resumed.said
    assert outcome(workplace / "run") == uninterrupted["outcome"]


@pytest.mark.parametrize("point", ["checkpoint.begin:2", "checkpoint.before_rename:2", "journal.torn:2"])
def test_sigterm_while_saving_lets_the_save_finish(
    point: str, workplace: Path, warm: Warm, uninterrupted: dict
) -> None:
    name, _, nth = point.partition(":")
    stopped = warm.start(workplace, "job.yaml", GENBO_FAULT=f"{name}:term:{nth}")
    assert stopped.wait() == 75, stopped.said
    status = json.loads((workplace / "run" / "status.json").read_text())
    assert status["last_step"] == 2
    assert "--resume" in status["reason"]
    assert warm.start(workplace, "job.yaml", "--resume").wait() == 0
    assert outcome(workplace / "run") == uninterrupted["outcome"]


def test_sigint_once_is_130_with_a_checkpoint(workplace: Path, warm: Warm, uninterrupted: dict) -> None:
    stopped = warm.start(workplace, "job.yaml", GENBO_FAULT="checkpoint.begin:int:2")
    assert stopped.wait() == 130, stopped.said
    assert json.loads((workplace / "run" / "status.json").read_text())["state"] == "preempted"
    assert warm.start(workplace, "job.yaml", "--resume").wait() == 0
    assert outcome(workplace / "run") == uninterrupted["outcome"]


def test_a_second_signal_ends_it_at_once(workplace: Path, warm: Warm) -> None:
    stopped = warm.start(workplace, "job.yaml", GENBO_FAULT="checkpoint.begin:twice:2")
    assert stopped.wait() == 130, stopped.said
    assert json.loads((workplace / "run" / "status.json").read_text())["state"] == "running"
    assert (workplace / "run" / "ckpt" / "step-000001").is_dir()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("journal.before", "full"),
        *((name, "eio") for name in ("checkpoint.manifest", "evaluation.part", "report.begin", "tuned.begin")),
        pytest.param("journal.before", "eio", marks=pytest.mark.slow),
        *(
            pytest.param(name, "full", marks=pytest.mark.slow)
            for name in ("checkpoint.manifest", "evaluation.part", "report.begin", "tuned.begin")
        ),
    ],
)
def test_broken_storage_is_6_and_keeps_what_was_there(
    kind: str, name: str, workplace: Path, warm: Warm, uninterrupted: dict
) -> None:
    failed = warm.start(workplace, "job.yaml", GENBO_FAULT=f"{name}:{kind}:1")
    assert failed.wait() == 6, failed.said
    assert "Traceback" not in failed.said
    status = json.loads((workplace / "run" / "status.json").read_text())
    assert (status["state"], status["resumable"]) == ("failed", True)
    assert not (workplace / "run" / "report.html").exists()
    assert warm.start(workplace, "job.yaml", "--resume").wait() == 0
    assert outcome(workplace / "run") == uninterrupted["outcome"]


def test_a_bug_between_two_points_resumes_too(workplace: Path, warm: Warm, uninterrupted: dict) -> None:
    failed = warm.start(workplace, "job.yaml", GENBO_FAULT="step.computed:raise:3")
    assert failed.wait() == 1
    assert "RuntimeError" in json.loads((workplace / "run" / "status.json").read_text())["reason"]
    assert warm.start(workplace, "job.yaml", "--resume").wait() == 0
    assert outcome(workplace / "run") == uninterrupted["outcome"]


def test_two_processes_on_one_folder(workplace: Path, warm: Warm) -> None:
    from genbo.cli.errors import UserMistake
    from genbo.cli.run.folder import opened

    with opened(workplace / "run", {"version": 1}, resume=False, overwrite=False):
        second = warm.start(workplace, "job.yaml", "--resume")
        assert second.wait() == UserMistake.exit_code
        assert f"locked by pid {os.getpid()}" in second.said


RICH = (
    JOB.replace("{start: 1.0, bounds: [0, 20]}", "{start: 1.0, bounds: [0, 20], shape: {knots: 3}}")
    + """\
keep:
  - {kind: quadratic, target: 0, at_least: start - 0.5}
estimator: {kind: zeroth_order, directions: random, points: one_point}
"""
)


@pytest.fixture(scope="module")
def rich(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of it that nothing interrupts."""
    folder = tmp_path_factory.mktemp("rich")
    (folder / "job.yaml").write_text(RICH)
    assert warm.start(folder, "job.yaml").wait() == 0
    return folder / "run"


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_every_kind_of_state_survives(nth: int, tmp_path: Path, warm: Warm, rich: Path) -> None:
    """An optimizer's, an estimator's and the multipliers' state, and a phi of several numbers."""
    (tmp_path / "job.yaml").write_text(RICH)
    killed = warm.start(tmp_path, "job.yaml", GENBO_FAULT=f"checkpoint.verified:kill:{nth}")
    assert killed.wait() == -signal.SIGKILL, killed.said
    assert warm.start(tmp_path, "job.yaml", "--resume").wait() == 0
    assert outcome(tmp_path / "run") == outcome(rich)
    from safetensors.torch import load_file

    names = set(load_file(rich / "ckpt" / "step-000004" / "state.safetensors"))
    assert {"u", "multipliers", "estimator.last"} <= names
    assert any(name.startswith("optimizer.") for name in names)
