"""The README does what it says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from genbo.cli.commands import check
from genbo.cli.job.job import JobMistakes, read_job

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_python_runs(tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    job = tmp_path / "examples" / "guidance.yaml"
    text = job.read_text()
    assert "steps: 10}" in text
    job.write_text(text.replace("steps: 10}", "steps: 2}"))  # the same run, sooner
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plain, ours = blocks("python")
    names: dict = {}
    exec(compile(ours, "README.md", "exec"), names)  # noqa: S102 - the README is ours
    assert len(names["images"]) == 4
    exec(compile(plain.replace("runs/guidance", "runs/quick"), "README.md", "exec"), names)  # noqa: S102
    assert type(names["pipeline"].scheduler).__name__ == "DPMSolverMultistepScheduler"


def test_the_job_is_right(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(blocks("yaml")[0])
    read_job(tmp_path / "job.yaml")


EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
YOURS = [path for path in EXAMPLES if re.match("sd|flux", path.name)]  # these want weights that are not shipped
IMAGES = "noise-schedule-fashion-mnist.yaml"  # and this one images


@pytest.mark.parametrize("example", [path for path in EXAMPLES if path not in YOURS], ids=lambda path: path.name)
def test_the_examples_are_right(example, fashion):
    job = read_job(example, [f"data.path={fashion}"] if example.name == IMAGES else [])
    assert job.document()["version"] == 1
    assert YAML(typ="safe").load(example)["output"].startswith("runs/")


def test_an_example_lacks_its_images_and_nothing_else(tmp_path):
    with pytest.raises(JobMistakes) as found:
        read_job(ROOT / "examples" / IMAGES, [f"data.path={tmp_path / 'nowhere'}"])
    (mistake,) = found.value.mistakes
    assert mistake.where.startswith("data") and "give a folder of images, idx files" in mistake.message


def test_an_example_reads_the_images_that_it_is_given(fashion, capsys):
    assert check.run(ROOT / "examples" / IMAGES, [f"data.path={fashion}"], as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["exact"] is True


@pytest.mark.parametrize("example", YOURS, ids=lambda path: path.name)
def test_examples_for_your_own_weights_lack_nothing_else(example):
    with pytest.raises(JobMistakes) as found:
        read_job(example)
    assert all(re.search("there is no (folder|file)|no file", m.message) for m in found.value.mistakes)
    assert {m.where for m in found.value.mistakes} >= {"model.pretrained", "prompts", "evaluate.prompts"}


def test_the_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", "\n".join(blocks("bash")), flags=re.MULTILINE)) <= targets


def test_the_commands_exist():
    from genbo.cli.main import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert set(re.findall(r"genbo ([a-z]+) ", "\n".join(blocks("bash")))) <= known | {"list"}
