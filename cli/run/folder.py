"""The run folder: what a run leaves behind, written so that a kill at any instruction loses one step at
most.

    runs/x/ lock  status.json  job.yaml  environment.json  steps.jsonl
            ckpt/step-000012/ {state.safetensors, state.json, environment.json, MANIFEST.json}
            evaluation/ {start, tuned}.safetensors    tuned/    report.html    report.json

Every file is written beside its place, synced and renamed; a checkpoint is read again by its hashes before
an older one goes. A checkpoint knows the length and the hash of the journal up to its own step, and does not count
where the journal does not hold these lines. Nothing here is pickled.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genbo.cli.errors import ArtifactRefused, UserMistake
from genbo.cli.run.atomic import is_plain_file
from genbo.cli.run.checkpoints import Checkpoint, Checkpoints
from genbo.cli.run.disk import storage
from genbo.cli.run.faults import fault
from genbo.cli.run.job_digest import differing, digest_of, flat, judges_in
from genbo.cli.run.job_file import keeps_a_job, stored_job, write_job
from genbo.cli.run.journal import Journal
from genbo.cli.run.json_files import Document, strict, to_json, write_json
from genbo.cli.run.layout import ENVIRONMENT, FILES, FOLDERS, JOB, LOCK, MARKS, REPORT, SCHEMA, STATUS, STEPS
from genbo.cli.run.lock import holder, in_use, locked
from genbo.cli.run.manifest import Corrupt, read_manifest
from genbo.cli.run.seals import read_sealed, sha256_of, write_sealed
from genbo.cli.run.status import read_status
from genbo.cli.run.tensors import words_in

UNFINISHED = re.compile(r"\.tmp-.+-[0-9a-f]{8}")  # what a write leaves that was killed
SIGNED = re.compile(r"(pid \d+ on .* since .*\n?)?")  # all that a lock of genbo's holds


class Run:
    """An open, locked run folder; made by `opened`."""

    def __init__(self, path: Path, document: Document) -> None:
        self.path = path
        self.document = document
        self.digest = digest_of(document)
        self.environment: Document = {}  # what the run began on
        self.journal = Journal(path / STEPS)
        self.checkpoints = Checkpoints(path / "ckpt", self.digest)
        self.last_step = self.checkpoints.newest_step() or 0

    def status(self, state: str, reason: str | None = None, *, last_step: int, resumable: bool) -> None:
        """What a script that watches the run reads; `state` is one of STATES."""
        document = {
            "schema": SCHEMA,
            "state": state,
            "reason": reason,
            "last_step": last_step,
            "resumable": resumable,
        }
        if state == "done" and (self.path / REPORT).is_file():
            document["report"] = sha256_of(self.path / REPORT)
        write_json(self.path / STATUS, document)

    def write_environment(self, environment: Document) -> list[str]:
        """Keeps what the run began on; returns what has changed since then, a sentence each."""
        place, environment = self.path / ENVIRONMENT, strict(environment)
        fresh, stored = not place.exists(), read_sealed(place)
        kept = stored or self.checkpoints.kept_environment()
        judges = {key: value for key, value in environment.items() if key == "judges"}
        self.environment = {key: value for key, value in (kept or environment).items() if key != "judges"} | judges
        if stored != self.environment:
            write_sealed(place, self.environment)
        self.checkpoints.environment = to_json(self.environment)
        if kept is None:
            return [] if fresh else [f"{ENVIRONMENT} was damaged, so what the run began on is not known"]
        before, now = (dict(flat({**each, "judges": None})) for each in (kept, environment))
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        return [f"{name} was {before.get(name)}, is {now.get(name)}" for name in changed]

    def last_safe_point(self) -> Checkpoint | None:
        """The newest checkpoint that holds, and the journal cut back to it; None where none was ever written."""
        for found in self.checkpoints.intact():
            if self.journal.restore(found.journal):
                return found
            if found.copy is not None:
                self.journal.replace(found.copy)
                return found
            if self.journal.path not in self.checkpoints.skipped:
                self.checkpoints.skipped.append(self.journal.path)
        return None

    def close(self) -> None:
        self.journal.close()


def make_folder(path: Path) -> None:
    """The folder at `path`, where it is not there yet; a UserMistake where it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        fault("folder.made")
    except (PermissionError, NotADirectoryError, FileExistsError) as problem:
        raise UserMistake(f"the output folder {path} cannot be made: {problem.strerror}") from problem
    except OSError as problem:
        if problem.errno not in {errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP}:
            raise
        raise UserMistake(f"the output folder {path} cannot be made: {problem.strerror}") from problem


@contextmanager
def opened(path: Path, document: Document, *, resume: bool, overwrite: bool) -> Iterator[Run]:
    """The run folder at `path`, new or gone on with, locked until the end; `document` is the resolved job.

    A folder that is refused is left as it was.
    """
    if path.is_dir():
        _admit(path, resume=resume, overwrite=overwrite, held=holder(path))
    make_folder(path)
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserMistake(f"the output folder {path} is not writable; set another with --set output=...")
    with storage(path), locked(path):
        _prepare(path, document, resume=resume, overwrite=overwrite)
        run = Run(path, document)
        try:
            yield run
        finally:
            run.close()


def _admit(path: Path, *, resume: bool, overwrite: bool, held: str | None = None) -> bool:
    """Whether there is a run here to go on with or to delete; raises where these flags do not allow it.

    Looks and touches nothing.
    """
    try:
        is_new = not begun(path)
    except OSError as problem:
        raise UserMistake(f"{path} cannot be looked into ({problem.strerror}); set another output") from problem
    if not is_new and not is_run(path):
        if overwrite:
            raise UserMistake(f"{path} is not a run of genbo: --overwrite leaves it alone; set another output")
        reason = "holds no genbo run to resume" if resume else "is not empty, and holds no run of genbo"
        raise UserMistake(f"{path} {reason}; set another output")
    if held:
        raise in_use(path, held)
    if is_new or resume or overwrite:
        return not is_new
    raise UserMistake(
        f"{path} is not empty; add --resume to go on with it, --overwrite to begin again, or set another output"
    )


def begun(path: Path) -> bool:
    """Whether a folder holds more than a run leaves that was ended before it had kept its job."""
    return any(not _before_the_job(entry) for entry in path.iterdir())


def _before_the_job(entry: Path) -> bool:
    if not is_plain_file(entry):
        return False
    if entry.name == LOCK:
        with entry.open(encoding="utf-8", errors="replace") as file:
            return SIGNED.fullmatch(file.read(1000)) is not None
    return entry.name.startswith(f".tmp-{JOB}-") and UNFINISHED.fullmatch(entry.name) is not None


def _prepare(path: Path, document: Document, *, resume: bool, overwrite: bool) -> None:
    inhabited = _admit(path, resume=resume, overwrite=overwrite)
    _refuse_strange(path)
    for stale in _unfinished(path):
        shutil.rmtree(stale, ignore_errors=True) if stale.is_dir() else stale.unlink()
    if inhabited and overwrite:
        _empty(path)
    _keep_job(path, document)
    fault("job.written")


def _refuse_strange(path: Path) -> None:
    """What would lead a run out of its folder, or is of another kind than what the run writes there."""
    for entry in (path / name for name in (*FOLDERS, *FILES, *MARKS)):
        if entry.is_symlink():
            raise ArtifactRefused(f"{entry} is a symbolic link; a run writes into its own folder only")
        wanted = entry.is_dir() if entry.name in FOLDERS else is_plain_file(entry)
        if entry.exists() and not wanted:
            what = "folder" if entry.name in FOLDERS else "file"
            raise ArtifactRefused(f"{entry} should be a {what}, and is not; move it away, then go on with --resume")


def _unfinished(path: Path) -> list[Path]:
    """What killed writes have left in a run folder."""
    found = [*path.glob(".tmp-*"), *(file for name in FOLDERS for file in (path / name).glob(".tmp-*"))]
    return [entry for entry in found if UNFINISHED.fullmatch(entry.name) and not entry.is_symlink()]


def _empty(path: Path) -> None:
    """Deletes what a run of genbo leaves behind and nothing else; the marks that say so go last."""
    for name in (*FOLDERS, *FILES, *MARKS):
        entry = path / name
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)


def _keep_job(path: Path, document: Document) -> None:
    """The job beside the run. What has been computed decides whose it is: a kept job that is damaged is kept anew."""
    own, stored, worked = digest_of(document), stored_job(path / JOB), job_of(path)
    if worked == own or (stored is None and worked is None):
        if stored is None or digest_of(stored) != own or judges_in(stored) != judges_in(document):
            write_job(path / JOB, document)
        return
    if stored is None:
        raise UserMistake(
            f"{path / JOB} is damaged, and what was computed in {path} belongs to another job; "
            "give the job that it was begun with, set another output, or --overwrite"
        )
    if changes := differing(stored, document):
        listed = "; ".join(changes[:8]) + (f"; and {len(changes) - 8} more" if len(changes) > 8 else "")
        raise UserMistake(
            f"{path} was made with other settings ({listed}); use the same settings, another output, or --overwrite"
        )
    if judges_in(stored) != judges_in(document):
        write_job(path / JOB, document)


def is_run(path: Path) -> bool:
    """Whether a run of genbo lives here: by its status, by the first line of the job that it keeps, or by its work."""
    return read_status(path) is not None or keeps_a_job(path) or job_of(path) is not None


def job_of(path: Path) -> str | None:
    """The digest of the job that the work in a run folder belongs to, as the work itself says; None without any."""
    for folder in sorted(path.glob("ckpt/step-*"), reverse=True):
        try:
            return str(read_manifest(folder)["job"])
        except (Corrupt, ArtifactRefused, KeyError):
            continue
    for name in ("banks", "network", "weights", "evaluation"):
        for file in sorted(path.glob(f"{name}/*.safetensors")):
            try:
                if isinstance(job := words_in(file).get("job"), str):
                    return job
            except (OSError, ArtifactRefused, ValueError):
                continue
    return None
