"""Checkpoints: the folder `ckpt/`, where the newest that holds stays until a newer one was read again."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genbo.cli.errors import ArtifactRefused, UserMistake
from genbo.cli.run.atomic import sync_folder, write_new
from genbo.cli.run.faults import fault
from genbo.cli.run.journal import Mark, intact_lines
from genbo.cli.run.json_files import Document, to_json
from genbo.cli.run.layout import ENVIRONMENT, MANIFEST, STEPS, TENSORS, WORDS
from genbo.cli.run.loop_state import kinds, state_of, tensors_of
from genbo.cli.run.manifest import FORMAT, Corrupt, manifest_of, read_verified, step_name

if TYPE_CHECKING:
    from genbo.bilevel.loop import State


KEEP = 2  # checkpoints, counting only those whose hashes hold


@dataclass(frozen=True)
class Checkpoint:
    """What it takes to go on beside the journal: the state of the loop, how far the journal was, the time so far."""

    state: State
    journal: Mark
    elapsed_s: float
    copy: bytes | None = None  # the journal itself, which checkpoints of format 1 hold


def words_of(checkpoint: Checkpoint) -> Document:
    state = checkpoint.state
    return {
        "schema": FORMAT,
        "elapsed_s": checkpoint.elapsed_s,
        "journal": vars(checkpoint.journal),
        "values": {name: getattr(state, name) for name, kind in kinds().items() if kind == "value"},
        "tensors": {k: {"shape": list(v.shape), "dtype": str(v.dtype)} for k, v in tensors_of(state).items()},
    }


class Checkpoints:
    """The folder `ckpt/`: the newest that holds stays until a newer one was written and read again."""

    def __init__(self, path: Path, job: str) -> None:
        self.path, self.job = path, job
        self.environment: bytes | None = None  # a copy of it goes into every checkpoint
        self.skipped: list[Path] = []  # files that did not hold, newest first
        path.mkdir(exist_ok=True)
        for stale in path.glob(".tmp-*"):
            shutil.rmtree(stale, ignore_errors=True)

    def folders(self) -> list[Path]:
        """Newest first, whether they hold or not."""
        return sorted((p for p in self.path.glob("step-*") if p.is_dir() and not p.is_symlink()), reverse=True)

    def save(self, checkpoint: Checkpoint) -> None:
        from safetensors.torch import save

        step = checkpoint.state.steps
        tensors = {k: v.detach().cpu().clone() for k, v in tensors_of(checkpoint.state).items()}  # none shared
        files = {TENSORS: save(tensors), WORDS: to_json(words_of(checkpoint))}
        if self.environment is not None:
            files[ENVIRONMENT] = self.environment
        target, beside = (
            self.path / step_name(step),
            self.path / f".tmp-{step_name(step)}-{uuid.uuid4().hex[:8]}",
        )
        try:
            self._write(beside, files, step)
            self._publish(beside, target)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        self._read_again(target)
        self._prune()

    def _write(self, beside: Path, files: Mapping[str, bytes], step: int) -> None:
        beside.mkdir()
        fault("checkpoint.begin")
        for name, data in files.items():
            write_new(beside / name, data)
            fault(f"checkpoint.{name.replace('.', '_')}")
        manifest = manifest_of(files, self.job, step, self.newest_step())
        write_new(beside / MANIFEST, to_json(manifest))
        sync_folder(beside)
        fault("checkpoint.manifest")

    def newest_step(self) -> int | None:
        return next((int(p.name.removeprefix("step-")) for p in self.folders()), None)

    def _publish(self, beside: Path, target: Path) -> None:
        if target.exists():  # one that did not hold, computed again
            os.replace(target, self.path / f".tmp-old-{uuid.uuid4().hex[:8]}")
        fault("checkpoint.before_rename")
        os.replace(beside, target)
        sync_folder(self.path)
        fault("checkpoint.after_rename")

    def _read_again(self, target: Path) -> None:
        try:
            read_verified(target)
        except Corrupt as problem:
            raise OSError(errno.EIO, "what was written does not read back", str(problem.args[0])) from problem
        fault("checkpoint.verified")

    def _prune(self) -> None:
        good = 0
        for folder in self.folders():
            try:
                read_verified(folder)
            except (Corrupt, ArtifactRefused):
                continue
            good += 1
            if good > KEEP:
                shutil.rmtree(folder)
                fault("checkpoint.pruned")
        for stale in self.path.glob(".tmp-old-*"):
            shutil.rmtree(stale, ignore_errors=True)

    def kept_environment(self) -> Document | None:
        """What the run began on, as the newest checkpoint that holds a copy of it says."""
        for folder in self.folders():
            try:
                _, files = read_verified(folder)
                return dict(json.loads(files[ENVIRONMENT]))
            except (Corrupt, ArtifactRefused, KeyError, ValueError, TypeError):
                continue
        return None

    def newest(self) -> Checkpoint | None:
        """The newest that holds; others are skipped and named. None where none was ever written."""
        return next(self.intact(), None)

    def intact(self) -> Iterator[Checkpoint]:
        """Those that hold, the newest first; others are skipped and named. Raises where none is left of several."""
        self.skipped = []
        for folder in self.folders():
            try:
                manifest, files = read_verified(folder)
            except Corrupt as problem:
                self.skipped.append(problem.args[0])
                continue
            if manifest["job"] != self.job:
                raise UserMistake(f"{folder} belongs to another job; give this one an output of its own")
            yield self._open(folder, files)
        if self.skipped:
            named = ", ".join(str(p) for p in self.skipped)
            raise ArtifactRefused(f"no checkpoint is intact: {named}; start again with --overwrite")

    def _open(self, folder: Path, files: Mapping[str, bytes]) -> Checkpoint:
        from safetensors import SafetensorError
        from safetensors.torch import load

        for name in (TENSORS, WORDS):
            if name not in files:
                raise ArtifactRefused(f"{folder / MANIFEST} does not list {name}")
        copy = files.get(STEPS)
        try:
            words, tensors = json.loads(files[WORDS]), load(files[TENSORS])
            mark = Mark(**words["journal"]) if copy is None else Mark.of(intact_lines(copy))
        except (ValueError, KeyError, TypeError, SafetensorError) as problem:
            raise ArtifactRefused(f"{folder} holds hashes but not its own format: {problem}") from problem
        state = state_of(words, tensors, folder)
        if mark.lines != state.steps:
            where = folder / (WORDS if copy is None else STEPS)
            raise ArtifactRefused(f"{where} has {mark.lines} steps of the journal, not the {state.steps} of the state")
        return Checkpoint(state, mark, words["elapsed_s"], copy)
