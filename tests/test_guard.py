"""What the tests read is in the checkout, the environment and temporary folders, and the guard sees what is not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from tests.guard import sitecustomize as guard

ROOT = Path(__file__).parent.parent
ELSEWHERE = "/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz"


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A note of this test's own: what it does on purpose fails nothing."""
    place = tmp_path / "noted"
    monkeypatch.setenv(guard.NOTED, str(place))
    return place


@pytest.mark.parametrize(
    ("path", "is_foreign"),
    [
        (ELSEWHERE, True),
        ("/usr/share/datasets", True),
        ("/home/ada/.cache/genbo/speed.json", True),
        ("/root/.cache/huggingface/hub", True),
        ("/tmpfiles", True),  # no part of a name counts
        (b"/srv/models", True),
        (ROOT / "README.md", False),
        (str(ROOT), False),
        (Path(sys.prefix) / "pyvenv.cfg", False),
        (os.__file__, False),
        (Path(tempfile.gettempdir()) / "x", False),
        ("/proc/self/status", False),
        ("/etc/mime.types", False),
        (3, False),
        (None, False),
    ],
    ids=str,
)
def test_which_paths_are_foreign(path, is_foreign):
    assert guard.is_foreign(path, guard.folders()) is is_foreign


def test_relative_paths_are_where_they_lead(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert not guard.is_foreign("here", guard.folders())
    assert guard.is_foreign("../" * 30 + "srv/models", guard.folders())


def test_what_this_process_opens_is_noted(noted):
    with suppress(OSError):
        Path(ELSEWHERE).read_bytes()
    with suppress(OSError):
        os.listdir("/usr/share")
    (noted.parent / "mine").write_text("one's own")
    assert noted.read_text().splitlines() == [f"open {ELSEWHERE}", "os.listdir /usr/share"]


def test_which_hosts_it_asks_for_is_noted(noted):
    with suppress(OSError):
        socket.create_connection(("192.0.2.1", 9), timeout=0.001)  # an address that nobody has
    assert "socket.connect 192.0.2.1" in noted.read_text().splitlines()


def test_what_another_process_opens_is_noted(noted):
    program = f"import contextlib\nwith contextlib.suppress(OSError):\n    open({ELSEWHERE!r})"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert noted.read_text().splitlines() == [f"open {ELSEWHERE}"]


@pytest.mark.parametrize("name", ["HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "TORCH_HOME", "MPLCONFIGDIR"])
def test_no_home_is_the_users(name):
    place = Path(os.environ[name])
    assert place.is_dir() and place.is_relative_to(tempfile.gettempdir())
    assert Path.home() == Path(os.environ["HOME"])
