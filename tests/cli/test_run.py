"""The run folder: what is written reads back equal, and nothing damaged is ever taken for good."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from genbo.bilevel.loop import State
from genbo.cli.errors import ArtifactRefused, StorageFailed, UserMistake
from genbo.cli.run import folder
from genbo.cli.run.atomic import folder_in_place, write_new
from genbo.cli.run.checkpoints import Checkpoint, Checkpoints
from genbo.cli.run.disk import storage
from genbo.cli.run.job_digest import digest_of
from genbo.cli.run.journal import Journal, Mark, read_journal
from genbo.cli.run.json_files import to_json, write_json
from genbo.cli.run.layout import MANIFEST, TENSORS, WORDS
from genbo.cli.run.loop_state import kinds, tensors_of
from genbo.cli.run.manifest import FORMAT, manifest_of
from genbo.cli.run.redaction import without_secrets
from genbo.cli.run.seals import sha256
from genbo.cli.run.tensors import read_tensors, write_tensors

JOB = {"version": 1, "budget": {"steps": 3, "minutes": None}, "output": "run"}
NO_FIXTURE_CHECK = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=40
)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def checkpoint(step: int) -> Checkpoint:
    state = State(
        u=tensor(0.1 * step, math.pi),
        steps=step,
        optimizer={"first": tensor(1e-300, 2.0), "count": tensor(step)},
        estimator={"last": tensor(-1 / 3)},
        multipliers=tensor(),
        wasted=1,
        cost={"denoiser_calls": 10 * step},
    )
    lines = [to_json({"step": k}, indent=None) for k in range(step)]
    return Checkpoint(state, Mark.of(lines), 1.5 * step)


def checkpoints(path: Path, *steps: int) -> Checkpoints:
    kept = Checkpoints(path, "digest")
    for step in steps:
        kept.save(checkpoint(step))
    return kept


def equal(a: State, b: State) -> bool:
    left, right = tensors_of(a), tensors_of(b)
    same = left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
    return same and (a.steps, a.wasted, a.cost) == (b.steps, b.wasted, b.cost)


# -- checkpoints ---------------------------------------------------------------------------------------------


def test_a_checkpoint_reads_back_equal(tmp_path: Path) -> None:
    found = checkpoints(tmp_path / "ckpt", 1).newest()
    assert found is not None
    assert equal(found.state, checkpoint(1).state)
    assert (found.journal, found.elapsed_s) == (Mark.of([b'{"step": 0}\n']), 1.5)


def test_two_verified_are_kept_and_junk_is_not_counted(tmp_path: Path) -> None:
    for number in range(901, 906):
        (tmp_path / "ckpt" / f"step-{number:06d}").mkdir(parents=True)
    kept = checkpoints(tmp_path / "ckpt", 1, 2, 3)
    good = [p.name for p in (tmp_path / "ckpt").iterdir() if (p / MANIFEST).exists()]
    assert sorted(good) == ["step-000002", "step-000003"]
    found = kept.newest()
    assert found is not None
    assert found.state.steps == 3
    assert len(kept.skipped) == 5


FILES = (TENSORS, WORDS, MANIFEST)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("length", ["none", "half", "one less"])
def test_a_truncated_file_falls_back_and_is_named(tmp_path: Path, name: str, length: str) -> None:
    kept = checkpoints(tmp_path / "ckpt", 1, 2)
    place = tmp_path / "ckpt" / "step-000002" / name
    data = place.read_bytes()
    cut = {"none": 0, "half": len(data) // 2, "one less": len(data) - 1}[length]
    place.write_bytes(data[:cut])
    found = kept.newest()
    assert found is not None
    if name == MANIFEST and length == "one less":
        assert found.state.steps == 2  # the closing newline says nothing
        return
    assert found.state.steps == 1
    assert kept.skipped == [place]


@NO_FIXTURE_CHECK
@given(name=st.sampled_from(FILES), offset=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_one_flipped_bit_is_never_loaded(tmp_path: Path, name: str, offset: int, bit: int) -> None:
    shutil.rmtree(tmp_path / "ckpt", ignore_errors=True)
    kept = checkpoints(tmp_path / "ckpt", 1, 2)
    place = tmp_path / "ckpt" / "step-000002" / name
    data = bytearray(place.read_bytes())
    data[offset % len(data)] ^= 1 << bit
    place.write_bytes(data)
    found = kept.newest()
    assert found is not None
    assert equal(found.state, checkpoint(found.state.steps).state)
    if found.state.steps == 1:
        assert kept.skipped == [place]
    else:
        assert name == MANIFEST  # a flip that leaves its meaning: between two spaces, or in a \u escape


def test_none_left_is_refused_and_named(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path / "ckpt", 1, 2)
    for step in (1, 2):
        (tmp_path / "ckpt" / f"step-{step:06d}" / WORDS).write_text("{}")
    with pytest.raises(ArtifactRefused, match=r"step-000002/state\.json.*step-000001/state\.json"):
        kept.newest()


def forge(path: Path, change) -> None:  # type: ignore[no-untyped-def]
    """A checkpoint whose hashes hold, but whose tensors are not what they should be."""
    files = {name: (path / name).read_bytes() for name in FILES[:2]}
    tensors = dict(load(files[TENSORS]))
    change(tensors)
    files[TENSORS] = save(tensors)
    manifest = manifest_of(files, "digest", int(path.name[5:]), None)
    for name, data in {**files, MANIFEST: to_json(manifest)}.items():
        (path / name).write_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("optimizer.first"), "'optimizer.first' is missing"),
        (lambda t: t.pop("u"), "'u' is missing"),
        (lambda t: t.update(stranger=tensor(1)), "'stranger' does not belong"),
        (lambda t: t.update({"optimizer.second": t.pop("optimizer.first")}), "optimizer"),
        (lambda t: t.update(u=tensor(1, 2, 3)), r"'u' is .*\[3\]"),
        (lambda t: t.update(u=t["u"].float()), "'u' is .*float32"),
        (lambda t: t.update(u=tensor(math.nan, 1)), "'u' holds numbers that are not finite"),
        (lambda t: t.update({"estimator.last": tensor(math.inf)}), "'estimator.last' holds numbers"),
    ],
)
def test_wrong_tensors_are_errors_that_name_the_key(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    kept = checkpoints(tmp_path / "ckpt", 1)
    forge(tmp_path / "ckpt" / "step-000001", change)
    with pytest.raises(ArtifactRefused, match=message):
        kept.newest()


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(State)])
def test_no_field_of_the_state_is_ever_left_at_its_default(tmp_path: Path, name: str) -> None:
    """A state that a later loop has grown by a field must not be restored without it."""
    kept = checkpoints(tmp_path / "ckpt", 1)
    path = tmp_path / "ckpt" / "step-000001"
    files = {file: (path / file).read_bytes() for file in FILES[:2]}
    words, tensors = json.loads(files[WORDS]), dict(load(files[TENSORS]))
    if kinds()[name] == "tensors":
        return  # may be empty: an optimizer need not remember anything
    words["values"].pop(name, None)
    words["tensors"].pop(name, None)
    tensors.pop(name, None)
    files |= {WORDS: to_json(words), TENSORS: save(tensors)}
    manifest = manifest_of(files, "digest", 1, None)
    for file, data in {**files, MANIFEST: to_json(manifest)}.items():
        (path / file).write_bytes(data)
    with pytest.raises(ArtifactRefused, match=f"'{name}' is missing"):
        kept.newest()


def test_a_newer_format_says_who_wrote_it(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path / "ckpt", 1)
    place = tmp_path / "ckpt" / "step-000001" / MANIFEST
    manifest = {k: v for k, v in json.loads(place.read_text()).items() if k != "sha256"}
    manifest |= {"schema": FORMAT + 1, "genbo": "9.9"}
    place.write_bytes(to_json({**manifest, "sha256": sha256(to_json(manifest))}))
    with pytest.raises(ArtifactRefused, match=r"written by genbo 9\.9"):
        kept.newest()


def test_a_checkpoint_of_another_job_is_refused(tmp_path: Path) -> None:
    checkpoints(tmp_path / "ckpt", 1)
    with pytest.raises(UserMistake, match="another job"):
        Checkpoints(tmp_path / "ckpt", "other digest").newest()


def test_what_does_not_read_back_is_an_error_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = checkpoints(tmp_path / "ckpt", 1)
    written = write_new

    def rotten(path: Path, data: bytes) -> None:
        written(path, data[:-1] + b"?" if path.name == TENSORS else data)

    monkeypatch.setattr("genbo.cli.run.checkpoints.write_new", rotten)
    with pytest.raises(StorageFailed), storage():
        kept.save(checkpoint(2))
    found = kept.newest()
    assert found is not None
    assert found.state.steps == 1


def test_a_damaged_one_is_written_again_in_its_place(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path / "ckpt", 1, 2)
    (tmp_path / "ckpt" / "step-000002" / TENSORS).write_bytes(b"")
    kept.save(checkpoint(2))
    found = kept.newest()
    assert found is not None
    assert found.state.steps == 2
    assert sorted(p.name for p in (tmp_path / "ckpt").iterdir()) == ["step-000001", "step-000002"]


# -- the journal ---------------------------------------------------------------------------------------------


@NO_FIXTURE_CHECK
@given(count=st.integers(1, 5), cut=st.integers(1, 40))
def test_a_torn_line_is_cut_and_nothing_before_it_is_lost(tmp_path: Path, count: int, cut: int) -> None:
    place = tmp_path / "steps.jsonl"
    place.unlink(missing_ok=True)
    journal = Journal(place)
    for step in range(count):
        journal.append({"step": step, "text": "x" * 30})
    journal.close()
    whole = place.read_bytes()
    place.write_bytes(whole[:-cut])
    intact = whole[:-cut].count(b"\n")
    for extra in range(2):  # gone on with twice
        journal = Journal(place)
        assert [r["step"] for r in journal.records] == [*range(intact), *range(100, 100 + extra)]
        journal.append({"step": 100 + extra})
        journal.close()
    assert place.read_bytes().count(b"\n") == intact + 2


@NO_FIXTURE_CHECK
@given(st.binary(max_size=200))
def test_any_bytes_open_as_a_journal(tmp_path: Path, data: bytes) -> None:
    place = tmp_path / "steps.jsonl"
    place.write_bytes(data)
    journal = Journal(place)
    journal.append({"step": 0})
    journal.close()
    assert read_journal(place)[-1] == {"step": 0}


def test_numbers_go_through_the_journal_unchanged(tmp_path: Path) -> None:
    numbers = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tolist()
    journal = Journal(tmp_path / "steps.jsonl")
    journal.append({"u": [*numbers, math.nan]})
    assert journal.records[0]["u"] == [*numbers, None]
    journal.close()


def test_a_journal_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / "steps.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        Journal(tmp_path / "steps.jsonl")
    assert (tmp_path / "elsewhere").read_text() == "precious"


# -- the folder ----------------------------------------------------------------------------------------------


def opened(path: Path, document: dict | None = None, *, resume: bool = False, overwrite: bool = False):  # type: ignore[no-untyped-def]
    return folder.opened(path, document or JOB, resume=resume, overwrite=overwrite)


def test_a_folder_in_use_needs_a_flag(tmp_path: Path) -> None:
    with opened(tmp_path / "run"):
        pass
    with pytest.raises(UserMistake, match=r"--resume.*--overwrite"), opened(tmp_path / "run"):
        pass
    with opened(tmp_path / "run", resume=True) as run:
        assert run.journal.records == []


def test_overwrite_deletes_runs_only(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    with pytest.raises(UserMistake, match="not a run of genbo"), opened(tmp_path / "thesis", overwrite=True):
        pass
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "precious"
    with pytest.raises(UserMistake, match="no genbo run"), opened(tmp_path / "thesis", resume=True):
        pass
    with opened(tmp_path / "run") as run:
        run.journal.append({"step": 0})
    (tmp_path / "run" / "my notes.txt").write_text("precious")
    with opened(tmp_path / "run", overwrite=True) as run:
        assert run.journal.records == []
    assert (tmp_path / "run" / "my notes.txt").read_text() == "precious"


def test_a_folder_with_a_job_of_the_user_is_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("version: 1\n")
    (tmp_path / "tuned").mkdir()
    for flags in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(UserMistake), opened(tmp_path, **flags):
            pass
    assert (tmp_path / "job.yaml").read_text() == "version: 1\n"
    assert (tmp_path / "tuned").is_dir()


def test_another_job_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    with opened(tmp_path / "run"):
        pass
    other = {**JOB, "budget": {"steps": 9, "minutes": None}, "seed": 1}
    with (
        pytest.raises(UserMistake, match=r"budget\.steps: 3 -> 9; seed: \(none\) -> 1"),
        opened(tmp_path / "run", other, resume=True),
    ):
        pass


def test_more_minutes_and_another_place_are_the_same_job(tmp_path: Path) -> None:
    with opened(tmp_path / "run"):
        pass
    (tmp_path / "run").rename(tmp_path / "moved")
    same = {**JOB, "budget": {"steps": 3, "minutes": 5.0}, "output": "moved"}
    with opened(tmp_path / "moved", same, resume=True) as run:
        assert run.digest == digest_of(JOB)


@pytest.mark.parametrize("name", ["ckpt", "evaluation", "tuned"])
def test_links_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with opened(tmp_path / "run"):
        pass
    shutil.rmtree(tmp_path / "run" / name, ignore_errors=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactRefused, match="symbolic link"), opened(tmp_path / "run", resume=True):
        pass


def test_an_output_that_cannot_be_made_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserMistake, match="cannot be made"), opened(tmp_path / "file" / "run"):
        pass


def test_names_with_spaces_and_newlines_work(tmp_path: Path) -> None:
    with opened(tmp_path / "a run\nof two lines"):
        pass
    assert folder.is_run(tmp_path / "a run\nof two lines")


def test_a_failed_write_leaves_the_file_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "status.json"
    write_json(place, {"n": 1})

    def no_room(_descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(StorageFailed, match="no space left"), storage():
        write_json(place, {"n": 2})
    assert json.loads(place.read_text()) == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The calls that order what reaches the disk, as they are made: fsync of a file or a folder, and rename."""
    calls: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def name_of(descriptor: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}")).name

    def synced(descriptor: int) -> None:
        calls.append(("fsync", name_of(descriptor)))
        fsync(descriptor)

    def renamed(old: Path, new: Path) -> None:
        calls.append(("rename", f"{Path(old).name} {Path(new).name}"))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    return calls


def test_a_file_is_on_the_disk_before_it_takes_its_name_and_its_folder_after(
    tmp_path: Path, on_disk: list[tuple[str, str]]
) -> None:
    """A rename that reaches the disk before the bytes would leave an empty file after a power cut."""
    write_json(tmp_path / "status.json", {"n": 1})
    (first, written), (second, names), third = on_disk
    assert (first, second, third) == ("fsync", "rename", ("fsync", tmp_path.name))
    assert names == f"{written} status.json" and written != "status.json"


def test_a_checkpoint_is_on_the_disk_before_it_takes_its_name_and_its_folder_after(
    tmp_path: Path, on_disk: list[tuple[str, str]]
) -> None:
    """Every file, the folder that lists them, the rename, and then the folder that holds it."""
    checkpoints(tmp_path / "ckpt", 1)
    at = next(i for i, (what, names) in enumerate(on_disk) if what == "rename" and names.endswith(" step-000001"))
    beside = on_disk[at][1].split()[0]
    before = [name for what, name in on_disk[:at] if what == "fsync"]
    assert set(before) == {*FILES, beside} and before[-1] == beside, "the folder after all that is in it"
    assert on_disk[at + 1] == ("fsync", "ckpt")


def test_a_folder_in_place_is_on_the_disk_before_it_takes_its_name(
    tmp_path: Path, on_disk: list[tuple[str, str]]
) -> None:
    with folder_in_place(tmp_path / "tuned") as beside:
        (beside / "unet").mkdir(parents=True)
        (beside / "unet" / "weights").write_bytes(b"1")
        (beside / "index").write_bytes(b"2")
    *before, rename, after = on_disk
    assert [name for what, name in before if what == "fsync"][-1] == beside.name
    assert {name for _, name in before} == {"unet", "weights", "index", beside.name}
    assert rename == ("rename", f"{beside.name} tuned") and after == ("fsync", tmp_path.name)


def test_a_line_of_the_journal_is_on_the_disk_when_it_is_given(tmp_path: Path, on_disk: list[tuple[str, str]]) -> None:
    journal = Journal(tmp_path / "steps.jsonl")
    on_disk.clear()
    journal.append({"step": 0})
    assert on_disk == [("fsync", "steps.jsonl")]
    journal.close()


def test_a_damaged_evaluation_is_not_taken(tmp_path: Path) -> None:
    place, words = tmp_path / "start.safetensors", {"job": "a", "phi": [1.0]}
    write_tensors(place, {"scores": tensor(1, 2)}, words)
    found = read_tensors(place, words)
    assert found is not None
    assert found["scores"].tolist() == [1, 2]
    assert read_tensors(place, {**words, "phi": [2.0]}) is None
    data = bytearray(place.read_bytes())
    data[-1] ^= 1
    place.write_bytes(data)
    assert read_tensors(place, words) is None


@NO_FIXTURE_CHECK
@given(cut=st.integers(0, 400))
def test_a_truncated_evaluation_is_not_taken(tmp_path: Path, cut: int) -> None:
    place = tmp_path / "start.safetensors"
    write_tensors(place, {"scores": tensor(1, 2)}, {"job": "a"})
    data = place.read_bytes()
    place.write_bytes(data[: min(cut, len(data) - 1)])
    assert read_tensors(place, {"job": "a"}) is None


@NO_FIXTURE_CHECK
@given(offset=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_in_an_evaluation_is_seen(tmp_path: Path, offset: int, bit: int) -> None:
    place = tmp_path / "start.safetensors"
    write_tensors(place, {"scores": tensor(1, 2)}, {"job": "a"})
    data = bytearray(place.read_bytes())
    data[offset % len(data)] ^= 1 << bit
    place.write_bytes(data)
    found = read_tensors(place, {"job": "a"})
    assert found is None or {name: t.tolist() for name, t in found.items()} == {"scores": [1.0, 2.0]}


def test_secrets_and_the_home_folder_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh12345")
    monkeypatch.setenv("HOME", "/home/ada")
    said = without_secrets({"a": ["/home/ada/sd15", "failed with hf_abcdefgh12345"]})
    assert said == {"a": ["~/sd15", "failed with ***"]}
