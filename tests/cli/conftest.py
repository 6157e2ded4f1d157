"""A job on an exact world, which runs in a second, and ways to run it in this process and in another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

JOB = """\
version: 1
model:
  kind: mixture
  sampler: {kind: ddim, steps: 5}
  batch: 16
prompts: [east, north]
tune:
  guidance: {start: 1.0, bounds: [0, 20]}
reward: {kind: quadratic, target: [1.2, 0.2]}
budget: {steps: 4, samples: 8}
evaluate: {samples: 24}
output: run
"""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with job.yaml in it, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path


class Started:
    """A command under way."""

    def __init__(self, server: subprocess.Popen[str], pid: int, log: Path) -> None:
        self.server, self.pid, self.log = server, pid, log

    def wait(self) -> int:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write("wait\n")
        self.server.stdin.flush()
        word, pid, code = self.server.stdout.readline().split()
        assert (word, int(pid)) == ("ended", self.pid)
        return int(code)

    @property
    def said(self) -> str:
        return self.log.read_text()


class Warm:
    """Runs `genbo tune` in fresh processes; see warm.py."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        script = str(Path(__file__).with_name("warm.py"))
        self.server = subprocess.Popen(
            [sys.executable, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.server.stdout is not None
        assert self.server.stdout.readline() == "ready\n"
        self.number = 0

    def start(self, folder: Path, *arguments: str, **environment: str) -> Started:
        self.number += 1
        log = folder / f"log-{self.number}.txt"
        own = {"XDG_CACHE_HOME": str(folder / "cache"), **environment}
        order = {"arguments": list(arguments), "environment": own, "folder": str(folder), "log": str(log)}
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        word, pid = self.server.stdout.readline().split()
        assert word == "started"
        return Started(self.server, int(pid), log)

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(600)  # it ends by itself, sooner or later


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    server = Warm()
    yield server
    server.close()


@pytest.fixture(scope="session")
def searched_lambda(tmp_path_factory: pytest.TempPathFactory, strict_records: None) -> Path:
    """The finished run of a search for lambda whose answers are known, for tests that only read it."""
    from genbo.cli.commands import tune
    from tests.cli.test_regularize import JOB

    place = tmp_path_factory.mktemp("lambda")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        assert tune.run(JOB, [], quiet=True) == 0  # type: ignore[arg-type]
    return place / "run"


@pytest.fixture(autouse=True, scope="session")
def strict_records() -> Iterator[None]:
    """Whatever a run of these tests writes is in the records of the report, key by key."""
    from genbo.cli.report import html
    from tests.cli.records_on_disk import assert_strict

    written = html.write_report

    def checked(folder: Path, document: Any, place: Path | None = None) -> Path:
        if (folder / "steps.jsonl").is_file() and (folder / "status.json").is_file():
            assert_strict(folder)
        return written(folder, document, place)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "write_report", checked)
        yield
