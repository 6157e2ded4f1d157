"""The small commands, what they import, and how they end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genbo.cli.commands import doctor
from genbo.cli.commands.init import templates
from genbo.cli.errors import Diverged, OutOfMemory, StorageFailed
from genbo.cli.job import catalog
from genbo.cli.job.job import JobMistakes, read_job
from genbo.cli.job.schema import job_schema
from genbo.cli.main import main

HEAVY = (
    "torch",
    "numpy",
    "diffusers",
    "transformers",
    "open_clip",
    "matplotlib",
    "PIL",
    "accelerate",
    "safetensors",
)
WORLD = """version: 1
model: {kind: mixture, sampler: {kind: ddim, steps: 4}}
prompts: [east, north]
tune: {guidance: {start: 1.0}}
reward: {kind: quadratic}
budget: {steps: 2, samples: 8}
evaluate: {samples: 8}
"""


@pytest.fixture
def genbo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """The entry point, in a folder of its own that holds a job: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "job.yaml").write_text(WORLD)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["genbo", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert isinstance(end.value.code, int)
        return (end.value.code, *capsys.readouterr())

    return call


Genbo = Callable[..., tuple[int, str, str]]


# -- what is imported --------------------------------------------------------------------------------------

COMMANDS = [
    ["--help"],
    ["--version"],
    ["check", "job.yaml"],
    ["check", "job.yaml", "--json"],
    ["tune", "job.yaml", "--dry-run"],
]
COMMANDS += [["init"], ["list"], ["schema"], ["tune", "--help"], ["score", "--help"], ["check", "broken.yaml"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_nothing_heavy_is_imported(command: list[str], tmp_path: Path) -> None:
    """Half a second is not enough for torch."""
    (tmp_path / "job.yaml").write_text(WORLD)
    (tmp_path / "broken.yaml").write_text(WORLD + "sed: 1\n")
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print('HEAVY', {{*{HEAVY!r}}} & {{*sys.modules}}, file=sys.stderr))\n"
        "from genbo.cli.main import main\n"
        f"sys.argv = ['genbo', *{command!r}]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == (2 if "broken.yaml" in command else 0), done.stderr
    assert done.stderr.endswith("HEAVY set()\n")


# -- check -------------------------------------------------------------------------------------------------


def test_check_prints_the_job_and_the_plan(genbo: Genbo) -> None:
    code, out, err = genbo("check", "job.yaml", "--set", "budget.steps=3")
    assert (code, err) == (0, "")
    assert "steps: 3" in out
    assert "lr: 0.3" in out, "with every default"
    assert "zeroth_order: 1 parameter" in out
    assert "network calls" in out


def test_check_json_is_one_object_that_is_a_job_again(genbo: Genbo) -> None:
    code, out, _ = genbo("check", "job.yaml", "--json")
    found = json.loads(out)
    assert code == 0
    assert read_job(found["job"]).digest() == found["digest"]
    assert found["plan"]["total"]["denoiser_calls"] > 0


def test_check_measures(genbo: Genbo) -> None:
    assert "unknown until measured" in genbo("check", "job.yaml")[1]
    code, out, err = genbo("check", "job.yaml", "--measure")
    assert code == 0
    assert "ms an image forward" in err
    assert "unknown until measured" not in out
    assert "about " in genbo("check", "job.yaml")[1].partition("time")[2]


# -- init, list, schema ------------------------------------------------------------------------------------


def test_init_prints_a_job_that_is_right(genbo: Genbo, tmp_path: Path) -> None:
    """Whatever the job names must exist, so a tree without the bundled models fails here."""
    code, out, _ = genbo("init", "guidance")
    assert code == 0
    assert out.count("#") > 10
    (tmp_path / "new.yaml").write_text(out)
    assert genbo("check", "new.yaml")[0] == 0


def test_init_of_nothing(genbo: Genbo) -> None:
    code, _, err = genbo("init", "guidence")
    assert code == 2
    assert "did you mean 'guidance'?" in err


def test_list_shows_everything(genbo: Genbo) -> None:
    code, out, _ = genbo("list")
    assert code == 0
    assert all(room in out for room in catalog.ROOMS)
    assert all(kind in out for room in catalog.ROOMS for kind in catalog.kinds(room))


def test_list_of_a_room(genbo: Genbo) -> None:
    code, out, _ = genbo("list", "samplers")
    assert code == 0
    assert "eta: number >= 0 and <= 1 = 0" in out
    assert "adam" not in out
    code, _, err = genbo("list", "reward")
    assert code == 2
    assert "did you mean 'rewards'?" in err


def keys_of(value: Any) -> set[str]:
    match value:
        case dict():
            return set(value).union(*map(keys_of, value.values()))
        case list():
            return set().union(*map(keys_of, value))
    return set()


def test_schema_is_one_that_editors_read(genbo: Genbo) -> None:
    code, out, _ = genbo("schema")
    found = json.loads(out)
    assert code == 0
    assert found["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert not keys_of(found) & {"prefixItems", "$defs", "discriminator", "unevaluatedProperties"}
    assert set(found["required"]) == {"version", "tune", "reward"}, "a network of one's own needs no prompts"


VALID: list[dict[str, Any]] = [
    {},
    {"model": {"kind": "mixture", "guidance": [1.0, 2.0], "batch": 4}},
    {"model": {"pretrained": "emoji", "sampler": "euler", "guidance": {"kind": "apg", "eta": 0.1}}},
    {"model": {"guidance": {"weight": 3.0}, "sampler": {"steps": 4}}},
    {
        "tune": {
            "guidance": {"start": [1, 2], "shape": {"knots": 2}},
            "guidance.rescale": {"start": 0.5, "bounds": [0, 1]},
        }
    },
    {"prompts": "emoji-tuning", "reward": "quadratic", "estimator": "auto", "optimizer": "sgd"},
    {"keep": [{"kind": "quadratic", "at_least": "start - 0.1"}, {"kind": "quadratic", "at_least": 0}]},
    {
        "reward": [{"kind": "clip", "pretrained": "x", "weight": 2}],
        "estimator": {"kind": "zeroth_order", "count": None},
    },
    {"evaluate": {"prompts": ["a"], "samples": 2}, "budget": {"minutes": 1.5, "denoiser_calls": 3}},
]
INVALID: list[dict[str, Any]] = [
    {"version": 2},
    {"promts": ["a"]},
    {"prompts": []},
    {"model": {"kind": "mixture", "pretrained": "emoji"}},
    {"model": {"sampler": {"kind": "ddim", "step": 3}}},
    {"tune": {"guidance": {"start": 1, "shape": "per_stp"}}},
    {"tune": {"guidance": {"start": 1, "bounds": [1, 2, 3]}}},
    {"tune": {"guidnce": {"start": 1}}},
    {"reward": {"kind": "quadratic", "scale": 0}},
    {"reward": "clip"},
    {"keep": [{"kind": "quadratic"}]},
    {"keep": [{"kind": "quadratic", "at_least": "begin"}]},
    {"estimator": {"kind": "zeroth_order", "h": 0}},
    {"budget": {"samples": 1}},
]
BASE = {"version": 1, "prompts": ["a"], "tune": {"guidance": {"start": 1.0}}, "reward": {"kind": "quadratic"}}


@pytest.fixture(scope="module")
def validator() -> Any:
    return pytest.importorskip("jsonschema").Draft7Validator(job_schema())


@pytest.mark.parametrize("own", VALID + INVALID, ids=str)
def test_the_schema_agrees_with_the_reader(validator: Any, own: dict[str, Any]) -> None:
    assert validator.is_valid({**BASE, **own}) == (own in VALID)


@pytest.mark.parametrize("own", INVALID, ids=str)
def test_the_reader_refuses_what_the_schema_refuses(own: dict[str, Any]) -> None:
    with pytest.raises(JobMistakes):
        read_job({**BASE, **own})


def test_the_schema_knows_every_template() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    from ruamel.yaml import YAML

    for path in templates().values():
        jsonschema.Draft7Validator(job_schema()).validate(YAML(typ="safe").load(path))


# -- doctor ------------------------------------------------------------------------------------------------


def test_doctor_looks_at_everything(genbo: Genbo) -> None:
    code, out, _ = genbo("doctor")
    assert code in (0, 1)
    for name in ("python", "torch", "diffusers", "torch + torchvision", "cpu", "cache"):
        assert name in out


def test_doctor_names_a_wrong_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor, "import_module", broken)
    (finding,) = doctor.torchvision()
    assert finding.seen == "operator torchvision::nms does not exist"
    assert finding.remedy is not None
    assert "torchvision was built for another torch" in finding.remedy
    assert "pip install" in finding.remedy


def test_doctor_survives_what_it_finds() -> None:
    def broken():  # type: ignore[no-untyped-def]
        raise ValueError("something new")
        yield

    (finding,) = doctor.safely(broken)
    assert "something new" in finding.seen


def test_doctor_says_that_the_cache_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (finding,) = doctor.cache()
    assert finding.remedy is not None


# -- ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [(Diverged("x"), 4), (OutOfMemory("x"), 5), (StorageFailed("x"), 6)],
    ids=["diverged", "memory", "disk"],
)
def test_named_ends_are_a_sentence_and_a_code(
    error: Exception, code: int, genbo: Genbo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object, **options: object) -> int:
        raise error

    monkeypatch.setattr("genbo.cli.commands.check.run", fails)
    assert genbo("check", "job.yaml") == (code, "", "x\n")


def test_a_bug_shows_its_traceback(genbo: Genbo, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object, **options: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("genbo.cli.commands.check.run", fails)
    monkeypatch.setattr(sys, "argv", ["genbo", "check", "job.yaml"])
    with pytest.raises(ZeroDivisionError):
        main()


def test_version_and_help(genbo: Genbo) -> None:
    assert genbo("--version")[1].startswith("genbo 0.")
    code, out, _ = genbo("--help")
    assert code == 0
    assert all(
        command in out for command in ("init", "check", "tune", "show", "report", "sample", "list", "schema", "doctor")
    )


def test_a_dry_run_leaves_nothing(genbo: Genbo, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = genbo("tune", "job.yaml", "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["total"]["denoiser_calls"] > 0
    assert sorted(tmp_path.rglob("*")) == before
