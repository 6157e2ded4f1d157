"""Broken jobs through the command itself: every mistake at its place, with a remedy, never a traceback."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from genbo.cli.main import main

BROKEN = sorted((Path(__file__).parent / "broken_jobs").glob("*.yaml"))
EXPECTED = re.compile(r"# (\d+):(\d+) (.+)")


def genbo(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The entry point as a shell calls it."""
    monkeypatch.setattr(sys, "argv", ["genbo", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code


def expected_of(path: Path) -> list[tuple[str, str, str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [found.groups() for line in lines if (found := EXPECTED.fullmatch(line))]  # type: ignore[misc]


def test_there_are_many_broken_jobs() -> None:
    assert len(BROKEN) >= 30
    assert all(expected_of(path) for path in BROKEN)


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_broken_job(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """These mistakes, no others, each one line at its line and column, with a piece of its remedy."""
    monkeypatch.chdir(path.parent)
    code = genbo("check", path.name, monkeypatch=monkeypatch)
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    said = sorted(err.splitlines())
    wanted = sorted(expected_of(path), key=lambda e: next((line for line in said if e[2] in line), ""))
    assert len(said) == len(wanted), err
    for line, (row, column, piece) in zip(said, wanted, strict=True):
        assert line.startswith(f"{path.name}:{row}:{column}: "), (row, column, line)
        assert piece in line
        assert "<" not in line.split(": ")[1], "a place must not show the insides of pydantic"


@pytest.mark.parametrize("command", ["check", "tune"])
def test_as_a_process(command: str, tmp_path: Path) -> None:
    """The same through a real process: exit 2, a sentence on stderr, nothing on stdout, nothing written."""
    job = next(path for path in BROKEN if "several" in path.stem)
    done = subprocess.run(
        [sys.executable, "-m", "genbo", command, str(job)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 4
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("data", "piece"),
    [
        (b"", "this job is empty"),
        (b"# only a comment\n", "this job is empty"),
        (b"version: 1\nprompts: [\xff]\n", ":2:11: this byte is not UTF-8"),
        (b"version: 1\noutput: a\x07b\n", ":2:10: a control character; delete it"),
        (b"#" * 1_000_001, "larger than 1 MB"),
        (b"a: [" + b"1, " * 30_000 + b"]", "more than 20000 values"),
        (b"[" * 5_000, "nested more than 32 deep"),
        (b"seed: " + b"9" * 5_000, ":1:7: seed: a number of 5000 characters"),
    ],
    ids=["empty", "comment", "not-utf8", "control", "large", "many", "deep", "digits"],
)
def test_bytes_that_are_no_job(
    data: bytes,
    piece: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(data)
    assert genbo("check", str(path), monkeypatch=monkeypatch) == 2
    assert piece in capsys.readouterr().err


@pytest.mark.parametrize(("name", "piece"), [("none.yaml", "there is no such file"), (".", "this is a folder")])
def test_no_file(
    name: str, piece: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert genbo("check", str(tmp_path / name), monkeypatch=monkeypatch) == 2
    assert piece in capsys.readouterr().err


def test_usage_is_exit_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert genbo("check", monkeypatch=monkeypatch) == 2
    assert genbo("tune", "job.yaml", "--resume", "--overwrite", monkeypatch=monkeypatch) == 2
    assert "exclude each other" in capsys.readouterr().err
