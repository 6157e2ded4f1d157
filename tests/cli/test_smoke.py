"""The whole command line, as a person uses it, on tiny models: make smoke."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from genbo.cli.main import main

SD_JOB = """\
version: 1
model:
  pretrained: {model}
  sampler: {{kind: ddim, steps: 3}}
prompts: [a red apple, a dog]
tune:
  guidance: {{start: 1.0, bounds: [0, 10], shape: {shape}}}
reward: {{kind: clip, pretrained: {clip}}}
keep: [{{kind: compressibility, at_least: start - 5}}]
budget: {{steps: 2, samples: 4}}
evaluate: {{prompts: [a cat, a blue house], samples: 4}}
output: {output}
"""


@pytest.fixture
def genbo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The command line in this process."""

    def here(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["genbo", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert (end.value.code or 0) == code, err
        assert "Traceback" not in err
        return out

    return here


@pytest.fixture
def job(workplace: Path, tiny_sd: Path, tiny_clip: Path):
    def write(name: str, shape: str = "scalar") -> Path:
        path = workplace / f"{name}.yaml"
        path.write_text(SD_JOB.format(model=tiny_sd, clip=tiny_clip, shape=shape, output=workplace / "runs" / name))
        return path

    return write


def test_a_job_from_check_to_images(job, workplace, genbo):
    path, run = job("guidance"), workplace / "runs" / "guidance"
    planned = json.loads(genbo("check", str(path), "--json"))["plan"]
    genbo("tune", str(path), "--quiet")
    shown = json.loads(genbo("show", str(run), "--json"))
    assert shown["verdict"] in ("better", "worse", "no measurable difference")
    assert shown["phi"]["guidance"]["start"] == 1.0 and 0 < shown["phi"]["guidance"]["tuned"] < 10
    assert set(shown["held_out"]) >= {"start", "tuned", "difference", "interval"}
    assert shown["cost"]["denoiser_calls"] == planned["total"]["denoiser_calls"]
    assert shown["cost"]["reward_images"] == planned["total"]["reward_images"]
    assert shown["cost"]["image_forwards"] == planned["total"]["image_forwards"]
    assert shown["cost"]["elapsed_s"] > 0
    assert "guidance" in genbo("show", str(run))
    genbo("report", str(run))
    assert "<script" not in (run / "report.html").read_text()
    genbo("sample", str(run), "--prompt", "a red apple", "--samples", "2", "--output", str(workplace / "images"))
    assert len(list((workplace / "images").glob("*.png"))) >= 2


def test_a_tuned_schedule_from_python(job, workplace):
    import genbo as package

    result = package.tune(job("steps", "per_step")).result()
    assert len(result.phi["guidance"]) == 3
    pipeline = package.load(result.folder / "tuned", device="cpu")
    assert pipeline.process.options["weight"][0].tolist() == pytest.approx(result.phi["guidance"])
    assert len(pipeline(["a red apple"], samples=3, seed=0)) == 3


def test_batch_goes_on_past_a_bad_job(workplace, genbo):
    """Each job is a process of its own, which imports torch anew."""
    good, bad = workplace / "job.yaml", workplace / "bad.yaml"
    bad.write_text(good.read_text().replace("ddim", "dddim"))
    rows = json.loads(genbo("batch", str(bad), str(good), "--json", "--quiet", code=2))
    assert [row["exit_code"] for row in rows] == [2, 0]
    assert rows[1]["report"]["verdict"] is not None
    table = genbo("batch", str(good), "--quiet")  # done already: goes on with nothing, and says the same
    assert "job.yaml" in table and rows[1]["report"]["verdict"] in table


def test_the_other_commands_answer(workplace, genbo):
    (workplace / "new.yaml").write_text(genbo("init", "guidance"))
    genbo("check", "new.yaml")
    assert json.loads(genbo("schema"))["$schema"]
    assert "clip" in genbo("list", "rewards")
    assert "torch" in genbo("doctor")
