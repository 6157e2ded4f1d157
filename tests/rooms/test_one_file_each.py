"""A file in its room is all that a new part needs: the examples of CONTRIBUTING.md, and the whole house on them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.rooms.house import ROOT, house_with

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", CONTRIBUTING, re.DOTALL))
TEMPLATES = dict(re.findall(r"```jinja\n\{# (\S+\.j2) #\}\n(.*?)```", CONTRIBUTING, re.DOTALL))
JOB = """\
version: 1
model:
  pretrained: {model}
  device: cpu
  sampler: {{kind: taylor, steps: 4}}
  guidance: {{kind: cosine_ramp, weight: 2.0}}
prompts: [a red apple, a dog]
tune:
  {tune}
reward: {{kind: redness}}
estimator: {{kind: richardson, h: 0.05}}
budget: {{steps: 2, samples: 2}}
evaluate: {{prompts: [a cat, a blue house], samples: 2}}
output: {output}
"""
TUNES = {
    "the rule's weight": "guidance: {start: 2.0, bounds: [0, 10]}",
    "a tunable of its own": "bump: {start: 2.0, bounds: [0, 10]}",
}
CHECK_TUNE_LOAD = """
import contextlib, io, json, sys
import genbo
from genbo.cli.main import main

def command(*arguments):
    sys.argv = ["genbo", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            main()
        except SystemExit as end:
            assert not end.code, arguments
    return printed.getvalue()

found = []
for job, tuned in zip(sys.argv[1::2], sys.argv[2::2]):
    plan = json.loads(command("check", job, "--json"))["plan"]
    command("tune", job, "--quiet")
    pipeline = genbo.load(tuned, device="cpu", dtype="fp32")
    (image,) = pipeline(["a dog"], seed=3)
    made = [type(part).__name__ for part in (pipeline.process.sampler, pipeline.process.rule)]
    found.append({"plan": plan, "made": made, "size": image.size})
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return house_with(tmp_path_factory.mktemp("house"), {**FILES, **TEMPLATES})


def run(house: Path, *arguments: str) -> str:
    """Python in that house; what it prints."""
    places = [str(house), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done.stdout


def test_the_house_is_this_one_with_the_files_added(house):
    program = "import genbo.diffusion.kinds as k; print(k.__file__, *k.kinds('genbo.diffusion.samplers'))"
    file, *samplers = run(house, "-c", program).split()
    assert Path(file).is_relative_to(house)
    assert set(samplers) == {"ddim", "ddpm", "dpmpp", "euler", "taylor"}


def test_the_page_has_an_example_of_each_room_that_it_explains():
    assert sorted(Path(path).parent.as_posix() for path in FILES) == [
        "bilevel/estimators",
        "bilevel/lower",
        "bilevel/searchers",
        "bilevel/tunables",
        "cli/report/sections",
        "diffusion/guidance",
        "diffusion/samplers",
        "rewards",
    ]


def test_every_row_of_the_table_is_a_room_with_files():
    rows = re.findall(r"^\| an? [^|]+ \| `([\w/]+)/` \|", CONTRIBUTING, re.MULTILINE)
    assert len(rows) == 10
    for room in rows:
        assert any((ROOT / room).glob("[!_]*.py")), room


def test_the_examples_keep_the_whole_contract_of_their_rooms(house):
    """Every test of `tests/rooms` that is about a file, over these files: as if they had been committed."""
    classes = [re.search(r"^class (\w+)", text, re.MULTILINE)[1] for text in FILES.values()]  # type: ignore[index]
    chosen = " or ".join([*classes, *(f"{Path(path).stem}" for path in FILES)])
    contracts = [f"tests/rooms/test_{name}.py" for name in ("every_room", "rewards", "guidance_rules", "samplers")]
    contracts += [f"tests/rooms/test_{name}.py" for name in ("tunables", "estimators", "searchers")]
    contracts += ["tests/bilevel/test_contracts.py"]
    printed = run(house, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "-k", chosen, *contracts)
    passed = re.search(r"(\d+) passed", printed)
    assert passed and int(passed[1]) >= 90, printed


@pytest.fixture(scope="module")
def tuned(house: Path, tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path) -> dict[str, tuple[Path, Any]]:
    """The run folder of each job, and what one process of that house found that checked, tuned and loaded them all."""
    folder, places = tmp_path_factory.mktemp("jobs"), []
    for number, tune in enumerate(TUNES.values()):
        job, output = folder / f"{number}.yaml", folder / f"run-{number}"
        job.write_text(JOB.format(model=tiny_sd, tune=tune, output=output), encoding="utf-8")
        places += [str(job), str(output / "tuned")]
    found = json.loads(run(house, "-c", CHECK_TUNE_LOAD, *places).splitlines()[-1])
    return {name: (folder / f"run-{number}", found[number]) for number, name in enumerate(TUNES)}


@pytest.mark.parametrize("name", TUNES)
def test_a_job_of_nothing_but_examples_is_checked_tuned_and_loaded(tuned, name):
    output, found = tuned[name]
    report = json.loads((output / "report.json").read_text())
    assert report["cost"]["image_forwards"] == found["plan"]["total"]["image_forwards"]
    document = json.loads((output / "tuned" / "genbo.json").read_text())
    assert document["sampler"]["kind"] == "taylor" and document["guidance"]["kind"] == "cosine_ramp"
    assert "it has no guidance of kind cosine_ramp" in document["beyond_diffusers"]
    assert any("draws otherwise by taylor" in line for line in document["beyond_diffusers"])
    assert found["made"] == ["Taylor", "CosineRamp"] and len(found["size"]) == 2
