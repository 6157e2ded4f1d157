"""The run folder: what a run leaves behind, written so that a kill at any instruction loses one step at
most.

    runs/x/ lock  status.json  job.yaml  environment.json  steps.jsonl
            ckpt/step-000012/ {state.safetensors, state.json, steps.jsonl, MANIFEST.json}
            evaluation/ {start, tuned}.safetensors    tuned/    report.html    report.json

Every file is written beside its place, synced and renamed; a checkpoint is read again by its hashes before
an older one goes. A checkpoint carries the journal up to its own step, so that it stands alone. Nothing
here is pickled.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import signal
import socket
import stat
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from genbo.cli.errors import ArtifactRefused, GenboError, StorageFailed, UserMistake

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.loop import State

SCHEMA = 1
SEAL = "sha256"  # the key of a small file's own hash
KEEP = 2  # checkpoints, counting only those whose hashes hold
TENSORS, WORDS, STEPS, MANIFEST = "state.safetensors", "state.json", "steps.jsonl", "MANIFEST.json"
ENVIRONMENT, STATUS, JOB, REPORT, LOCK = "environment.json", "status.json", "job.yaml", "report.json", "lock"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
BROKEN = {errno.EIO, errno.EROFS, errno.EXDEV, errno.ENODEV, errno.ESTALE}
FORBIDDEN = {errno.EACCES, errno.EPERM}
FREE_KEYS = {
    "output",
    "budget.minutes",
    "model.batch",
}  # may differ when a run is resumed: they change no noise

STATES = ("running", "done", "preempted", "diverged", "failed")

Document = dict[str, Any]


# -- faults, for tests ---------------------------------------------------------------------------------------

_passed: dict[str, int] = {}


def fault(point: str) -> None:
    """Where GENBO_FAULT=point:kind:nth strikes, the nth time that this process comes by (from 1)."""
    wanted = os.environ.get("GENBO_FAULT")
    if not wanted:
        return
    name, kind, nth = (*wanted.split(":"), "1")[:3]
    _passed[point] = _passed.get(point, 0) + 1
    if name != point or _passed[point] != int(nth):
        return
    match kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "term":
            os.kill(os.getpid(), signal.SIGTERM)
        case "int":
            os.kill(os.getpid(), signal.SIGINT)
        case "twice":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        case "eio":
            raise OSError(errno.EIO, os.strerror(errno.EIO), point)
        case "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), point)
        case "raise":
            raise RuntimeError(f"fault at {point}")


@contextmanager
def storage(folder: Path | None = None) -> Iterator[None]:
    """A disk that is full or broken ends the run with a sentence; `folder` is where the run writes."""
    try:
        yield
    except GenboError:
        raise
    except Exception as problem:  # libraries wrap what the system told them in errors of their own
        if (ended := _of_storage(problem, folder)) is None:
            raise
        raise ended from problem


def _of_storage(problem: BaseException, folder: Path | None) -> StorageFailed | None:
    """The end that an error of the system stands for, or None where it is of another kind."""
    number = error_number(problem)
    inside = [name for name in _names_in(problem) if folder is None or name.is_relative_to(folder.absolute())]
    where = in_its_place(inside[0]) if inside else folder or "the run folder"
    if number in FULL:
        free = shutil.disk_usage(folder).free if folder is not None and folder.is_dir() else None
        return no_space(where, getattr(problem, "needed", None), free)
    if number in BROKEN or (number in FORBIDDEN and inside and folder is not None):
        said = f"writing {where} failed: {os.strerror(number or 0)}"
        return StorageFailed(f"{said}; mend the storage, then go on with --resume", resumable=True)
    return None


def in_its_place(beside: Path) -> Path:
    """The name that a file or a folder will have which is written beside its place."""
    return Path(*(re.sub(r"^\.tmp-(?:old-)?(.+)-[0-9a-f]{8}$", r"\1", part) for part in beside.parts))


def no_space(where: Path | str, needed: int | None, free: int | None) -> StorageFailed:
    """The end of a run whose disk is full; `needed` and `free` are bytes."""
    sizes = []
    if needed is not None:
        sizes.append(f"{megabytes(needed)} needed")
    if free is not None:
        quota = needed is not None and free > needed + BLOCKS
        sizes.append(f"{megabytes(free)} free" + (", so a quota or the disk's own table is full" if quota else ""))
    listed = f" ({', '.join(sizes)})" if sizes else ""
    return StorageFailed(
        f"no space left while writing {where}{listed}; make room, then go on with --resume", resumable=True
    )


BLOCKS = 1_000_000  # bytes that a disk's blocks and tables may round away


def megabytes(size: int) -> str:
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= least:
            return f"{size / least:.1f} {unit}"
    return f"{size} bytes"


def error_number(problem: BaseException) -> int | None:
    """The system's number of an error, be it Python's own or in the words of a library that met it."""
    if isinstance(problem, OSError):
        return problem.errno
    said = str(problem)
    if "No space left on device" in said:
        return errno.ENOSPC
    found = _NUMBER.search(said)
    return int(found[1]) if found else None


_NUMBER = re.compile(r"(?:\bos error |\bOs { code: |\[Errno )(\d+)")  # as Rust and Python write it


def _names_in(problem: BaseException) -> list[Path]:
    """The files of an error, what was written before what was read."""
    names = (getattr(problem, "filename2", None), getattr(problem, "filename", None))
    return [Path(os.fsdecode(name)).absolute() for name in names if isinstance(name, (str, bytes))]


# -- files ---------------------------------------------------------------------------------------------------


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, data: bytes) -> None:
    """A file that is on the disk when this returns."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with sized(path, len(data)), os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def sized(path: Path, needed: int) -> Iterator[None]:
    """An error in writing says what was written, and how many bytes it needed."""
    try:
        yield
    except OSError as problem:
        problem.filename = problem.filename or str(path)
        problem.needed = needed  # type: ignore[attr-defined]
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """The whole file or the one before it, never a part."""
    beside = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        write_new(beside, data)
        fault(f"{path.name}.before_rename")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)


def strict(value: Any) -> Any:
    """Numbers that JSON cannot hold become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): strict(v) for k, v in value.items()}
    return [strict(v) for v in value] if isinstance(value, (list, tuple)) else value


def to_json(value: Any, *, indent: int | None = 2) -> bytes:
    return (json.dumps(strict(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode(
        "utf-8", "backslashreplace"
    )  # half of a surrogate pair, as in a file's name that is not UTF-8, becomes an escape of JSON


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, to_json(value))


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as problem:
        raise ArtifactRefused(f"{path} is not readable as JSON ({problem})") from problem


def write_sealed(path: Path, document: Document) -> None:
    """A JSON object with the hash of the rest of it, which tells later whether it was damaged."""
    document = strict(document)
    write_json(path, {**document, SEAL: sha256(to_json(document))})


def read_sealed(path: Path) -> Document | None:
    """The object in a file of `write_sealed`, without its hash; None where there is none, or it is damaged.

    What an earlier genbo wrote has no hash, and is taken as it is.
    """
    try:
        found = json.loads(path.read_bytes()) if is_plain_file(path) else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    seal = found.pop(SEAL, None)
    if seal is not None:
        return found if seal == sha256(to_json(found)) else None
    return None if _seals(found) else found


def _seals(found: Document) -> bool:
    """Whether one of the values is the hash of all others: a seal whose name was damaged."""
    texts = (key for key, value in found.items() if isinstance(value, str) and len(value) == len(sha256(b"")))
    return any(found[key] == sha256(to_json({k: v for k, v in found.items() if k != key})) for key in texts)


def is_plain_file(path: Path) -> bool:
    """A file that is neither a link nor anything that could block who opens it."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- the journal ---------------------------------------------------------------------------------------------


def intact_lines(data: bytes) -> list[bytes]:
    """The lines that were written whole, each a JSON object, up to the first that was not."""
    lines = []
    for line in data.splitlines(keepends=True):
        try:
            whole = line.endswith(b"\n") and isinstance(json.loads(line), dict)
        except (ValueError, RecursionError):
            whole = False
        if not whole:
            break
        lines.append(line)
    return lines


def read_journal(path: Path) -> list[Document]:
    """Every whole record; an empty list where there is no journal yet."""
    data = path.read_bytes() if path.is_file() else b""
    return [json.loads(line) for line in intact_lines(data)]


class Journal:
    """One JSON object a line, appended and synced. Opening it cuts a torn last line off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = intact_lines(path.read_bytes()) if path.is_file() and not path.is_symlink() else []
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o666)
        length = sum(map(len, self.lines))
        if os.fstat(self._descriptor).st_size != length:
            os.ftruncate(self._descriptor, length)
            os.fsync(self._descriptor)

    def append(self, record: Mapping[str, Any]) -> None:
        line = to_json(record, indent=None)
        fault("journal.before")
        half = len(line) // 2
        with sized(self.path, len(line)):
            self._write(line[:half])
            fault("journal.torn")
            self._write(line[half:])
            os.fsync(self._descriptor)
        self.lines.append(line)
        fault("journal.after")

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]

    def restore(self, data: bytes) -> None:
        """Puts the journal back to what a checkpoint saw."""
        if data == b"".join(self.lines):
            return
        os.close(self._descriptor)
        write_atomic(self.path, data)
        self.__init__(self.path)  # type: ignore[misc]

    @property
    def data(self) -> bytes:
        return b"".join(self.lines)

    @property
    def records(self) -> list[Document]:
        return [json.loads(line) for line in self.lines]

    def close(self) -> None:
        os.close(self._descriptor)


# -- checkpoints ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """All that it takes to go on: the loop's state, the journal up to it, and the time spent so far."""

    state: State
    steps: bytes
    elapsed_s: float


class Corrupt(Exception):
    """A checkpoint that does not hold what its manifest says; it names the file."""


def kinds() -> dict[str, str]:
    """Every field of the loop's state and how it is kept: a tensor, tensors by name, or a plain value."""
    from typing import get_type_hints

    from torch import Tensor

    from genbo.bilevel.loop import State

    known = {Tensor: "tensor", dict[str, Tensor]: "tensors"}
    hints = get_type_hints(State)
    return {field.name: known.get(hints[field.name], "value") for field in fields(State)}


def tensors_of(state: State) -> dict[str, Tensor]:
    """Every tensor of a state by its path, on the CPU: `u`, `optimizer.<name>`, ..."""
    found: dict[str, Tensor] = {}
    for name, kind in kinds().items():
        value = getattr(state, name)
        if kind == "tensor":
            found[name] = value.cpu()
        elif kind == "tensors":
            found |= {f"{name}.{key}": tensor.cpu().contiguous() for key, tensor in value.items()}
    return found


def words_of(checkpoint: Checkpoint) -> Document:
    state = checkpoint.state
    return {
        "schema": SCHEMA,
        "elapsed_s": checkpoint.elapsed_s,
        "values": {name: getattr(state, name) for name, kind in kinds().items() if kind == "value"},
        "tensors": {k: {"shape": list(v.shape), "dtype": str(v.dtype)} for k, v in tensors_of(state).items()},
    }


def state_of(words: Document, tensors: Mapping[str, Tensor], where: Path) -> State:
    """The inverse of `tensors_of` and `words_of`; every difference from what was declared is an error."""
    from genbo.bilevel.loop import State

    _check_tensors(words["tensors"], tensors, where / TENSORS)
    parts = dict(words["values"])
    for name, kind in kinds().items():
        if kind == "tensors":
            nested = {k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(f"{name}.")}
            parts[name] = nested
        elif kind == "tensor" and name in tensors:
            parts[name] = tensors[name]
    absent = [name for name in kinds() if name not in parts]
    strange = [name for name in parts if name not in kinds()]
    strange += [key for key in tensors if key.split(".")[0] not in kinds()]
    if absent or strange:
        said = [f"{name!r} is missing" for name in absent] + [f"{name!r} does not belong here" for name in strange]
        raise ArtifactRefused(f"{where}: {'; '.join(said)}")
    return State(**parts)


def _check_tensors(declared: Mapping[str, Any], tensors: Mapping[str, Tensor], file: Path) -> None:
    for key in declared.keys() - tensors.keys():
        raise ArtifactRefused(f"{file}: the tensor {key!r} is missing")
    for key in tensors.keys() - declared.keys():
        raise ArtifactRefused(f"{file}: the tensor {key!r} does not belong here")
    for key, tensor in tensors.items():
        said, found = declared[key], {"shape": list(tensor.shape), "dtype": str(tensor.dtype)}
        if said != found:
            raise ArtifactRefused(f"{file}: the tensor {key!r} is {found}, not {said}")
        if not tensor.isfinite().all():
            raise ArtifactRefused(f"{file}: the tensor {key!r} holds numbers that are not finite")


def manifest_of(files: Mapping[str, bytes], job: str, step: int, parent: int | None) -> Document:
    described = {name: {"sha256": sha256(data), "bytes": len(data)} for name, data in files.items()}
    manifest = {
        "schema": SCHEMA,
        "genbo": version(),
        "job": job,
        "step": step,
        "parent": parent,
        "files": described,
    }
    return {**manifest, "sha256": sha256(to_json(manifest))}


def read_manifest(folder: Path) -> Document:
    """The manifest of a checkpoint, equal to its own hash; the files that it names are not looked at."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        own = {k: v for k, v in manifest.items() if k != "sha256"}
        genuine = manifest["sha256"] == sha256(to_json(own))
    except (OSError, ValueError, AttributeError, TypeError, KeyError, RecursionError) as problem:
        raise Corrupt(folder / MANIFEST) from problem
    if not genuine or folder.name != step_name(manifest.get("step", -1)):
        raise Corrupt(folder / MANIFEST)
    if manifest["schema"] != SCHEMA:
        raise ArtifactRefused(
            f"{folder} was written by genbo {manifest['genbo']} in format {manifest['schema']}; "
            f"this genbo reads format {SCHEMA}: go on with that version"
        )
    return dict(manifest)


def read_verified(folder: Path) -> tuple[Document, dict[str, bytes]]:
    """The manifest and the files of a checkpoint, each equal to its hash."""
    manifest, files = read_manifest(folder), {}
    for name, said in manifest["files"].items():
        try:
            files[name] = (folder / name).read_bytes()
        except OSError as problem:
            raise Corrupt(folder / name) from problem
        if len(files[name]) != said["bytes"] or sha256(files[name]) != said["sha256"]:
            raise Corrupt(folder / name)
    return manifest, files


def step_name(step: int) -> str:
    return f"step-{step:06d}"


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
        files = {TENSORS: save(tensors), WORDS: to_json(words_of(checkpoint)), STEPS: checkpoint.steps}
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
        self.skipped = []
        for folder in self.folders():
            try:
                manifest, files = read_verified(folder)
            except Corrupt as problem:
                self.skipped.append(problem.args[0])
                continue
            if manifest["job"] != self.job:
                raise UserMistake(f"{folder} belongs to another job; give this one an output of its own")
            return self._open(folder, files)
        if self.skipped:
            named = ", ".join(str(p) for p in self.skipped)
            raise ArtifactRefused(f"no checkpoint is intact: {named}; start again with --overwrite")
        return None

    def _open(self, folder: Path, files: Mapping[str, bytes]) -> Checkpoint:
        from safetensors import SafetensorError
        from safetensors.torch import load

        for name in (TENSORS, WORDS, STEPS):
            if name not in files:
                raise ArtifactRefused(f"{folder / MANIFEST} does not list {name}")
        try:
            words, tensors = json.loads(files[WORDS]), load(files[TENSORS])
        except (ValueError, SafetensorError) as problem:
            raise ArtifactRefused(f"{folder} holds hashes but not its own format: {problem}") from problem
        state = state_of(words, tensors, folder)
        if len(intact_lines(files[STEPS])) != state.steps:
            raise ArtifactRefused(f"{folder / STEPS} does not hold the {state.steps} steps that {WORDS} speaks of")
        return Checkpoint(state, files[STEPS], words["elapsed_s"])


# -- the folder ----------------------------------------------------------------------------------------------


def version() -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("genbo")
    except PackageNotFoundError:
        return "unknown"


def flat(document: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a document with its dotted name."""
    if isinstance(document, Mapping) and document:
        for key, value in document.items():
            yield from flat(value, f"{prefix}{key}.")
    elif isinstance(document, (list, tuple)) and document:
        for index, value in enumerate(document):
            yield from flat(value, f"{prefix}{index}.")
    else:
        yield prefix.removesuffix("."), document


def decisive(document: Document) -> Document:
    """The leaves that numbers of tuning depend on: judges look at its end alone."""
    return {k: v for k, v in flat(strict(document)) if k not in FREE_KEYS and not k.startswith("evaluate.judges")}


def judges_in(document: Document) -> Any:
    """Those of a job's document, as they are kept."""
    return without_secrets(strict((document.get("evaluate") or {}).get("judges", [])))


def digest_of(document: Document) -> str:
    return sha256(json.dumps(decisive(document), sort_keys=True).encode())


def differing(stored: Document, wanted: Document) -> list[str]:
    """`key: stored value -> wanted value` for every leaf that differs."""
    a, b = decisive(stored), decisive(wanted)
    absent = "(none)"
    names = [name for name in {**a, **b} if a.get(name, absent) != b.get(name, absent)]
    return [f"{name}: {a.get(name, absent)} -> {b.get(name, absent)}" for name in sorted(names)]


def is_run(path: Path) -> bool:
    """Whether a run of genbo lives here: by its status, by the first line of the job that it keeps, or by its work."""
    return read_status(path) is not None or _keeps_a_job(path) or job_of(path) is not None


def read_status(path: Path) -> Document | None:
    """What `status.json` says; None where there is none, or it is damaged."""
    found = read_sealed(path / STATUS)
    kinds = {"schema": int, "last_step": int, "resumable": bool, "reason": str | None}
    if found is None or found.get("state") not in STATES:
        return None
    return found if all(isinstance(found.get(key, found), kind) for key, kind in kinds.items()) else None


def read_report(path: Path) -> Document | None:
    """The object of `report.json`; None where there is none, or it is not what was written."""
    place, status = path / REPORT, read_status(path) or {}
    try:
        data = place.read_bytes() if is_plain_file(place) else b""
        found = json.loads(data)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or "headline" not in found:
        return None
    return found if status.get("report") in (None, sha256(data)) else None


def _keeps_a_job(path: Path) -> bool:
    try:
        with (path / JOB).open("rb") if is_plain_file(path / JOB) else BytesIO() as file:
            return file.readline() == HEADER
    except OSError:
        return False


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


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the run folder for this process; the kernel lets go of it whatever happens to the process."""
    with _lock_file(path / LOCK) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(path, file.read()) from None
        except OSError as problem:
            raise UserMistake(f"{path} cannot be locked ({problem.strerror}); set an output on another disk") from None
        _sign(file)
        yield


def _in_use(path: Path, signed: str) -> UserMistake:
    return UserMistake(f"{path} is locked by {signed.strip() or 'another process'}")


@contextmanager
def _lock_file(place: Path) -> Iterator[IO[str]]:
    """The file that is locked, open to be read and signed."""
    try:
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as problem:
        if problem.errno in FULL | BROKEN:
            raise
        raise ArtifactRefused(f"{place} cannot be opened as a plain file ({problem.strerror}); move it away") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ArtifactRefused(f"{place} is no plain file; move it away")
    with os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace") as file:
        yield file


def _sign(file: IO[str]) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    file.seek(0)
    file.truncate()
    file.write(f"pid {os.getpid()} on {socket.gethostname()} since {since}\n")
    file.flush()


def holder(path: Path) -> str | None:
    """Who holds the lock of a run folder now, or None."""
    if not is_plain_file(path / LOCK):
        return None
    try:
        with (path / LOCK).open(encoding="utf-8", errors="replace") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "another process"
    except OSError:
        return None
    return None


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
        said = {
            "schema": SCHEMA,
            "state": state,
            "reason": reason,
            "last_step": last_step,
            "resumable": resumable,
        }
        if state == "done" and (self.path / REPORT).is_file():
            said["report"] = sha256_of(self.path / REPORT)
        write_json(self.path / STATUS, said)

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
        before, now = (dict(flat({**said, "judges": None})) for said in (kept, environment))
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        return [f"{name} was {before.get(name)}, is {now.get(name)}" for name in changed]

    def close(self) -> None:
        self.journal.close()


HEADER = b"# The job as it was run, with every default.\n"
SEALED = "# sha256 of what follows: "
FOLDERS = ("ckpt", "banks", "weights", "evaluation", "tuned", "network")
FILES = (STEPS, ENVIRONMENT, REPORT, "report.html")
MARKS = (JOB, STATUS)  # what says that a folder is a run
UNFINISHED = re.compile(r"\.tmp-.+-[0-9a-f]{8}")  # what a write leaves that was killed
SIGNED = re.compile(r"(pid \d+ on .* since .*\n?)?")  # all that a lock of genbo's holds


@contextmanager
def opened(path: Path, document: Document, *, resume: bool, overwrite: bool) -> Iterator[Run]:
    """The run folder at `path`, new or gone on with, locked until the end; `document` is the resolved job.

    A folder that is refused is left as it was.
    """
    if path.is_dir():
        _admit(path, resume=resume, overwrite=overwrite, held=holder(path))
    try:
        path.mkdir(parents=True, exist_ok=True)
        fault("folder.made")
    except (PermissionError, NotADirectoryError, FileExistsError) as problem:
        raise UserMistake(f"the output folder {path} cannot be made: {problem.strerror}") from problem
    except OSError as problem:
        if problem.errno not in {errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP}:
            raise
        raise UserMistake(f"the output folder {path} cannot be made: {problem.strerror}") from problem
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
        said = "holds no genbo run to resume" if resume else "is not empty, and holds no run of genbo"
        raise UserMistake(f"{path} {said}; set another output")
    if held:
        raise _in_use(path, held)
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
    own, stored, worked = digest_of(document), _stored_job(path / JOB), job_of(path)
    if worked == own or (stored is None and worked is None):
        if stored is None or digest_of(stored) != own or judges_in(stored) != judges_in(document):
            _write_job(path / JOB, document)
        return
    if stored is None:
        raise UserMistake(
            f"{path / JOB} is damaged, and what was computed in {path} belongs to another job; "
            "give the job that it was begun with, set another output, or --overwrite"
        )
    if changes := differing(stored, document):
        listed = "; ".join(changes[:8]) + (f"; and {len(changes) - 8} more" if len(changes) > 8 else "")
        raise UserMistake(f"{path} is a run of another job ({listed}); undo that, set another output, or --overwrite")
    if judges_in(stored) != judges_in(document):
        _write_job(path / JOB, document)


def _write_job(place: Path, document: Document) -> None:
    body = to_yaml(document).removeprefix(HEADER)
    write_atomic(place, HEADER + f"{SEALED}{sha256(body)}\n".encode() + body)


def _stored_job(place: Path) -> Document | None:
    """The job that a run keeps; None where it keeps none, or a damaged one."""
    if not is_plain_file(place):
        return None
    seal, _, body = place.read_bytes().removeprefix(HEADER).partition(b"\n")
    if seal.startswith(SEALED.encode()) and seal != f"{SEALED}{sha256(body)}".encode():
        return None
    try:
        return read_yaml(place)
    except ArtifactRefused:
        return None


def to_yaml(document: Document) -> bytes:
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 110
    buffer = BytesIO()
    yaml.dump(strict(document), buffer)
    return HEADER + buffer.getvalue()


def read_yaml(path: Path) -> Document:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        document = YAML(typ="safe", pure=True).load(path.read_text("utf-8"))
    except (YAMLError, ValueError, RecursionError) as problem:
        raise ArtifactRefused(f"{path} is not readable: {problem}") from problem
    if not isinstance(document, dict):
        raise ArtifactRefused(f"{path} is not a job")
    return document


@contextmanager
def folder_in_place(target: Path, needed: int = 0) -> Iterator[Path]:
    """The name of a folder to make beside its place; it moves there whole, in place of one that was there.

    `needed` bytes at least will be written into it: where they are not free, nothing is begun.
    """
    beside = target.with_name(f".tmp-{target.name}-{uuid.uuid4().hex[:8]}")
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise no_space(target.absolute(), needed, free)
    try:
        fault(f"{target.name}.begin")
        yield beside
        for file in sorted(beside.rglob("*"), reverse=True):
            _sync(file)
        sync_folder(beside)
        fault(f"{target.name}.before_rename")
        if target.exists():
            os.replace(target, target.with_name(f".tmp-old-{target.name}-{uuid.uuid4().hex[:8]}"))
        os.replace(beside, target)
        sync_folder(target.parent)
        fault(f"{target.name}.after_rename")
    except Exception as problem:
        if error_number(problem) in FULL:
            raise no_space(target.absolute(), needed or None, free) from problem
        raise
    finally:
        for stale in (beside, *target.parent.glob(f".tmp-old-{target.name}-*")):
            shutil.rmtree(stale, ignore_errors=True)


def _sync(path: Path) -> None:
    if path.is_dir():
        sync_folder(path)
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())


# -- evaluation ----------------------------------------------------------------------------------------------


def write_tensors(path: Path, tensors: Mapping[str, Tensor], words: Mapping[str, Any]) -> None:
    """Tensors and words in one safetensors file that can tell when it was damaged."""
    from safetensors.torch import save

    said = json.dumps(strict(words), sort_keys=True)
    write_atomic(path, save(dict(tensors), {"words": said, "sha256": _digest(tensors, said)}))


def read_tensors(path: Path, words: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """The tensors, where the file is intact and its words include these; else None: make it again."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not path.is_file():
        return None
    try:
        found = words_in(path)
        if any(found.get(key) != value for key, value in strict(words).items()):
            return None
        tensors = load(path.read_bytes())
    except (ArtifactRefused, SafetensorError, ValueError):
        return None
    return tensors if _stated(path) == _digest(tensors, json.dumps(found, sort_keys=True)) else None


def words_in(path: Path) -> Document:
    """The words of a file of `write_tensors`."""
    try:
        return dict(json.loads(_metadata(path)["words"]))
    except (KeyError, ValueError, TypeError) as problem:
        raise ArtifactRefused(f"{path} is damaged") from problem


def _metadata(path: Path) -> dict[str, str]:
    """safetensors' header: eight bytes of length, then JSON."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    said = header.get("__metadata__") if isinstance(header, dict) else None
    return said if isinstance(said, dict) else {}


def _stated(path: Path) -> str:
    return _metadata(path).get("sha256", "")


def _digest(tensors: Mapping[str, Tensor], words: str) -> str:
    digest = hashlib.sha256(words.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(-1).numpy().tobytes())
    return digest.hexdigest()


# -- signals -------------------------------------------------------------------------------------------------


class Signals:
    """SIGTERM and SIGINT ask for an end after the step; a second one ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may: elsewhere the caller has its own way to stop
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number

    @property
    def exit_code(self) -> int:
        return 130 if self.received == signal.SIGINT else 75


def without_secrets(value: Any, secrets: Sequence[str] | None = None) -> Any:
    """The home folder becomes ~, and what the environment calls a token, key or password becomes ***."""
    if secrets is None:
        secrets = _secrets()
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "***")
        home = str(Path.home())
        return value.replace(home, "~") if len(home) > 1 else value
    if isinstance(value, Mapping):
        return {k: without_secrets(v, secrets) for k, v in value.items()}
    return [without_secrets(v, secrets) for v in value] if isinstance(value, (list, tuple)) else value


def _secrets() -> list[str]:
    words = ("TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")
    return [v for k, v in os.environ.items() if len(v) >= 8 and any(w in k.upper() for w in words)]
