"""A steered process and its tuned folder: `genbo.load` draws the same, and refuses what is not what was judged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.process import Process, process_of
from genbo.diffusion.refused import Refused
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Batch
from genbo.diffusion.steer import Climbed
from genbo.diffusion.steer_document import why_no_climbing
from genbo.diffusion.steering.target import Target
from genbo.diffusion.steering.tilt import Tilt
from genbo.diffusion.tuned import beyond_diffusers, export, load
from genbo.rewards.clip import Clip
from genbo.rewards.compressibility import Compressibility
from genbo.rewards.diversity import Diversity
from genbo.rewards.external import External
from genbo.rewards.linear import Linear
from genbo.rewards.teacher import Teacher

BATCH = Batch(("a red apple", "a dog", "a dog"), (1, 2, 3))
RULES = [Tilt(0.1), Target(0.5), Target(0.5, passes=1, variance=False, most=0.2)]
Edit = Callable[[dict[str, Any]], Any]


def pipeline(tiny_sd: Path, sampler: Any = None) -> Process:
    model = Diffusers(pretrained=str(tiny_sd), device="cpu", dtype="fp32").open()
    return process_of(model, sampler or Ddim(3), Plain(3.0), batch=5)


def climbed(*options: Any) -> list[Climbed]:
    return [Climbed(0.5 + k, one.open(), one) for k, one in enumerate(options)]


def drawn(process: Process) -> torch.Tensor:
    with torch.no_grad():
        return sample(process, BATCH)


def edited(folder: Path, edit: Edit) -> Path:
    """The folder with another genbo.json."""
    file = folder / "genbo.json"
    document = json.loads(file.read_text())
    edit(document)
    file.write_text(json.dumps(document))
    return folder


@pytest.fixture
def clip_copy(tiny_clip: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_clip, tmp_path / "clip"))


@pytest.fixture
def tuned(tiny_sd: Path, clip_copy: Path, tmp_path: Path) -> tuple[Process, Path]:
    """Steered by a CLIP in a folder and by a linear reward."""
    process = pipeline(tiny_sd).steered(climbed(Clip(str(clip_copy)), Linear([1.0, 0.0, -1.0])), 2.0, Tilt())
    export(process, tmp_path / "tuned", {})
    return process, tmp_path / "tuned"


def reloaded(folder: Path, **more: Any) -> Process:
    return load(folder, device="cpu", dtype="fp32", **more).process


# -- the same again ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_the_folder_draws_the_same_samples_bit_for_bit(tiny_sd, tmp_path, rule):
    """With a strength at each step, as tuning may leave it."""
    process = pipeline(tiny_sd, Ddim(3, 1.0)).steered(climbed(Linear([1.0, 0.0, -1.0])), [0.1, 1 / 3, 2.0], rule)
    export(process, tmp_path / "tuned", {})
    again = reloaded(tmp_path / "tuned")
    assert again.steer is not None and again.steer.rule == rule and again.batch == 5
    assert torch.equal(again.steer.strength, process.steer.strength)
    assert torch.equal(drawn(again), drawn(process))
    assert not torch.equal(drawn(again), drawn(pipeline(tiny_sd, Ddim(3, 1.0))))


def test_so_does_another_process(tuned, tmp_path):
    process, folder = tuned
    script = (
        "import sys, torch\nfrom safetensors.torch import save_file\nimport genbo\n"
        "from genbo.diffusion.sample import sample\nfrom genbo.diffusion.seed import Batch\n"
        f"process = genbo.load(sys.argv[1], device='cpu', dtype='fp32').process\n"
        f"with torch.no_grad():\n    x = sample(process, Batch({BATCH.prompts!r}, {BATCH.seeds!r}))\n"
        "save_file({'x': x}, sys.argv[2])\n"
    )
    out = tmp_path / "x.safetensors"
    subprocess.run([sys.executable, "-c", script, str(folder), str(out)], check=True)
    assert torch.equal(load_file(out)["x"], drawn(process))


def test_it_says_what_steers_and_what_diffusers_cannot(tuned, clip_copy):
    process, folder = tuned
    document = json.loads((folder / "genbo.json").read_text())
    assert document["schema"] == 2, "a genbo that knows no steering must not draw without it"
    assert document["beyond_diffusers"] == ["its call cannot be steered by a reward"] == beyond_diffusers(process)
    first, second = document["steer"]["reward"]
    assert (first["kind"], first["pretrained"], first["weight"]) == ("clip", str(clip_copy), 0.5)
    assert "open_clip_model.safetensors" in first["files"] and second["files"] == {}
    assert document["steer"]["strength"] == 2.0 and document["steer"]["rule"] == {"kind": "tilt", "most": 0.3}


def test_a_folder_without_steering_is_written_as_it_always_was(tiny_sd, tmp_path):
    export(pipeline(tiny_sd), tmp_path / "tuned", {})
    document = json.loads((tmp_path / "tuned" / "genbo.json").read_text())
    assert document["schema"] == 1 and not {"steer", "batch"} & set(document)
    assert reloaded(tmp_path / "tuned").steer is None


def test_an_exact_world_leaves_its_steering_in_genbo_json(tmp_path):
    process = process_of(Gaussian().open(), Ddim(3), Plain(1.0)).steered(climbed(Linear()), 1.5, Target(1.0))
    export(process, tmp_path / "tuned", {})
    written = json.loads((tmp_path / "tuned" / "genbo.json").read_text())["steer"]
    assert written["rule"] == {"kind": "target", "value": 1.0, "passes": 0, "variance": True, "most": 0.3}


# -- what is not what was judged ---------------------------------------------------------------------------------------


def test_a_changed_file_is_refused(tuned, clip_copy):
    file = clip_copy / "open_clip_model.safetensors"
    weights = load_file(file)
    weights["logit_scale"] = weights["logit_scale"] + 1
    save_file(weights, file)
    with pytest.raises(Refused, match=r"steer.reward: open_clip_model.safetensors of clip is not .* put the old file"):
        reloaded(tuned[1])


def test_a_missing_file_is_refused(tuned, clip_copy):
    shutil.rmtree(clip_copy)
    with pytest.raises(Refused, match=r"genbo.json: steer.reward: pretrained: .*clip.*; "):
        reloaded(tuned[1])


def test_a_file_that_was_there_beside_is_missed(tuned):
    folder = edited(tuned[1], lambda d: d["steer"]["reward"][0]["files"].update({"more.json": "0" * 64}))
    with pytest.raises(Refused, match=r"had a file more.json, which is not there; put it back"):
        reloaded(folder)


# -- code --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def coded(tiny_sd: Path, tmp_path: Path) -> tuple[Process, Path, Path]:
    """Steered by a file of the user's own, which notes when it is run."""
    import hashlib

    code = tmp_path / "red.py"
    note = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    code.write_text(note + "def score(images, prompts):\n    return images.float()[:, 0].mean((1, 2))\n")
    options = External(str(code), differentiable=True, sha256=hashlib.sha256(code.read_bytes()).hexdigest())
    process = pipeline(tiny_sd).steered(climbed(options), 3.0, Tilt())
    export(process, tmp_path / "tuned", {})
    (tmp_path / "ran").unlink()
    return process, tmp_path / "tuned", code


def test_code_runs_only_where_it_is_allowed(coded, tmp_path):
    process, folder, code = coded
    assert "sha256" not in json.loads((folder / "genbo.json").read_text())["steer"]["reward"][0]
    with pytest.raises(Refused, match=r"red.py is code, which a tuned folder may not run .* allow_code=\['.*red.py'\]"):
        reloaded(folder)
    assert not (tmp_path / "ran").exists()
    assert torch.equal(drawn(reloaded(folder, allow_code=[code])), drawn(process))


def test_a_folder_cannot_allow_its_own_code(coded, tmp_path):
    _, folder, _ = coded
    digest = json.loads((folder / "genbo.json").read_text())["steer"]["reward"][0]["files"]["red.py"]
    edited(folder, lambda d: d["steer"]["reward"][0].update(sha256=digest))
    with pytest.raises(Refused, match="is code, which a tuned folder may not run"):
        reloaded(folder)
    assert not (tmp_path / "ran").exists()


def test_allowed_code_must_be_the_code_that_was_judged(coded):
    _, folder, code = coded
    code.write_text(code.read_text().replace("[:, 0]", "[:, 1]"))
    with pytest.raises(Refused, match=r"red.py of external is not the file that was judged"):
        reloaded(folder, allow_code=[code])
    with pytest.raises(Refused, match=r"allow_code: there is no file nothing\.py"):
        reloaded(folder, allow_code=["nothing.py"])


# -- a document that somebody has written ------------------------------------------------------------------------------


EDITS: list[tuple[Edit, str]] = [
    (lambda s: s.update(rule={"kind": "os"}), "steer.rule: unknown steering kind 'os'; choose from target, tilt"),
    (lambda s: s.update(rule=None), "steer.rule: unknown steering kind None"),
    (lambda s: s["rule"].update(most="far"), "steer.rule: most of tilt cannot be 'far'"),
    (lambda s: s["rule"].update(most=-1.0), "steer.rule: most of tilt cannot be -1.0"),
    (lambda s: s.update(rule={"kind": "target"}), "steer.rule: target has no value"),
    (lambda s: s.update(strength=[1.0, 2.0]), "steer.strength must be a number, or 3, one a step"),
    (lambda s: s.update(strength="2"), "steer.strength must be a number"),
    (lambda s: s.update(strength=True), "steer.strength must be a number"),
    (lambda s: s.update(reward=[]), "steer.reward must be a list of rewards"),
    (lambda s: s.update(reward={"kind": "linear"}), "steer.reward must be a list of rewards"),
    (lambda s: s.update(reward=[{"kind": "_weights"}]), "steer.reward: unknown rewards kind '_weights'"),
    (lambda s: s.update(reward=[7]), "steer.reward: unknown rewards kind None"),
    (lambda s: s["reward"][1].update(direction={}), "steer.reward: direction of linear cannot be {}"),
    (lambda s: s["reward"][1].update(direction=0.0), "steer.reward: direction: every number is 0"),
    (lambda s: s["reward"][1].update(weight=None), "steer.reward: weight must be a number"),
    (lambda s: s.update(reward=[{"kind": "compressibility"}]), "steer.reward: compressibility has no gradient"),
]


@pytest.mark.parametrize(("edit", "said"), EDITS, ids=[said for _, said in EDITS])
def test_what_it_cannot_be_is_a_sentence(tuned, edit, said):
    folder = edited(tuned[1], lambda document: edit(document["steer"]))
    with pytest.raises(Refused) as refused:
        reloaded(folder)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_black_box_is_not_steered(tuned):
    folder = edited(tuned[1], lambda document: document.update(model="blackbox"))
    with pytest.raises(Refused, match="a black box draws by its own call, which cannot be steered"):
        reloaded(folder)


@pytest.mark.parametrize("batch", [0, "many", True])
def test_a_batch_is_a_whole_number(tuned, batch):
    with pytest.raises(Refused, match="batch must be a whole number from 1 on"):
        reloaded(edited(tuned[1], lambda document: document.update(batch=batch)))


def test_what_cannot_be_climbed_says_so_and_what_to_take():
    assert why_no_climbing(Linear()) is None
    for options in (Compressibility(), Diversity("pixels"), Teacher(steps=8)):
        assert "; take a" in (why_no_climbing(options) or "")


def test_a_bare_function_cannot_be_stored(tiny_sd, tmp_path):
    process = pipeline(tiny_sd).steered([Climbed(1.0, Linear().open())], 1.0, Tilt())
    with pytest.raises(ValueError, match="cannot be stored; steer it by a reward"):
        export(process, tmp_path / "tuned", {})
