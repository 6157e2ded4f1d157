"""The journal beside the checkpoints: its cost a step does not grow, and no checkpoint goes on without its lines."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from genbo.cli.commands import tune
from genbo.cli.errors import ArtifactRefused
from genbo.cli.run.journal import Journal, Mark
from genbo.cli.run.json_files import to_json
from genbo.cli.run.layout import MANIFEST, STEPS, WORDS
from genbo.cli.run.manifest import manifest_of
from genbo.cli.run.seals import sha256

OVERRIDES = ["budget.steps=8"]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    opened = Journal(tmp_path / STEPS)
    for step in range(5):
        opened.append({"step": step})
    return opened


# -- marks ---------------------------------------------------------------------------------------------------


def test_a_mark_goes_on_as_the_hash_of_all_lines_does(journal: Journal) -> None:
    assert journal.mark == Mark.of(journal.lines)
    assert journal.mark.length == journal.path.stat().st_size
    assert Journal(journal.path).mark == journal.mark


def test_a_journal_is_cut_back_to_a_mark(journal: Journal) -> None:
    mark = Mark.of(journal.lines[:3])
    assert journal.restore(mark)
    assert [record["step"] for record in journal.records] == [0, 1, 2]
    assert (journal.last, journal.mark) == ({"step": 2}, mark)
    journal.append({"step": 9})
    assert [json.loads(line)["step"] for line in journal.path.read_bytes().splitlines()] == [0, 1, 2, 9]


@pytest.mark.parametrize(
    "mark",
    [Mark.of([b'{"step": 7}\n']), Mark(2, 5, Mark().sha256), Mark.of([b'{"step": 0}\n'] * 9)],
    ids=["another line", "another length", "more lines"],
)
def test_a_mark_of_other_lines_is_refused_and_nothing_is_cut(journal: Journal, mark: Mark) -> None:
    before = journal.path.read_bytes()
    assert not journal.restore(mark)
    assert (journal.path.read_bytes(), journal.mark.lines) == (before, 5)


# -- what a step costs ---------------------------------------------------------------------------------------


def test_a_step_parses_no_more_lines_and_keeps_no_more_bytes_as_records_grow(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = 0

    def loads(line: bytes) -> Any:
        nonlocal parsed
        parsed += 1
        return json.loads(line)

    monkeypatch.setattr("genbo.cli.run.journal.json", SimpleNamespace(loads=loads))
    each, kept = [], []
    with tune.tune("job.yaml", ["budget.steps=40"]) as steps:
        for number in range(1, 41):
            before = parsed
            next(steps)
            each.append(parsed - before)
            newest = Path("run") / "ckpt" / f"step-{number:06d}"
            kept.append(sum(file.stat().st_size for file in newest.iterdir()))
            assert not (newest / STEPS).exists()
    assert each[1:] == [1] * 39  # the line that the step itself has appended, as it is handed out
    assert max(kept[1:]) - kept[1] < 100  # counts and times have more digits


# -- going on ------------------------------------------------------------------------------------------------


def outcome() -> tuple[list[dict], dict]:
    """Records and answer, but for the times."""
    lines = [json.loads(line) for line in Path("run", STEPS).read_text().splitlines()]
    for record in lines:
        record.pop("elapsed_s")
    return lines, json.loads(Path("run", "report.json").read_text())["phi"]


@pytest.fixture
def whole(workplace: Path) -> tuple[list[dict], dict]:
    """What an uninterrupted run comes to; its folder is put away."""
    tune.tune("job.yaml", OVERRIDES).result()
    found = outcome()
    Path("run").rename("whole")
    return found


@pytest.fixture
def left(whole: tuple[list[dict], dict]) -> Path:
    """The same, left after five of eight steps."""
    with tune.tune("job.yaml", OVERRIDES) as steps:
        for _ in range(5):
            next(steps)
    return Path("run")


def test_a_journal_that_lost_its_last_line_goes_on_from_an_older_checkpoint(
    left: Path, whole: tuple[list[dict], dict], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (left / STEPS).read_bytes().splitlines(keepends=True)
    (left / STEPS).write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    tune.tune("job.yaml", OVERRIDES, resume=True, quiet=False).result()
    assert "run/steps.jsonl is damaged and was skipped: going on from an older checkpoint" in capsys.readouterr().err
    assert outcome() == whole


@pytest.mark.parametrize("how", ["gone", "changed"])
def test_without_its_lines_no_checkpoint_goes_on(left: Path, how: str) -> None:
    place = left / STEPS
    changed = place.read_bytes().replace(b'"step": 0', b'"step": 3', 1)
    place.unlink() if how == "gone" else place.write_bytes(changed)
    with pytest.raises(ArtifactRefused, match=r"no checkpoint is intact: run/steps\.jsonl; start again with --over"):
        tune.tune("job.yaml", OVERRIDES, resume=True).result()


def in_format_1(folder: Path, lines: list[bytes]) -> None:
    """A checkpoint as it was written when each held a copy of the journal."""
    manifest = json.loads((folder / MANIFEST).read_text())
    files = {name: (folder / name).read_bytes() for name in manifest["files"]}
    words = {key: value for key, value in json.loads(files[WORDS]).items() if key != "journal"}
    files |= {WORDS: to_json({**words, "schema": 1}), STEPS: b"".join(lines[: manifest["step"]])}
    made = manifest_of(files, manifest["job"], manifest["step"], manifest["parent"])
    old = {key: value for key, value in made.items() if key != "sha256"} | {"schema": 1}
    files[MANIFEST] = to_json({**old, "sha256": sha256(to_json(old))})
    for name, data in files.items():
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("journal", ["whole", "gone"])
def test_checkpoints_that_hold_a_copy_of_the_journal_are_gone_on_with(
    left: Path, whole: tuple[list[dict], dict], journal: str
) -> None:
    lines = (left / STEPS).read_bytes().splitlines(keepends=True)
    for folder in (left / "ckpt").iterdir():
        in_format_1(folder, lines)
    if journal == "gone":
        (left / STEPS).unlink()
    tune.tune("job.yaml", OVERRIDES, resume=True).result()
    assert outcome() == whole
