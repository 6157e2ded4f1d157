"""The lower solver, the searcher and the section of CONTRIBUTING.md, in jobs on toy models that take seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from genbo.cli.report import html
from genbo.diffusion.kinds import class_of, kinds
from tests.rooms.house import ROOT, house_with
from tests.rooms.test_one_file_each import FILES, TEMPLATES, run

OLD_RUN = ROOT / "tests" / "cli" / "old_runs" / "guidance"


JOBS = {
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
search: {kind: sobol}
budget: {steps: 4, samples: 16}
evaluate: {samples: 16}
output: OUTPUT
""",
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return house_with(tmp_path_factory.mktemp("house"), {**FILES, **TEMPLATES})


@pytest.mark.parametrize("path", FILES)
def test_an_example_passes_the_linter_where_it_would_be(path):
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "--stdin-filename", path, "-"]
    done = subprocess.run(command, input=FILES[path], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", JOBS)
def test_a_job_is_checked_and_tuned_with_it(house, tmp_path, kind):
    job, output = tmp_path / "job.yaml", tmp_path / "run"
    job.write_text(JOBS[kind].replace("OUTPUT", str(output)), encoding="utf-8")
    document = json.loads(run(house, "-m", "genbo", "check", str(job), "--json"))["job"]
    assert kind in (document.get("lower", {}).get("kind"), document.get("search", {}).get("kind"))
    run(house, "-m", "genbo", "tune", str(job), "--quiet")
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert report["status"] == "done" and report["job"] == {**report["job"], **document}
    assert "<h2>Every held-out prompt</h2>" in (output / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(house: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a run of an earlier version."""
    output = tmp_path_factory.mktemp("report") / "report.html"
    run(house, "-m", "genbo", "report", str(OLD_RUN), "--output", str(output))
    return output.read_text(encoding="utf-8")


def test_a_section_is_two_files_and_comes_before_the_trust(page):
    assert page.count("<h2>Every held-out prompt</h2>") == 1
    assert page.index("Every held-out prompt") < page.index("How far to trust it")


@pytest.mark.parametrize("kind", kinds(html.SECTIONS))
def test_every_section_has_its_template_and_an_order_of_its_own(kind):
    assert (ROOT / "cli" / "report" / "sections" / f"{kind}.html.j2").is_file()
    orders = [class_of(html.SECTIONS, name).order for name in kinds(html.SECTIONS)]
    assert orders.count(class_of(html.SECTIONS, kind).order) == 1
