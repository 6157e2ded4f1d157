"""How fast this machine was: seconds an image forward, remembered from earlier runs in the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genbo.diffusion.process import Meter, Whole

if TYPE_CHECKING:
    from genbo.cli.job.job import Job
    from genbo.cli.plan.cost import Cost
    from genbo.diffusion.process import Process

MAX_ENTRIES = 200
REST = 1.2  # of a forward pass with decoding and scoring beside it, on the bundled model
BACK = 2.6  # of a backward pass, as the way back through a sampler has it


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/genbo`, or `~/.cache/genbo`; RuntimeError where there is no home."""
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "genbo"


def record_speed(job: Job, image_forwards: int, elapsed_s: float) -> bool:
    """Remember what a run took; False where there is nothing to learn or the cache cannot be written."""
    if image_forwards <= 0 or not elapsed_s > 0:
        return False
    try:
        path = cache_folder() / "speed.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        known = _read(path)
        known.pop(key := key_of(job), None)
        known[key] = elapsed_s / image_forwards
        _write(path, dict(list(known.items())[-MAX_ENTRIES:]))
    except (OSError, RuntimeError):
        return False
    return True


def expected_s(job: Job, image_forwards: int) -> float | None:
    """Seconds that so many image forwards will take, by what was seen; None where nothing was."""
    try:
        pace = _read(cache_folder() / "speed.json").get(key_of(job))
    except RuntimeError:
        return None
    return None if pace is None else pace * image_forwards


def guessed_s(process: Process, prompt: str, *costs: Cost) -> list[float]:
    """Seconds that each of these will take, by one call of the network: the rest is small beside it."""
    pace = _call_s(process, prompt)
    return [pace * (REST * cost.image_forwards + BACK * cost.image_backwards) for cost in costs]


def _call_s(process: Process, prompt: str) -> float:
    """Seconds an image forward, as one call takes them."""
    import torch

    from genbo.diffusion.seed import Noise

    if isinstance(process.model, Whole):
        return _drawn_s(process, prompt) / REST
    model, rows = process.model, min(2 * process.batch, 64)
    condition = model.encode([prompt]).take(torch.zeros(rows, dtype=torch.long, device=model.device))
    x = Noise(range(rows), model.shape).draw().to(model.device, model.dtype)
    time_ = process.grid.time[0, :1].expand(rows).to(model.device, model.dtype)
    with torch.no_grad():
        for _ in range(2):  # the first warms up
            began = time.perf_counter()
            model(x, time_, condition).sum().item()  # waits for the device
            seconds = time.perf_counter() - began
    return seconds / rows


def _drawn_s(process: Process, prompt: str) -> float:
    """Seconds an image forward of a model that draws by itself, from one image of its own."""
    from genbo.diffusion.sample import sample
    from genbo.diffusion.seed import Batch

    alone = replace(process, meter=Meter())
    began = time.perf_counter()
    sample(alone, Batch((prompt,), (0,))).sum().item()  # waits for the device
    return (time.perf_counter() - began) / max(alone.meter.image_forwards, 1)


def key_of(job: Job) -> str:
    """What the speed depends on: machine, model, device, precision, batch, rewards, gradients or none."""
    from genbo.cli.job.job import likely_device

    options = job.model.options
    backward = goes_back(job.chosen().options)
    parts: list[Any] = [
        platform.node(),
        model_digest(job),
        likely_device(options),
        job.model.traits.dtype or "fp64",
    ]
    parts += [str(job.data)] if job.data else []  # a network of one's own is as large as its images
    if job.lower is not None and job.tilts:  # guided samples and trainings go back, weights of a bank do not
        parts += [job.lower.document("lower"), [r.document("rewards") for r in job.lower.reward]]
    parts += [job.model.steer.document()] if job.model.steer else []  # every step goes back
    parts += [job.model.batch, [r.document("rewards") for r in (*job.reward, *job.keep)], backward]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def goes_back(estimator: Any) -> bool:
    """Whether an estimator differentiates through the sampler; one of lambda only reads what was drawn."""
    return any(member is None for draw in estimator.cost(1).draws for member in draw)


def model_digest(job: Job) -> str:
    """Of the model's options, and of its files' names and sizes where it is a folder."""
    folder = job.model.traits.folder
    files = [(path.relative_to(folder), path) for path in sorted(folder.rglob("*.safetensors"))] if folder else []
    parts = [
        job.model.document("models"),
        [(str(name), path.stat().st_size) for name, path in files],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, float]:
    """What is known; a file that is damaged knows nothing."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {key: float(pace) for key, pace in known.items() if isinstance(pace, (int, float)) and 0 < pace < 1e6}


def _write(path: Path, known: dict[str, float]) -> None:
    """At once or not at all: another genbo may be reading it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".speed-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(known, file)
    os.replace(name, path)
