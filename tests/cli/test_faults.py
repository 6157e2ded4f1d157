"""What goes wrong around a run folder: it is not one, small files are damaged, the disk is full."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genbo.cli.errors import ArtifactRefused, StorageFailed, UserMistake
from genbo.cli.run.atomic import folder_in_place
from genbo.cli.run.disk import storage
from genbo.cli.run.job_file import read_yaml, to_yaml
from genbo.cli.run.json_files import write_json
from genbo.cli.run.status import read_report, read_status
from genbo.cli.run.tensors import write_tensors
from tests.cli.conftest import JOB as JOB_TEXT
from tests.cli.test_run import JOB, checkpoint, opened, tensor

FEW = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)


# -- folders that are refused --------------------------------------------------------------------------------


def tree(path: Path) -> dict[str, object]:
    """Every entry below a folder: what a file holds, where a link leads, and when each was changed."""
    return {
        str(entry.relative_to(path)): (
            os.readlink(entry) if entry.is_symlink() else entry.read_bytes() if entry.is_file() else None,
            entry.lstat().st_mtime_ns,
        )
        for entry in sorted(path.rglob("*"))
    }


FOREIGN = {
    "a lock alone": {"lock": "mine"},
    "a lock and more": {"lock": "mine", "notes.txt": "x"},
    "temporary files": {".tmp-precious/f": "thesis", "evaluation/.tmp-b": "x"},
    "names like a run's": {"job.yaml": "version: 1\n", "status.json": "{}", "ckpt/step-000001/MANIFEST.json": "{}"},
    "a status of another program": {"status.json": '{"schema": 1, "state": "ok", "last_step": 3}'},
    "what a refusal of an older genbo left": {"lock": "pid 1 on host since 2026\n", "thesis.tex": "x"},
}


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}], ids=str)
@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_a_folder_that_is_no_run_is_not_touched(tmp_path: Path, files: dict[str, str], flags: dict[str, bool]) -> None:
    for name, text in files.items():
        (tmp_path / "u" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "u" / name).write_text(text)
    before = tree(tmp_path)
    with pytest.raises(UserMistake, match=r"run.* set another output"), opened(tmp_path / "u", **flags):
        pass
    assert tree(tmp_path) == before


def test_a_run_is_not_touched_where_the_flags_are_missing(tmp_path: Path) -> None:
    with opened(tmp_path / "run"):
        pass
    (tmp_path / "run" / ".tmp-status.json-0123abcd").write_text("")
    before = tree(tmp_path)
    with pytest.raises(UserMistake, match="--resume"), opened(tmp_path / "run"):
        pass
    assert tree(tmp_path) == before


def test_of_a_run_only_what_killed_writes_left_is_cleared(tmp_path: Path) -> None:
    with opened(tmp_path / "run"):
        pass
    for name in (".tmp-job.yaml-0123abcd", "evaluation/.tmp-start.safetensors-0123abcd", ".tmp-mine", "banks/.tmp-me"):
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("")
    with opened(tmp_path / "run", resume=True):
        pass
    assert sorted(p.name for p in (tmp_path / "run").rglob(".tmp-*")) == [".tmp-me", ".tmp-mine"]


@pytest.mark.parametrize("kind", ["folder", "link", "dangling", "fifo"])
@pytest.mark.parametrize("name", ["lock", "job.yaml", "status.json", "environment.json", "steps.jsonl", "report.json"])
def test_what_should_be_a_file_and_is_not_is_a_sentence(tmp_path: Path, name: str, kind: str) -> None:
    with opened(tmp_path / "run") as run:
        run.status("running", "x", last_step=0, resumable=True)
    place = tmp_path / "run" / name
    place.unlink(missing_ok=True)
    (tmp_path / "precious").write_text("mine")
    match kind:
        case "folder":
            place.mkdir()
        case "link" | "dangling":
            place.symlink_to(tmp_path / ("precious" if kind == "link" else "nowhere"))
        case "fifo":
            os.mkfifo(place)
    with pytest.raises((ArtifactRefused, UserMistake), match=name), opened(tmp_path / "run", resume=True):
        pass
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


# -- small files that were damaged ---------------------------------------------------------------------------

GROUND = {"genbo": "1", "packages": {"torch": "2.5.1"}, "threads": 1}


def begun(path: Path) -> None:
    """A run with a checkpoint and every small file."""
    with opened(path) as run:
        assert run.write_environment(GROUND) == []
        run.checkpoints.save(checkpoint(1))
        run.status("running", "step 1 of 3", last_step=1, resumable=True)


def again(path: Path) -> list[str]:
    """What a resumed run notes of what has changed."""
    with opened(path, resume=True) as run:
        changed = run.write_environment(GROUND)
        found = run.checkpoints.newest()
        assert found is not None and found.state.steps == 1
        assert run.environment == GROUND
    return changed


@pytest.mark.parametrize("names", [("environment.json",), ("status.json",), ("job.yaml",), ("job.yaml", "status.json")])
@pytest.mark.parametrize("how", ["empty", "cut", "missing", "list", "nested", "bytes"])
def test_small_files_that_are_damaged_are_made_again(tmp_path: Path, names: tuple[str, ...], how: str) -> None:
    begun(tmp_path / "run")
    whole = {name: (tmp_path / "run" / name).read_bytes() for name in names}
    for name in names:
        place, data = tmp_path / "run" / name, whole[name]
        if how == "missing":
            place.unlink()
            continue
        made = {
            "empty": b"",
            "cut": data[: len(data) * 2 // 3],
            "list": b"[]",
            "nested": b"[" * (1100 if name.endswith("json") else 200),
            "bytes": b"\xff",
        }
        place.write_bytes(made[how])
    assert again(tmp_path / "run") == []
    for name in set(names) - {"status.json"}:
        assert (tmp_path / "run" / name).read_bytes() == whole[name]


@FEW
@given(
    name=st.sampled_from(["environment.json", "job.yaml", "status.json"]), at=st.integers(0, 999), bit=st.integers(0, 7)
)
def test_one_flipped_bit_in_a_small_file_stops_nothing(tmp_path: Path, name: str, at: int, bit: int) -> None:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    begun(tmp_path / "run")
    place = tmp_path / "run" / name
    data = bytearray(place.read_bytes())
    data[at % len(data)] ^= 1 << bit
    place.write_bytes(data)
    assert again(tmp_path / "run") == []


def test_without_a_checkpoint_a_damaged_environment_is_said(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        run.write_environment(GROUND)
    (tmp_path / "run" / "environment.json").write_text("")
    with opened(tmp_path / "run", resume=True) as run:
        assert run.write_environment(GROUND) == ["environment.json was damaged, so what the run began on is not known"]
        assert run.write_environment(GROUND) == []


def test_a_damaged_job_does_not_let_another_job_in(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    (tmp_path / "run" / "job.yaml").write_bytes(b"")
    other = {**JOB, "seed": 1}
    with (
        pytest.raises(UserMistake, match=r"damaged.*another job.*--overwrite"),
        opened(tmp_path / "run", other, resume=True),
    ):
        pass
    with opened(tmp_path / "run", other, overwrite=True) as run:
        assert run.checkpoints.newest() is None


def test_what_was_computed_decides_whose_a_run_is_where_there_is_no_checkpoint(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        (tmp_path / "run" / "banks").mkdir()
        write_tensors(tmp_path / "run" / "banks" / "round-0.safetensors", {"a": tensor(1)}, {"job": run.digest})
    (tmp_path / "run" / "job.yaml").write_bytes(b"")
    with pytest.raises(UserMistake, match="another job"), opened(tmp_path / "run", {**JOB, "seed": 1}, resume=True):
        pass
    with opened(tmp_path / "run", resume=True):
        pass
    assert read_yaml(tmp_path / "run" / "job.yaml") == JOB


def test_small_files_of_before_they_had_a_hash_are_taken(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    (tmp_path / "run" / "job.yaml").write_bytes(to_yaml(JOB))
    write_json(tmp_path / "run" / "environment.json", {**GROUND, "threads": 2})
    with opened(tmp_path / "run", resume=True) as run:
        assert run.write_environment(GROUND) == ["threads was 2, is 1"]


def test_a_report_that_is_not_what_was_written_is_not_taken(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        write_json(tmp_path / "run" / "report.json", {"headline": "better", "gain": 1.5})
        run.status("done", "better", last_step=1, resumable=False)
    assert read_report(tmp_path / "run") == {"headline": "better", "gain": 1.5}
    for text in ('{"headline": "better", "gain": 1.7}', "", "[]"):
        (tmp_path / "run" / "report.json").write_text(text)
        assert read_report(tmp_path / "run") is None


# -- a disk that is full -------------------------------------------------------------------------------------


def test_a_full_disk_names_what_was_written_what_it_needs_and_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 3000, 3000))  # type: ignore[attr-defined]
    with (
        pytest.raises(StorageFailed, match=r"/tuned \(23\.7 MB needed, 3\.0 kB free\); make room") as found,
        folder_in_place(tmp_path / "tuned", 23_700_000),
    ):
        raise AssertionError("nothing is begun")
    assert found.value.resumable


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device", "/usr/lib/package/weights.safetensors", None, "{beside}/unet/w"),
        OSError(28, "No space left on device", "/usr/lib/package/weights.safetensors"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError('Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "..." })'),
    ],
)
def test_an_export_that_does_not_fit_is_named_by_its_place(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(StorageFailed, match=rf"while writing {tmp_path}/tuned \(1\.2 kB needed, .* free") as found,
        folder_in_place(tmp_path / "tuned", 1200) as beside,
    ):
        beside.mkdir()
        raise error
    assert "package" not in str(found.value)
    assert list(tmp_path.iterdir()) == []


def test_errors_of_storage_name_files_of_the_run_alone(tmp_path: Path) -> None:
    ours = str(tmp_path / "run" / ".tmp-status.json-0123abcd")
    for number, name, said in (
        (28, ours, "no space left while writing .*/run/status.json"),
        (28, "/usr/lib/weights", f"no space left while writing {tmp_path}/run;"),
        (5, "/usr/lib/weights", f"writing {tmp_path}/run failed: Input/output error"),
        (1, ours, "writing .*/run/status.json failed: Operation not permitted"),
    ):
        with pytest.raises(StorageFailed, match=said), storage(tmp_path / "run"):
            raise OSError(number, os.strerror(number), name)
    for error in (PermissionError(13, "x", "/usr/lib/weights"), RuntimeError("CUDA error code: 5"), KeyError("a")):
        with pytest.raises(type(error)), storage(tmp_path / "run"):
            raise error


# -- a reward of the user's own that fails -------------------------------------------------------------------

FAILS = """
import os

calls = 0

def score(images, prompts):
    global calls
    calls += 1
    if calls == {call} and not os.path.exists("once"):
        open("once", "w").close()
        {fails}
    return images.flatten(1).sum(1)
"""


@pytest.mark.parametrize(
    ("call", "fails"),
    [(1, "return images.flatten(1).sum(1) / 0"), (3, "raise ConnectionError('timeout')"), (7, "return None")],
)
def test_a_reward_that_fails_once_leaves_a_run_to_go_on_with(workplace: Path, call: int, fails: str) -> None:
    from genbo.cli.commands.tune import run

    Path("r.py").write_text(FAILS.format(call=call, fails=fails))
    job = JOB_TEXT.replace("{kind: quadratic, target: [1.2, 0.2]}", "{kind: external, file: r.py}")
    Path("job.yaml").write_text(job)
    with pytest.raises(ArtifactRefused):
        run(Path("job.yaml"), allow_code=[Path("r.py")], quiet=True)
    status = read_status(Path("run"))
    assert status is not None and (status["state"], status["resumable"]) == ("failed", True)
    assert run(Path("job.yaml"), allow_code=[Path("r.py")], quiet=True, resume=True) == 0
