"""A job: read, resolved, read again; overrides; whatever is thrown at it, mistakes and no tracebacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genbo.cli.errors import UserMistake
from genbo.cli.job import sections
from genbo.cli.job.grammar import SECTIONS
from genbo.cli.job.job import Job, JobMistakes, read_job
from genbo.cli.job.schema import job_schema
from genbo.cli.run.job_file import to_yaml

WORLD: dict[str, Any] = {
    "version": 1,
    "model": {"kind": "mixture", "sampler": {"kind": "ddim", "steps": 4}},
    "prompts": ["east", "north"],
    "tune": {"guidance": {"start": 1.0}},
    "reward": {"kind": "quadratic"},
}


def mistakes_of(source: Any, *overrides: str) -> str:
    with pytest.raises(JobMistakes) as caught:
        read_job(source, overrides)
    assert isinstance(caught.value, UserMistake)
    assert caught.value.exit_code == 2
    return str(caught.value)


# -- what is read ------------------------------------------------------------------------------------------


def test_defaults() -> None:
    job = read_job(WORLD)
    assert job.model.guidance.kind == "plain"
    assert job.model.guidance.options.weight == 5.0
    assert (job.estimator.kind, job.optimizer.kind) == ("auto", "adam")
    assert (job.budget.steps, job.budget.samples, job.evaluate.samples) == (20, 64, 128)
    assert (job.seed, job.output) == (0, "runs/guidance")
    assert job.chosen().name == "zeroth_order"
    assert "1 parameter" in job.chosen().reason


def test_short_and_long_forms_are_the_same_job() -> None:
    long = {
        **WORLD,
        "model": {**WORLD["model"], "guidance": {"kind": "plain", "weight": 5}},
        "reward": [{"kind": "quadratic", "weight": 1}],
        "estimator": {"kind": "auto"},
        "optimizer": {"kind": "adam"},
        "keep": [],
    }
    assert read_job(long) == read_job({**WORLD, "reward": "quadratic", "optimizer": "adam", "estimator": "auto"})
    assert read_job(long).digest() == read_job(WORLD).digest()


@pytest.mark.parametrize(
    ("written", "level", "relative"),
    [
        (0.3, 0.3, False),
        (-2, -2.0, False),
        ("start", 0.0, True),
        ("start - 0.1", -0.1, True),
        ("start+1e-2", 0.01, True),
    ],
)
def test_levels(written: object, level: float, relative: bool) -> None:
    job = read_job({**WORLD, "keep": {"kind": "quadratic", "at_least": written}})
    (keep,) = job.keep
    assert (keep.at_least, keep.relative_to_start) == (level, relative)
    assert read_job(job.document()) == job


def test_names_of_rewards_are_unique() -> None:
    job = read_job({**WORLD, "reward": ["quadratic", {"kind": "quadratic", "target": 1.0}]})
    assert [reward.name for reward in job.reward] == ["quadratic", "quadratic-2"]


def test_knots_and_an_option_of_the_rule() -> None:
    rule = {"kind": "rescaled", "weight": 4.0}
    tune = {"guidance": {"start": 1.0, "shape": {"knots": 3}}, "guidance.rescale": {"start": 0.5}}
    job = read_job({**WORLD, "model": {**WORLD["model"], "guidance": rule}, "tune": tune})
    assert job.parameters == 4
    assert job.tune["guidance"].shape.knots == 3
    assert job.tune["guidance.rescale"].option == "rescale"
    assert job.tune["guidance.rescale"].bounds == (0.0, 1.0), "the option's own domain, where no bounds are given"
    assert read_job(job.document()) == job


def test_numbers_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "version: 1\nmodel: {kind: mixture, sampler: ddim, labels: [no, 1:30, 2024-01-01]}\n"
        "prompts: [no, 1:30, 2024-01-01]\ntune: {guidance: {start: 1e-3, bounds: [.0, 0o17]}}\n"
        "reward: {kind: quadratic, scale: 1.5E+1}\nseed: 010\n"
    )
    job = read_job(path)
    assert job.prompts == ("no", "1:30", "2024-01-01")
    assert (job.tune["guidance"].start, job.tune["guidance"].bounds) == (0.001, (0.0, 15.0))
    assert (job.reward[0].options.scale, job.seed) == (15.0, 10)


# -- files and folders -------------------------------------------------------------------------------------


def test_prompts_from_a_file_beside_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "words.txt").write_text("east\n\n  north \r\n", encoding="utf-8")
    path = tmp_path / "job.yaml"
    path.write_bytes(to_yaml({**WORLD, "prompts": "words.txt"}))
    monkeypatch.chdir("/")
    job = read_job(path)
    assert job.prompts == ("east", "north")
    assert job.document()["prompts"] == ["east", "north"], "the prompts themselves: the file may change"


def test_a_models_folder_is_beside_the_job(tmp_path: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "model").symlink_to(tiny_sd)
    path = tmp_path / "jobs" / "job.yaml"
    path.write_bytes(to_yaml({**WORLD, "model": {"pretrained": "../model"}}))
    monkeypatch.chdir("/")
    job = read_job(path)
    assert job.model.options.pretrained == str(tmp_path / "model")
    assert read_job(job.document()) == job


def test_a_hub_id_stays_as_it_is() -> None:
    assert read_job({**WORLD, "model": {"pretrained": "org/name"}}).model.options.pretrained == "org/name"


def test_held_out_prompts() -> None:
    assert not read_job(WORLD).held_out_is_fresh_prompts
    fresh = read_job({**WORLD, "evaluate": {"prompts": ["south"]}})
    assert fresh.held_out == ("south",)
    assert fresh.held_out_is_fresh_prompts


def test_a_file_where_the_output_should_be(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert "is a file" in mistakes_of({**WORLD, "output": str(tmp_path / "taken" / "run")})


# -- overrides ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("budget.steps=5", ["budget", "steps"], 5),
        ("reward.weight=2", ["reward", 0, "weight"], 2.0),
        ("reward.0.weight=2", ["reward", 0, "weight"], 2.0),
        ("model.guidance=[1, 2, 3, 4]", ["model", "guidance", "weight"], [1.0, 2.0, 3.0, 4.0]),
        ("model.guidance.kind=apg", ["model", "guidance", "weight"], 5.0),
        ("model.sampler.steps=7", ["model", "sampler", "steps"], 7),
        ("tune.guidance.shape={knots: 3}", ["tune", "guidance", "shape"], {"knots": 3}),
        ("tune.guidance.bounds.1=9", ["tune", "guidance", "bounds"], [0.0, 9.0]),
        ("prompts.1=south", ["prompts"], ["east", "south"]),
        ("optimizer.lr=1e-2", ["optimizer", "lr"], 0.01),
        ("output=a=b", ["output"], "a=b"),
    ],
)
def test_override(override: str, path: list[Any], value: object) -> None:
    source = {**WORLD, "model": {**WORLD["model"], "guidance": 5.0}, "optimizer": "adam"}
    source["tune"] = {"guidance": {"start": 1.0, "bounds": [0, 20]}}
    found: Any = read_job(source, [override]).document()
    for key in path:
        found = found[key]
    assert found == value


def test_an_option_of_the_rule_by_override() -> None:
    overrides = [
        "model.guidance.kind=rescaled",
        "tune.guidance.rescale.start=0.5",
        "tune.guidance.rescale.shape.knots=2",
    ]
    assert read_job(WORLD, overrides).tune["guidance.rescale"].shape.knots == 2


def test_the_last_override_wins_and_the_source_stays() -> None:
    source = {**WORLD, "budget": {"steps": 9}}
    assert read_job(source, ["budget.steps=5", "budget.steps=6"]).budget.steps == 6
    assert source["budget"] == {"steps": 9}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tune.guidance.start=x", "--set tune.guidance.start: must be a number, not 'x'"),
        ("budget.stepz=3", "--set budget.stepz: unknown key; did you mean 'steps'?"),
        ("budget", "--set budget: write it as key.key=value, like budget.steps=5"),
        ("a..b=1", "--set a..b=1: write it as key.key=value, like budget.steps=5"),
        ("prompts.7=x", "--set prompts.7: '7' is not in this list of 2; give a number from 0 to 1"),
        ("reward={kind: [}", "--set reward: this bracket is not closed"),
        ("output=!!python/name:os.system x", "--set output: the tag"),
    ],
)
def test_a_mistake_in_an_override(override: str, said: str) -> None:
    assert mistakes_of(WORLD, override).startswith(said)


# -- resolved and read again -------------------------------------------------------------------------------

NASTY = [
    "no",
    "1e-3",
    "1_000",
    "0x1f",
    "12:30",
    "~",
    "null",
    "- a",
    "a: b",
    "#x",
    "'",
    '"',
    "é\U0001f34e",
    "true",
    ".inf",
    "!x",
    "&a",
    "=",
    "<<",
]


def test_the_resolved_job_is_read_back_equal(tmp_path: Path) -> None:
    """Through the YAML that a run folder holds, with prompts that YAML could take for something else."""
    model = {
        "kind": "mixture",
        "labels": NASTY,
        "means": [[1.0, 0.0]] * len(NASTY),
        "weights": [1.0] * len(NASTY),
    }
    job = read_job({**WORLD, "model": model, "prompts": NASTY, "keep": {"kind": "quadratic", "at_least": "start"}})
    path = tmp_path / "job.yaml"
    path.write_bytes(to_yaml(job.document()))
    again = read_job(path)
    assert again == job
    assert again.document() == job.document()
    assert again.digest() == job.digest()


def test_the_digest_follows_everything_but_the_output() -> None:
    digest = read_job(WORLD).digest()
    assert read_job(WORLD, ["output=elsewhere"]).digest() == digest
    changes = [
        "seed=1",
        "budget.steps=21",
        "prompts=[east]",
        "tune.guidance.start=1.1",
        "reward.scale=2",
        "model.std=0.5",
    ]
    assert len({digest, *(read_job(WORLD, [change]).digest() for change in changes)}) == len(changes) + 1


def test_a_job_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        read_job(WORLD).seed = 3


# -- whatever is thrown at it ------------------------------------------------------------------------------

PIECES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        [
            "quadratic",
            "mixture",
            "ddim",
            "start",
            "auto",
            "kind",
            "scalar",
            10**400,
            "\0",
            "\ud800",
            "~",
            "/dev/zero",
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=5) | st.sampled_from(["kind", "start", "knots", "steps", "weight"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
PATHS = st.sampled_from(
    [
        "",
        "version",
        "model",
        "model.kind",
        "model.sampler",
        "model.sampler.steps",
        "model.guidance",
        "model.batch",
        "model.means",
        "model.labels",
        "prompts",
        "prompts.0",
        "tune",
        "tune.guidance",
        "tune.guidance.start",
        "tune.guidance.bounds",
        "tune.guidance.shape",
        "reward",
        "reward.kind",
        "reward.weight",
        "reward.target",
        "keep",
        "estimator",
        "estimator.kind",
        "optimizer",
        "budget",
        "budget.samples",
        "evaluate",
        "evaluate.prompts",
        "seed",
        "output",
        "extra",
        "model.pretrained",
        "model.device",
    ]
)
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def with_piece(path: str, piece: Any) -> Any:
    """The world with one piece of it replaced."""
    if not path:
        return piece if isinstance(piece, dict) else {"version": piece}
    source = read_job(WORLD).document()
    *above, last = path.split(".")
    at: Any = source
    for key in above:
        at = at[key] if isinstance(at, dict) and isinstance(at.get(key), (dict, list)) else at
        at = at[0] if isinstance(at, list) and last != "0" else at
    at[int(last) if isinstance(at, list) else last] = piece
    return source


@QUICK
@given(path=PATHS, piece=PIECES)
def test_any_value_anywhere(path: str, piece: Any) -> None:
    try:
        job = read_job(with_piece(path, piece))
    except JobMistakes as found:
        assert found.mistakes
        assert all("\n" not in mistake.message for mistake in found.mistakes)
    else:
        assert isinstance(job, Job)
        assert read_job(job.document()).digest() == job.digest()


@QUICK
@given(data=st.binary(max_size=300) | st.text(alphabet="[]{}:,-#&*!|>'\"%@ \n\tab01.~?", max_size=80).map(str.encode))
def test_any_bytes(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    with pytest.raises(JobMistakes):
        read_job(path)


@QUICK
@given(cut=st.integers(0, 400), insert=st.text(alphabet="[]{}:,-#&*!|>'\"%@ \n\tab01.~?\ufeff\u2028", max_size=4))
def test_a_job_with_a_slip_of_the_hand(cut: int, insert: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    text = to_yaml(WORLD).decode()
    path = tmp_path_factory.getbasetemp() / "slip.yaml"
    path.write_text(text[: cut % len(text)] + insert + text[cut % len(text) :], encoding="utf-8")
    try:
        assert isinstance(read_job(path), Job)
    except JobMistakes as found:
        assert all(mistake.line and mistake.column for mistake in found.mistakes)


@QUICK
@given(text=st.text(alphabet="abtune.guidance=0[]{}:,-reward ", max_size=30))
def test_any_override(text: str) -> None:
    try:
        assert isinstance(read_job(WORLD, [text]), Job)
    except JobMistakes as found:
        assert found.mistakes


# -- one file a key ----------------------------------------------------------------------------------------


def test_every_key_is_a_file_and_every_file_is_a_key() -> None:
    """`sections/` holds each key once, under its own name; and a job has a field for each and no other."""
    files = {file.stem for file in Path(sections.__path__[0]).glob("[!_]*.py")}
    assert [section.key for section in SECTIONS] == list(dict.fromkeys(section.key for section in SECTIONS))
    assert {section.key for section in SECTIONS} == files
    assert all(type(section).__module__.endswith(f".{section.key}") for section in SECTIONS)
    assert {section.field for section in SECTIONS} == set(Job.model_fields)
    assert list(job_schema()["properties"]) == [section.key for section in SECTIONS]


def test_a_resolved_job_is_written_in_the_order_of_the_keys() -> None:
    written = list(read_job(WORLD).document())
    assert written == [section.key for section in SECTIONS if section.key in written]
    assert {section.key for section in SECTIONS} - set(written) == {"data", "lower", "finetune", "search"}
