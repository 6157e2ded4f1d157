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

from genbo.cli.report import html
from genbo.cli.report.records_report import RunReport
from genbo.cli.run.status import read_report
from genbo.diffusion.kinds import class_of, kinds
from tests.rooms.house import ROOT, house_with

OLD_RUN = ROOT / "tests" / "cli" / "old_runs" / "guidance"
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
TOY_JOBS = {
    "truncated": """
version: 1
model: {kind: gaussian, sampler: {kind: ddim, steps: 6}, guidance: 1}
prompts: [right]
tune: {regularization: {start: 2.0}}
reward: {kind: quadratic, target: 1.0}
lower: {kind: truncated, samples: 64, reward: {kind: linear}}
budget: {steps: 1}
evaluate: {samples: 64}
output: OUTPUT
""",
    "sobol": """
version: 1
model: {kind: gaussian, sampler: {kind: ddim, steps: 6}, guidance: 2}
prompts: [right]
tune: {guidance: {start: 2.0, bounds: [0, 4]}}
reward: {kind: quadratic, target: 1.0}
search: {kind: sobol, pruner: median}
budget: {steps: 4, samples: 16}
evaluate: {samples: 16}
output: OUTPUT
""",
}
# One process does all of it, since most of what such a process takes is the import of the libraries.
VISIT = """
import contextlib, io, json, sys
import genbo
import pytest
from genbo.cli.main import main

def command(*arguments):
    sys.argv = ["genbo", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            main()
        except SystemExit as end:
            assert not end.code, arguments
    return printed.getvalue()

def checked(job):
    return json.loads(command("check", job, "--json"))

given, found = json.loads(sys.argv[1]), {"jobs": {}, "toy jobs": {}}
command("report", given["old run"], "--output", given["page"])
for name, job in given["toy jobs"].items():
    found["toy jobs"][name] = checked(job)["job"]
    command("tune", job, "--quiet")
for name, (job, tuned) in given["jobs"].items():
    plan = checked(job)["plan"]
    command("tune", job, "--quiet")
    pipeline = genbo.load(tuned, device="cpu", dtype="fp32")
    (image,) = pipeline(["a dog"], seed=3)
    made = [type(part).__name__ for part in (pipeline.process.sampler, pipeline.process.rule)]
    found["jobs"][name] = {"plan": plan, "made": made, "size": image.size}
with contextlib.redirect_stdout(io.StringIO()) as printed:
    code = pytest.main(given["contracts"])
found["contracts"] = [int(code), printed.getvalue()]
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
    assert set(samplers) == {*kinds("genbo.diffusion.samplers"), "taylor"}


def test_the_page_has_an_example_of_each_room_that_it_explains():
    assert sorted(Path(path).parent.as_posix() for path in FILES) == [
        "bilevel/estimators",
        "bilevel/lower",
        "bilevel/pruners",
        "bilevel/searchers",
        "bilevel/tunables",
        "cli/report/sections",
        "diffusion/guidance",
        "diffusion/samplers",
        "rewards",
    ]


def test_every_row_of_the_table_is_a_room_with_files():
    rows = re.findall(r"^\| an? [^|]+ \| `([\w/]+)/` \|", CONTRIBUTING, re.MULTILINE)
    assert len(rows) == 12
    for room in rows:
        assert any((ROOT / room).glob("[!_]*.py")), room


def contracts() -> list[str]:
    """What pytest is called with for the tests of `tests/rooms` that are about a file, over the examples alone."""
    classes = [re.search(r"^class (\w+)", text, re.MULTILINE)[1] for text in FILES.values()]  # type: ignore[index]
    chosen = " or ".join([*classes, *(f"{Path(path).stem}" for path in FILES)])
    names = ("every_room", "rewards", "guidance_rules", "samplers", "tunables", "estimators", "searchers", "pruners")
    files = [*(f"tests/rooms/test_{name}.py" for name in names), "tests/bilevel/test_contracts.py"]
    return ["-p", "no:cacheprovider", "-rs", "-k", chosen, *files]


@pytest.fixture(scope="module")
def visit(house: Path, tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path) -> tuple[Path, dict[str, Any]]:
    """The folder with a run of each job, and what the process of that house found that did all of it."""
    folder = tmp_path_factory.mktemp("jobs")
    given: dict[str, Any] = {"old run": str(OLD_RUN), "page": str(folder / "report.html"), "contracts": contracts()}
    given |= {"jobs": {}, "toy jobs": {}}
    for name, tune in TUNES.items():
        job = folder / f"{name}.yaml"
        job.write_text(JOB.format(model=tiny_sd, tune=tune, output=json.dumps(str(folder / name))), encoding="utf-8")
        given["jobs"][name] = str(job), str(folder / name / "tuned")
    for name, text in TOY_JOBS.items():
        job = folder / f"{name}.yaml"
        job.write_text(text.replace("OUTPUT", str(folder / name)), encoding="utf-8")
        given["toy jobs"][name] = str(job)
    return folder, json.loads(run(house, "-c", VISIT, json.dumps(given)).splitlines()[-1])


def test_the_examples_keep_the_whole_contract_of_their_rooms(visit):
    """Every test of `tests/rooms` that is about a file, over these files: as if they had been committed."""
    code, printed = visit[1]["contracts"]
    passed = re.search(r"(\d+) passed", printed)
    assert code == 0 and passed and int(passed[1]) >= 90, printed


@pytest.mark.parametrize("name", TUNES)
def test_a_job_of_nothing_but_examples_is_checked_tuned_and_loaded(visit, name):
    output, found = visit[0] / name, visit[1]["jobs"][name]
    report = json.loads((output / "report.json").read_text())
    assert report["cost"]["image_forwards"] == found["plan"]["total"]["image_forwards"]
    document = json.loads((output / "tuned" / "genbo.json").read_text())
    assert document["sampler"]["kind"] == "taylor" and document["guidance"]["kind"] == "cosine_ramp"
    assert "it has no guidance of kind cosine_ramp" in document["beyond_diffusers"]
    assert any("draws otherwise by taylor" in line for line in document["beyond_diffusers"])
    assert found["made"] == ["Taylor", "CosineRamp"] and len(found["size"]) == 2


@pytest.mark.parametrize("kind", TOY_JOBS)
def test_a_toy_job_is_checked_and_tuned_with_its_example(visit, kind):
    """The lower solver and the searcher."""
    output, document = visit[0] / kind, visit[1]["toy jobs"][kind]
    assert kind in (document.get("lower", {}).get("kind"), document.get("search", {}).get("kind"))
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert report["status"] == "done" and report["job"] == {**report["job"], **document}
    assert "<h2>Every held-out prompt</h2>" in (output / "report.html").read_text(encoding="utf-8")


def test_a_section_is_two_files_and_comes_before_the_trust(visit):
    """In the report of a run of an earlier version."""
    page = (visit[0] / "report.html").read_text(encoding="utf-8")
    assert page.count("<h2>Every held-out prompt</h2>") == 1
    assert page.index("Every held-out prompt") < page.index("How far to trust it")


@pytest.mark.parametrize("kind", kinds(html.SECTIONS))
def test_every_section_has_its_template_and_an_order_of_its_own(kind):
    assert (ROOT / "cli" / "report" / "sections" / f"{kind}.html.j2").is_file()
    orders = [class_of(html.SECTIONS, name).order for name in kinds(html.SECTIONS)]
    assert orders.count(class_of(html.SECTIONS, kind).order) == 1


@pytest.mark.parametrize("run", [None, *sorted(path.parent.name for path in OLD_RUN.parent.glob("*/report.json"))])
@pytest.mark.parametrize("kind", kinds(html.SECTIONS))
def test_a_section_is_shown_or_left_out_whatever_the_report_has(kind, run):
    """Of a report of nothing, and of runs of every sort; the template may read all that it is given."""
    report = RunReport() if run is None else RunReport.read(read_report(OLD_RUN.parent / run) or {}, Path(run))
    view = class_of(html.SECTIONS, kind)().view(report)
    if view is not None:
        assert not {"d", "words"} & set(view), "these are the report and its labels"
        assert len(list(html.sections(report))) >= 1


@pytest.mark.parametrize("path", FILES)
def test_an_example_passes_the_linter_where_it_would_be(path):
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "--stdin-filename", path, "-"]
    done = subprocess.run(command, input=FILES[path], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
