"""What a user installs is what stands in the repository."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("cli", "bilevel", "diffusion", "schedules", "rewards")


def tracked(*folders: str) -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return {name for name in listed.stdout.split("\n") if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        return {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}


def test_the_wheel_holds_every_room_and_its_data(wheel):
    expected = {f"genbo/{name}" for name in tracked(*ROOMS)} | {
        f"genbo/{name.removeprefix('api/')}" for name in tracked("api")
    }
    assert wheel == expected
    assert "genbo/py.typed" in wheel
    assert "genbo/diffusion/bundled/emoji/unet/diffusion_pytorch_model.safetensors" in wheel


def test_bundled_weights_are_small():
    files = [ROOT / name for name in tracked(*ROOMS) if name.endswith(".safetensors")]
    assert len(files) == 8
    assert max(file.stat().st_size for file in files) <= 16 * 2**20
    emoji = [file for file in files if "bundled/emoji/" in str(file)]
    assert sum(file.stat().st_size for file in emoji) <= 32 * 2**20


@pytest.mark.parametrize("pattern", [r"\btorch\.load\b", r"\bpickle\b", r"\byaml\.load\b", r"\beval\(", r"\bexec\("])
def test_nothing_here_runs_data(pattern):
    """No unpickling, no evaluating, in what is installed. (A network's own `.eval()` is another thing.)"""
    pattern = pattern if "eval" not in pattern else r"(?<!\.)\beval\("
    found = [
        f"{name}:{number}"
        for name in tracked(*ROOMS, "api")
        if name.endswith(".py")
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1)
        if re.search(pattern, line) and not line.lstrip().startswith("#") and "``" not in line and '"' not in line
    ]
    assert not found


def test_every_test_can_fail():
    """Each test asserts something itself, raises, or calls a helper here that does."""
    import ast

    def asserts(node: ast.AST) -> bool:
        return any(
            isinstance(n, (ast.Assert, ast.Raise))
            or (isinstance(n, ast.Attribute) and n.attr in ("assert_close", "assert_allclose", "raises", "fail"))
            for n in ast.walk(node)
        )

    def called(function: ast.FunctionDef) -> set[str]:
        calls = [n.func for n in ast.walk(function) if isinstance(n, ast.Call)]
        return {f.id for f in calls if isinstance(f, ast.Name)} | {
            f.attr for f in calls if isinstance(f, ast.Attribute)
        }

    functions = [
        (file.relative_to(ROOT), node)
        for file in sorted((ROOT / "tests").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]
    asserting = {function.name for _, function in functions if asserts(function)}
    silent = {
        f"{file}::{function.name}"
        for file, function in functions
        if function.name.startswith("test_") and not asserts(function) and not called(function) & asserting
    }
    raising = {  # what they call raises: a job's mistakes, a schema's, a process' exit code
        "tests/test_readme.py::test_the_job_is_right",
        "tests/cli/test_tune.py::test_the_rooms_below_are_not_loaded_to_show",
        "tests/cli/test_commands.py::test_the_schema_knows_every_template",
        "tests/cli/test_records.py::test_what_a_run_writes_is_in_the_records_and_in_the_schema",
        "tests/cli/test_records.py::test_what_an_earlier_version_wrote_is_read_and_comes_back_the_same",
    }
    assert silent <= raising
