"""Notes every file that is opened, and every host that is asked for, outside of what a fresh machine has.

`tests/conftest.py` watches the test process with it, and puts this folder first on PYTHONPATH, so that Python imports
it at the start of every process that a test starts. Standard library alone. What was noted is a line each in the file
that the environment names, and fails the test that ran just then.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

NOTED = "GENBO_TESTS_NOTED"  # the variable that names the file
WATCHED = "genbo_tests_watched"
SYSTEM = ("/proc", "/sys", "/dev", "/etc", "/run", "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
SYSTEM += ("/usr/bin", "/bin", "/usr/local/cuda", "/usr/share/zoneinfo", "/usr/share/locale")
SYSTEM += ("/usr/share/fonts", "/usr/local/share/fonts", "/usr/X11", "/usr/X11R6")  # where matplotlib looks for fonts
HERE = ("localhost", "127.0.0.1", "::1", "", None)


def folders() -> tuple[str, ...]:
    """The checkout, the environment with its Python, temporary folders, and what belongs to the system."""
    checkout = Path(__file__).parents[2]
    python = [sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values()]
    temporary = [tempfile.gettempdir(), "/tmp", "/var/tmp"]
    every = [str(checkout), *python, *temporary]
    resolved = {folder.rstrip("/") for given in every for folder in (given, os.path.realpath(given))}
    assert "" not in resolved  # a prefix of everything
    return (*sorted(resolved), *SYSTEM)


def is_foreign(path: str | bytes | int | None, known: tuple[str, ...]) -> bool:
    """Whether a path lies in none of these folders; open files (numbers) and the current folder (None) do not."""
    if path is None or isinstance(path, int):
        return False
    absolute = os.path.abspath(os.fsdecode(path))
    return not any(absolute == folder or absolute.startswith(folder + "/") for folder in known)


def watch() -> None:
    """From now on, for the rest of this process: a hook cannot be taken away, and one is enough."""
    if hasattr(sys, WATCHED):
        return
    setattr(sys, WATCHED, True)
    known, noting = folders(), False

    def note(text: str) -> None:
        nonlocal noting
        place = os.environ.get(NOTED)
        if place is None or noting:
            return
        noting = True
        try:
            with open(place, "a", encoding="utf-8") as file:
                file.write(text + "\n")
        finally:
            noting = False

    def hear(event: str, found: tuple[Any, ...]) -> None:
        if event in ("open", "os.listdir", "os.scandir"):
            if is_foreign(found[0], known):
                note(f"{event} {os.fsdecode(found[0])}")
        elif event == "socket.getaddrinfo":
            if found[0] not in HERE:
                note(f"{event} {found[0]}")
        elif event == "socket.connect" and isinstance(found[1], tuple) and found[1][0] not in HERE:
            note(f"{event} {found[1][0]}")

    sys.addaudithook(hear)


if __name__ == "sitecustomize":
    watch()
