"""A job with a guided lower level from its file to what it leaves: `tuned/` is steered, and draws what was judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from genbo.cli.commands import sample, tune
from genbo.cli.job.job import read_job
from genbo.cli.plan.counts import plan

R1, R2 = {"kind": "quadratic", "target": [1.5, 0.0], "scale": 0.5}, {"kind": "linear", "direction": [1.0, 0.0]}
WORLD: dict[str, Any] = {
    "version": 1,
    "model": {
        "kind": "gaussian",
        "means": {"a": [0.0, 0.0]},
        "std": 1.0,
        "guidance": 1.0,
        "sampler": {"kind": "ddim", "steps": 40},
        "batch": 1024,
    },
    "prompts": ["a"],
    "tune": {"regularization": {"start": 3.0, "bounds": [0.3, 20]}},
    "reward": R1,
    "lower": {"kind": "guided", "reward": R2, "samples": 1000, "most": None},
    "budget": {"steps": 3},
    "evaluate": {"samples": 1000},
    "output": "run",
}
EMOJI: dict[str, Any] = {
    "version": 1,
    "model": {"pretrained": "emoji", "device": "cpu", "sampler": {"kind": "ddim", "steps": 3, "eta": 1.0}, "batch": 4},
    "prompts": ["a red apple", "a dog face"],
    "tune": {"regularization": {"start": 0.3, "bounds": [0.05, 3]}},
    "reward": {"kind": "clip", "pretrained": "emoji-clip"},
    "lower": {"kind": "guided", "reward": {"kind": "aesthetic", "pretrained": "emoji-style"}, "samples": 3},
    "budget": {"steps": 1},
    "evaluate": {"samples": 6},
    "output": "run",
}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ran(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """report.json and genbo.json."""
    tune.run(job, [], quiet=True)  # type: ignore[arg-type]
    run = Path(job["output"])
    return json.loads((run / "report.json").read_text()), json.loads((run / "tuned" / "genbo.json").read_text())


def within(planned: Any, cost: dict[str, Any]) -> bool:
    least, most = planned.total_at_least.document(), planned.total.document()
    return all(least[key] <= cost[key] <= most[key] for key in most)


def test_on_a_gaussian_steering_has_all_of_the_law_and_stands_in_the_report(workplace):
    report, tuned = ran(WORLD)
    lam, found = report["phi"]["regularization"]["tuned"], report["search"]["steering"]
    assert tuned["steer"]["strength"] == found["strength"] == pytest.approx(1 / lam)
    assert tuned["steer"]["reward"] == [{**R2, "weight": 1.0, "files": {}}]
    assert tuned["steer"]["rule"] == {"kind": "tilt", "most": None}
    assert abs(found["share"] - 1) < 3 * found["share_se"] < 0.6
    assert found["law_r2"] == pytest.approx(1 / lam, abs=0.25)
    assert found["kl"] is None, "a deterministic path has none"
    assert found["cost"] == {
        "denoiser_calls": 40,
        "image_forwards": 40,
        "image_backwards": 40,
        "reward_images": 40,
    }
    assert found["seconds"] > 0 and found["plain_seconds"] > 0
    assert any("% of the gain in linear" in line["text"] for line in report["trust"])
    assert within(plan(read_job(WORLD)), report["cost"])
    page = (workplace / "run" / "report.html").read_text()
    assert "Steering at this λ" in page and "40 network calls (40 rows), 40 rows back and 40 looks" in page


@pytest.mark.parametrize("passes", [0, 2])
def test_a_target_is_the_papers_own_rule(workplace, passes):
    """Alg. 5: a quadratic target at the strength 1 / lambda; a linear reward is its own tangent."""
    lower = {**WORLD["lower"], "target": 2.0, "passes": passes}
    report, tuned = ran({**WORLD, "lower": lower, "budget": {"steps": 2}})
    lam, found = report["phi"]["regularization"]["tuned"], report["search"]["steering"]
    assert tuned["steer"]["rule"] == {"kind": "target", "value": 2.0, "passes": passes, "variance": True, "most": None}
    mean = 2.0 / (1 + lam)  # of N(0, 1) exp(-(2 - x)^2 / (2 lambda))
    assert abs(found["r2"] - mean) < 4 * found["r2_se"]
    assert found["cost"]["denoiser_calls"] == 40 * (1 + passes) and found["cost"]["reward_images"] == (passes or 40)
    assert within(plan(read_job({**WORLD, "lower": lower, "budget": {"steps": 2}})), report["cost"])


DRAW = """
import json, sys, torch
from safetensors.torch import save_file
import genbo
from genbo.diffusion.sample import sample
from genbo.diffusion.seed import Batch, Seed
process = genbo.load(sys.argv[1], device="cpu").process
prompts = json.loads(sys.argv[2])
rows = [(c, n) for c in range(len(prompts)) for n in range(3)]
seeds = [Seed(0).child("evaluate").child("guided", c, n).value for c, n in rows]
batch = Batch(tuple(prompts[c] for c, _ in rows), tuple(seeds))
def one(part):
    with torch.no_grad():
        images = process.model.decode(sample(process, part))
        return process.steer.total(images, part.prompts)
save_file({"r2": torch.cat(list(process.over(batch, one)))}, sys.argv[3])
"""


@pytest.mark.slow  # half a minute each; quick: the same of a folder in tests/diffusion, of a run on an exact world
@pytest.mark.parametrize("rule", [{}, {"target": 0.9, "passes": 1}], ids=["tilt", "target"])
def test_the_folder_draws_what_was_judged_bit_for_bit_in_another_process(workplace, rule):
    report, tuned = ran({**EMOJI, "lower": {**EMOJI["lower"], **rule}})
    lam = report["phi"]["regularization"]["tuned"]
    judged = load_file(workplace / "run" / "evaluation" / f"guided-{lam!r}-None.safetensors")["r2"]
    command = [sys.executable, "-c", DRAW, "run/tuned", json.dumps(EMOJI["prompts"]), "r2.safetensors"]
    subprocess.run(command, check=True)
    assert load_file("r2.safetensors")["r2"].tolist() == judged.tolist()
    assert (report["search"]["steering"]["kl"] is None) == ("passes" in rule), "a sampler that draws noise knows it"
    assert tuned["schema"] == 2 and tuned["steer"]["reward"][0]["files"], "the head and its CLIP"
    assert report["use"]["diffusers"] is None and 'genbo.load("run/tuned")' in report["use"]["genbo"]
    assert any("cannot be steered by a reward" in line["text"] for line in report["trust"])
    assert sample.run("run", ["a dog face"], samples=1) == 0
    page = (workplace / "run" / "report.html").read_text()
    assert "the tuned process draws only through <code>genbo.load</code>" in page
