"""Faults for tests: where GENBO_FAULT asks for one, the process is killed, signalled, or meets a broken disk."""

from __future__ import annotations

import errno
import os
import signal

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
