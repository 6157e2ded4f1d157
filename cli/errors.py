"""The named ends of a command: each error is a sentence for the user and carries its exit code."""

from __future__ import annotations


class GenboError(Exception):
    """An end that has a name; its text is a sentence, printed without a traceback."""

    exit_code = 1
    state = "failed"  # what status.json says of a run that ends so

    def __init__(self, message: str, *, resumable: bool = False) -> None:
        super().__init__(message)
        self.resumable = resumable


class UserMistake(GenboError):
    """A job, an option or a folder that cannot work; nothing was started."""

    exit_code = 2


class ArtifactRefused(GenboError):
    """A file that is corrupt, unsafe or incomplete."""

    exit_code = 3


class Diverged(GenboError):
    """Numbers went wrong, or never moved; the last good values are kept."""

    exit_code = 4
    state = "diverged"


class OutOfMemory(GenboError):
    exit_code = 5


class StorageFailed(GenboError):
    """The disk is full, read-only or broken."""

    exit_code = 6


class Preempted(GenboError):
    """Stopped by a signal with a checkpoint behind it; `exit_code` is 75 for SIGTERM and 130 for SIGINT."""

    exit_code = 75
    state = "preempted"

    def __init__(self, message: str, *, exit_code: int = 75) -> None:
        super().__init__(message, resumable=True)
        self.exit_code = exit_code
