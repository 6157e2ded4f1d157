"""Code of the user's own: only the command line allows it, and the report says what it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import genbo
from genbo.cli.commands import batch, check, tune
from genbo.cli.errors import UserMistake
from genbo.cli.job.job import JobMistakes, read_job
from genbo.cli.job.schema import job_schema
from genbo.cli.job.user_code import allowed

REWARD = """\
open("was-run", "a").write("x")

def score(images, prompts):
    return -(images - 1).square().flatten(1).sum(1)
"""
WRITTEN = "reward: {kind: quadratic, target: [1.2, 0.2]}"


@pytest.fixture
def with_code(workplace: Path) -> Path:
    """job.yaml names my_reward.py, which leaves a mark when it is run."""
    (workplace / "my_reward.py").write_text(REWARD)
    text = (workplace / "job.yaml").read_text()
    assert WRITTEN in text
    (workplace / "job.yaml").write_text(text.replace(WRITTEN, "reward:\n  - {kind: external, file: my_reward.py}"))
    return workplace


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_job_alone_runs_no_code(with_code: Path) -> None:
    with pytest.raises(JobMistakes) as found:
        tune.run("job.yaml")
    line = "job.yaml:10:28: reward.0.file: my_reward.py is code, which a job may not run by itself"
    assert str(found.value) == f"{line}; read it, then add --allow-code my_reward.py"
    with pytest.raises(JobMistakes):
        tune.tune("job.yaml").result()
    with pytest.raises(JobMistakes):
        check.run(Path("job.yaml"), measure=True)
    assert not (with_code / "was-run").exists() and not (with_code / "run").exists()


def test_another_file_than_the_one_that_is_allowed_is_not_run(with_code: Path) -> None:
    (with_code / "other.py").write_text(REWARD)
    with pytest.raises(JobMistakes, match=r"--allow-code my_reward\.py"):
        tune.run("job.yaml", allow_code=[Path("other.py")])
    assert not (with_code / "was-run").exists()


@pytest.mark.parametrize("path", ["x.yaml", "../x.yaml"])
def test_the_flag_is_what_to_type_from_here(with_code: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (with_code / "x.yaml").write_text((with_code / "job.yaml").read_text())
    (with_code / "below").mkdir()
    monkeypatch.chdir(with_code / ("below" if ".." in path else "."))
    with pytest.raises(JobMistakes) as found:
        read_job(path)
    typed = str(found.value).partition("--allow-code ")[2]
    assert typed == ("my_reward.py" if path == "x.yaml" else str(with_code / "my_reward.py"))
    assert read_job(path, code=allowed([typed])).reward[0].options.sha256 == sha256(with_code / "my_reward.py")


def test_no_job_can_allow_itself(with_code: Path) -> None:
    own = {"kind": "external", "file": "my_reward.py", "sha256": sha256(with_code / "my_reward.py")}
    job = {"version": 1, "model": {"kind": "mixture"}, "prompts": ["east"], "tune": {"guidance": {"start": 1.0}}}
    with pytest.raises(JobMistakes, match=r"reward\.sha256: unknown key"):
        read_job({**job, "reward": own})
    with pytest.raises(JobMistakes, match="sha256: unknown key"):
        read_job("job.yaml", [f"reward.0.sha256={own['sha256']}"])
    assert "sha256" not in json.dumps(job_schema())


def test_check_says_what_it_may_run(with_code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.run(Path("job.yaml"), as_json=True, allow_code=[Path("my_reward.py")]) == 0
    said = capsys.readouterr()
    assert said.err == f"allowed code: my_reward.py, sha256 {sha256(with_code / 'my_reward.py')}\n"
    document = json.loads(said.out)["job"]
    assert "sha256" not in json.dumps(document)
    assert not (with_code / "was-run").exists(), "a check runs nothing"
    with pytest.raises(JobMistakes, match="--allow-code"):
        read_job(document)


def test_what_was_run_is_in_the_report(with_code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = sha256(with_code / "my_reward.py")
    assert tune.run("job.yaml", quiet=True, allow_code=[Path("my_reward.py")]) == 0
    assert f"allowed code: my_reward.py, sha256 {digest}" in capsys.readouterr().err
    report = json.loads((with_code / "run" / "report.json").read_text())
    assert report["environment"]["inputs"]["external"] == {"my_reward.py": digest}
    assert report["reproduce"] == "genbo tune job.yaml --allow-code my_reward.py"
    assert (with_code / "was-run").read_text() == "x", "once"


def test_a_run_is_not_gone_on_with_by_other_code(with_code: Path) -> None:
    tune.tune("job.yaml", ["budget.steps=1"], allow_code=["my_reward.py"]).result()
    (with_code / "run" / "report.json").unlink()
    (with_code / "my_reward.py").write_text(REWARD + "\n")
    with pytest.raises(UserMistake, match="was begun with other inputs"):
        tune.tune("job.yaml", ["budget.steps=1"], resume=True, allow_code=["my_reward.py"]).result()


def test_from_python(with_code: Path) -> None:
    result = genbo.tune("job.yaml", allow_code=[with_code / "my_reward.py"]).result()
    assert result.document["rewards"]["external"]["difference"] is not None


def test_batch_hands_it_on(with_code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch.run([Path("job.yaml")], ["--quiet"], as_json=True) == 2
    assert "--allow-code my_reward.py" in capsys.readouterr().err
    assert batch.run([Path("job.yaml")], ["--quiet"], as_json=True, allow_code=[Path("my_reward.py")]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["exit_code"] == 0 and row["status"] == "done"


def test_what_is_allowed_must_be_there(workplace: Path) -> None:
    with pytest.raises(UserMistake, match=r"--allow-code my_reward\.py: there is no such file; correct the path"):
        tune.run("job.yaml", allow_code=[Path("my_reward.py")])
