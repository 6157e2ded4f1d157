"""How a run ends: every end has a name in `status.json`, and an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from genbo.cli.errors import ArtifactRefused, Diverged, GenboError, OutOfMemory, UserMistake
from genbo.cli.run.disk import storage
from genbo.cli.run.folder import Run
from genbo.cli.run.redaction import without_secrets
from genbo.diffusion.room import first_line

HALF = "go on with --resume and --set model.batch=..., half of what it was"
SMALLER = "take smaller images, model.dtype: bf16, an estimator without gradients, or a larger GPU"


@contextmanager
def endings(run: Run) -> Iterator[None]:
    """Every end gets its name in `status.json`."""
    try:
        with storage(run.path), named():
            yield
    except GeneratorExit:
        _leave(run, "preempted", f"left by its caller after step {run.last_step}", resumable=True)
        raise
    except GenboError as problem:
        resumable = problem.resumable or (isinstance(problem, UserMistake) and run.last_step > 0)
        _leave(run, problem.state, str(problem), resumable=resumable)
        raise
    except Exception as problem:
        _leave(run, "failed", f"{type(problem).__name__}: {first_line(problem)}", resumable=True)
        raise


def _leave(run: Run, state: str, reason: str, *, resumable: bool) -> None:
    with suppress(OSError):  # a disk that is full has been reported already
        run.status(state, without_secrets(reason), last_step=run.last_step, resumable=resumable)


@contextmanager
def named() -> Iterator[None]:
    """Errors of the rooms below, as the ends that the contract names."""
    from genbo.bilevel.trials import NotTheSame
    from genbo.diffusion.refused import Refused
    from genbo.diffusion.room import NoRoom, is_out_of_memory

    try:
        yield
    except Refused as problem:  # mended, or passing by itself, it stops a run no more
        raise ArtifactRefused(str(problem), resumable=True) from problem
    except NotTheSame as problem:
        raise ArtifactRefused(f"the search cannot go on: {problem}") from problem
    except FloatingPointError as problem:  # a lower level left the finite numbers
        raise Diverged(f"{problem}; the last good state is kept", resumable=False) from problem
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
        way_out = SMALLER if isinstance(problem, NoRoom) else HALF
        raise OutOfMemory(f"out of memory ({first_line(problem)}); {way_out}", resumable=True) from problem
