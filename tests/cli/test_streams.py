"""stdout and stderr as they are found: nothing that cannot be written changes how a command ends."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from genbo.cli.run.streams import Lenient

# A command of genbo's in a process of its own, without anything heavy: it prints, and ends as it likes.
SCRIPT = """\
import sys
from genbo.cli import main
from genbo.cli.errors import Diverged

def app():
    for _ in range(3000):
        print("0.45 \\u00b1 0.11, {lines}")
    print("\\u2265 on stderr", file=sys.stderr)
    print(sys.stdout.isatty(), sys.stdout.encoding)
    if {code} == 4:
        raise Diverged("it diverged \\u00b1")
    raise SystemExit({code})

main.app = app
sys.argv = ["genbo", "{command}"]
main.main()
"""
ENDS = {  # how a shell hands the streams on -> what an init ends with, whose lines are all that it makes
    "": 0,
    ">&-": 0,
    ">&- 2>&- <&-": 0,
    ">/dev/full": 6,
    ">/dev/full 2>/dev/full": 6,
    "| head -1; exit ${PIPESTATUS[0]}": 0,
}


def ended(command: str, code: int, redirected: str, encoding: str = "utf-8") -> subprocess.CompletedProcess[bytes]:
    script = SCRIPT.format(command=command, code=code, lines="x" * 20)
    line = f'"$0" -c "$1" {redirected}'
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    return subprocess.run(
        ["bash", "-c", line, sys.executable, script], capture_output=True, env=environment, check=False
    )


@pytest.mark.parametrize("redirected", ENDS)
def test_a_run_ends_with_its_own_exit_code(redirected: str) -> None:
    done = ended("tune", 4, redirected)
    assert (done.returncode, b"Traceback" in done.stderr, b"Exception ignored" in done.stderr) == (4, False, False)


@pytest.mark.parametrize(("redirected", "code"), ENDS.items())
def test_a_command_whose_lines_are_lost_says_so(redirected: str, code: int) -> None:
    done = ended("init", 0, redirected)
    assert done.returncode == code
    if code and "2>" not in redirected:
        assert done.stderr.decode().endswith("did not arrive on stdout: No space left on device; send it elsewhere\n")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii:strict", "cp437"])
def test_what_an_encoding_lacks_is_replaced(encoding: str) -> None:
    done, name = ended("init", 0, "", encoding), encoding.partition(":")[0]
    assert done.returncode == 0
    assert done.stdout.decode(name).startswith("0.45 " + "±".encode(name, "replace").decode(name))
    assert done.stderr.decode(name).startswith("≥".encode(name, "replace").decode(name))


def test_a_pipe_that_does_not_block_is_waited_for(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    script = f"import os; os.write(1, str(sum(iter(lambda: len(os.read({reader}, 65536)), 0))).encode())"
    with subprocess.Popen([sys.executable, "-S", "-c", script], pass_fds=[reader], stdout=subprocess.PIPE) as other:
        os.close(reader)
        stream = Lenient(writer, "w")
        data = memoryview(b"x" * 1_000_000)
        while data:
            data = data[stream.write(data) :]
        stream.close()
        assert other.stdout is not None and other.stdout.read() == b"1000000"
    assert stream.lost is None


def test_what_is_lost_is_remembered() -> None:
    with open("/dev/full", "wb") as full:
        stream = Lenient(full.fileno(), "w", closefd=False)
        assert stream.write(b"abc") == 3 and stream.write(b"d") == 1
    assert stream.lost is not None and stream.lost.errno == errno.ENOSPC
