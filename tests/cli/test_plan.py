"""The plan against the run's own meter: equal, to the last row, for every estimator."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from genbo.cli.job.job import Job, read_job
from genbo.cli.plan.counts import Cost, plan
from genbo.cli.plan.throughput import cache_folder, expected_s, record_speed

MEANS = [[1.5, 0.0, 1.0], [-0.7, 1.0, 0.0], [0.0, 0.0, 1.0]]
ESTIMATORS: dict[str, Any] = {
    "auto": "auto",
    "forward-differences": {"kind": "zeroth_order", "points": "forward"},
    "own-noise": {"kind": "zeroth_order", "common": False},
    "own-noise-forward": {"kind": "zeroth_order", "common": False, "points": "forward"},
    "random": {"kind": "zeroth_order", "directions": "random", "count": 3},
    "one-point": {"kind": "zeroth_order", "directions": "random", "points": "one_point"},
    "reverse": "reverse_mode",
    "reverse-kept": {"kind": "reverse_mode", "checkpoint": False},
    "forward": "forward_mode",
}
# What is tuned, and the rule: from weight 1, on a bound, at 1 between knots; and switched off.
TUNED: dict[str, Any] = {
    "scalar-from-1": ({"guidance": {"start": 1.0}}, 5.0),
    "per-step-from-1": ({"guidance": {"start": 1.0, "shape": "per_step"}}, 5.0),
    "per-step-on-a-bound": ({"guidance": {"start": 1.0, "bounds": [1, 4], "shape": "per_step"}}, 5.0),
    "knots-through-1": ({"guidance": {"start": [0, 2, 1], "shape": {"knots": 3}}}, 5.0),
    "knots-flat-at-1": ({"guidance": {"start": [1, 1, 3], "shape": {"knots": 3}}}, 5.0),
    "another-option": (
        {"guidance.rescale": {"start": 0.5}},
        {"kind": "rescaled", "weight": [1.0, 2.0, 1.0, 3.0]},
    ),
    "two-at-once": ({"guidance": {"start": 1.0}, "guidance.rescale": {"start": 0.5}}, {"kind": "rescaled"}),
    "interval": (
        {"guidance": {"start": 3.0, "shape": "per_step"}},
        {"kind": "interval", "start": 0.3, "stop": 0.6},
    ),
}
START: dict[str, Any] = {"kind": "quadratic", "target": 1.0, "at_least": "start"}


def job_of(estimator: Any, tune: Any, guidance: Any, **own: Any) -> Job:
    """Four steps on the exact world; 16 samples in calls of 10 leave a smaller last call."""
    model = {"kind": "mixture", "means": MEANS, "sampler": {"kind": "ddim", "steps": 4}, "batch": 10}
    steps = 3 if estimator == ESTIMATORS["one-point"] else 2  # its first step has no value before it, and moves nothing
    job = {
        "version": 1,
        "model": {**model, "guidance": guidance},
        "prompts": ["east", "north"],
        "tune": tune,
        "reward": {"kind": "quadratic"},
        "estimator": estimator,
        "budget": {"steps": steps, "samples": 16},
        "evaluate": {"samples": 13},
    }
    return read_job({**job, **own})


def run(job: Job) -> list[Cost]:
    """What the meter saw of tuning, and of the evaluation at the start and tuned."""
    from genbo.bilevel.loop import tune
    from genbo.bilevel.verdict import draw
    from genbo.cli.stages.build import assemble
    from genbo.diffusion.seed import batch_of

    a = assemble(job)
    meter = a.problem.process.meter
    *_, last = tune(a.problem, a.estimator, a.optimizer, a.prompts, a.budget, a.seed)
    seen = [Cost(**meter.as_dict())]
    for phi in (a.problem.first(), a.problem.value(last.state.u)):
        before = Cost(**meter.as_dict())
        list(draw(a.problem, phi, batch_of(a.held_out, job.evaluate.samples, a.seed.child("evaluate"))))
        seen.append(Cost(**meter.as_dict()) + before * -1)
    return seen


def every_other(*tables: Iterable[str]) -> list[Any]:
    """All combinations of names. One of two is a slow test, so that the quick ones still have every pair of three."""
    found = []
    for numbered in product(*(list(enumerate(table)) for table in tables)):
        marks = pytest.mark.slow if sum(n for n, _ in numbered) % 2 else ()
        found.append(pytest.param(*(name for _, name in numbered), marks=marks))
    return found


@pytest.mark.parametrize(("estimator", "tuned", "keep"), every_other(ESTIMATORS, TUNED, ["", "keep-start"]))
def test_the_plan_is_what_the_meter_shows(estimator: str, tuned: str, keep: str) -> None:
    tune, guidance = TUNED[tuned]
    job = job_of(ESTIMATORS[estimator], tune, guidance, keep=[START] if keep else [])
    planned = plan(job)
    assert planned.inexact is None
    assert [planned.tuning, *planned.evaluation.values()] == run(job)
    assert planned.total == sum(planned.evaluation.values(), planned.tuning)


# What is tuned beside a teacher, the rule, and what else the job says.
TAUGHT: dict[str, Any] = {
    "times": ({"timesteps": {}}, 2.0, {}),
    "times-unguided": ({"timesteps": {"start": "trailing"}}, 1.0, {}),
    "times-and-guidance": (
        {"timesteps": {}, "guidance": {"start": 1.0, "shape": "per_step"}},
        [2.0, 1.0, 1.0, 3.0],
        {},
    ),
    "guidance-through-1": ({"guidance": {"start": [0, 2, 1], "shape": {"knots": 3}}}, [1.0, 1.0, 2.0, 1.0], {}),
    "from-a-pool": ({"timesteps": {}}, 2.0, {"budget": {"steps": 4, "samples": 16, "pool": 40}}),
    "kept": ({"timesteps": {}}, 2.0, {"keep": [START, {"kind": "teacher", "steps": 7, "at_least": "start"}]}),
    "twice": ({"timesteps": {}}, 1.0, {"reward": [{"kind": "teacher", "steps": s} for s in (9, 9, 6)]}),
    "interval": ({"timesteps": {}}, {"kind": "interval", "weight": 3.0, "start": 0.3, "stop": 0.6}, {}),
}


@pytest.mark.parametrize(("estimator", "taught"), every_other(ESTIMATORS, TAUGHT))
def test_teachers_are_in_the_plan(estimator: str, taught: str) -> None:
    """Each sample's once a step, or once a run where samples come from a pool, whatever the members are."""
    tune, guidance, own = TAUGHT[taught]
    job = job_of(ESTIMATORS[estimator], tune, guidance, **{"reward": {"kind": "teacher", "steps": 9}, **own})
    planned = plan(job)
    assert planned.inexact is None
    assert [planned.tuning, *planned.evaluation.values()] == run(job)


@pytest.mark.parametrize("limit", [1, 60, 61, 120, 200, 10_000])
def test_a_budget_of_calls_with_a_teacher(limit: int) -> None:
    budget = {"steps": 5, "samples": 16, "pool": 24, "denoiser_calls": limit}
    job = job_of("auto", {"timesteps": {}}, 2.0, reward={"kind": "teacher", "steps": 9}, budget=budget)
    assert plan(job).tuning == run(job)[0]


def test_calls_stay_exact_where_rows_cannot_be() -> None:
    job = job_of("auto", {"guidance.stop": {"start": 0.5}}, {"kind": "interval"})
    planned = plan(job)
    assert planned.inexact is not None
    assert planned.tuning.denoiser_calls == run(job)[0].denoiser_calls


@pytest.mark.parametrize("limit", [1, 16, 17, 31, 32, 33, 1000])
def test_a_budget_of_calls(limit: int) -> None:
    job = job_of("auto", *TUNED["scalar-from-1"], budget={"steps": 3, "samples": 16, "denoiser_calls": limit})
    assert plan(job).tuning == run(job)[0]


def test_the_estimators_say_how_many_they_draw() -> None:
    for options in ESTIMATORS.values():
        chosen = job_of(options, *TUNED["per-step-from-1"]).chosen().options
        for parameters in (1, 2, 5):
            cost = chosen.cost(parameters)
            assert sum(map(len, cost.draws)) == cost.trajectories


@pytest.mark.parametrize("shape", ["scalar", "per_step", {"knots": 2}, {"knots": 3}, {"knots": 5}])
@pytest.mark.parametrize("steps", [5, 6, 20])
def test_the_plain_numbers_of_a_tunable_are_its_tensors(shape: Any, steps: int) -> None:
    tunable = job_of("auto", {"guidance": {"start": 2.0, "shape": shape}}, 5.0, model={"kind": "mixture"}).tune[
        "guidance"
    ]
    phi = [float(i * i) for i in range(tunable.size(steps))]
    import torch

    over_steps = tunable.over_steps(torch.tensor([phi], dtype=torch.float64), steps)[0].tolist()
    assert tunable.spread(phi, steps) == pytest.approx(over_steps, abs=1e-12)
    assert tunable.numbers(steps) == tunable.first(steps).tolist()


def test_the_intervals_plain_weight_is_its_tensor() -> None:
    import torch

    from genbo.diffusion.guidance.interval import Interval
    from genbo.diffusion.process import effective_weights

    numbers = {"weight": 3.0, "start": 0.22, "stop": 0.71}
    tensors = {name: torch.full((1, 7), value, dtype=torch.float64) for name, value in numbers.items()}
    plain = [Interval().effective_weight(numbers, i, 7) for i in range(7)]
    assert plain == pytest.approx(effective_weights(Interval(), tensors)[0].tolist(), abs=1e-12)
    assert plain[0] == 1 and plain[3] == 3


# -- words -------------------------------------------------------------------------------------------------


def test_warnings() -> None:
    said = plan(job_of("auto", *TUNED["scalar-from-1"])).warnings
    assert any("fresh seeds" in warning for warning in said)
    said = plan(job_of("auto", *TUNED["scalar-from-1"], evaluate={"prompts": ["south", "east"]})).warnings
    assert any("both tuned on and held out" in warning for warning in said)
    assert not plan(job_of("auto", *TUNED["scalar-from-1"], evaluate={"prompts": ["south"]})).warnings


def test_text_and_document(cache: Path) -> None:
    planned = plan(job_of("auto", *TUNED["scalar-from-1"]))
    text = planned.text()
    assert f"{planned.total.image_forwards:,}" in text
    assert "unknown until measured: genbo check --measure" in text
    assert "zeroth_order: 1 parameter" in text
    document = json.loads(json.dumps(planned.document()))
    assert document["total"]["denoiser_calls"] == planned.denoiser_calls
    assert document["exact"] is True


# -- speed -------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "genbo" / "speed.json"


def test_speed_is_remembered(cache: Path) -> None:
    job = job_of("auto", *TUNED["scalar-from-1"])
    assert expected_s(job, 100) is None
    assert record_speed(job, image_forwards=50, elapsed_s=2.0)
    assert expected_s(job, 100) == pytest.approx(4.0)
    assert plan(job).expected_s == pytest.approx(0.04 * plan(job).image_forwards)
    assert expected_s(job_of("reverse_mode", *TUNED["scalar-from-1"]), 100) is None, "gradients take longer"
    assert [path.name for path in cache.parent.iterdir()] == ["speed.json"]


@pytest.mark.parametrize("damage", ["", "[1]", '{"a": "x"}', "\0"])
def test_a_damaged_speed_file_knows_nothing(cache: Path, damage: str) -> None:
    cache.parent.mkdir()
    cache.write_text(damage)
    job = job_of("auto", *TUNED["scalar-from-1"])
    assert expected_s(job, 100) is None
    assert record_speed(job, 50, 2.0)
    assert expected_s(job, 100) == pytest.approx(4.0)


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not record_speed(job_of("auto", *TUNED["scalar-from-1"]), 50, 2.0)
    assert cache_folder() == tmp_path / "file" / "genbo"


# -- memory ------------------------------------------------------------------------------------------------


def test_weights_are_counted_from_headers(tiny_sd: Path, tiny_clip: Path) -> None:
    from safetensors import safe_open

    def numbers(folder: Path) -> int:
        total = 0
        for file in folder.rglob("*.safetensors"):
            with safe_open(file, "pt") as data:
                total += sum(data.get_tensor(key).numel() for key in data.keys())  # noqa: SIM118
        return total

    model = {"pretrained": str(tiny_sd), "dtype": "fp16", "device": "cpu"}
    job = job_of("auto", *TUNED["scalar-from-1"], model=model, reward={"kind": "clip", "pretrained": str(tiny_clip)})
    found = plan(job).memory
    assert found is not None
    assert found.weights == numbers(tiny_sd) * 2 + numbers(tiny_clip) * 4
    reverse = job_of("reverse_mode", *TUNED["scalar-from-1"], model=model)
    assert plan(reverse).memory.activations > found.activations  # type: ignore[union-attr]


def test_a_reward_that_is_one_file_is_counted_and_hashed(tiny_sd: Path, random_resnet18: Path) -> None:
    from hashlib import sha256

    from genbo.cli.plan.memory import numbers_in
    from genbo.cli.stages.provenance import files_of

    model = {"pretrained": str(tiny_sd), "dtype": "fp32", "device": "cpu"}
    both = []
    for reward in ("compressibility", {"kind": "resnet18", "pretrained": str(random_resnet18)}):
        job = job_of("auto", *TUNED["scalar-from-1"], model=model, reward=reward)
        both.append(plan(job).memory.weights)  # type: ignore[union-attr]
    assert both[1] - both[0] == 4 * numbers_in(random_resnet18) > 4e7
    found = files_of(job.reward[0].options.open())
    assert found == {"resnet18.safetensors": sha256(random_resnet18.read_bytes()).hexdigest()}


def test_an_exact_world_needs_little() -> None:
    assert plan(job_of("auto", *TUNED["scalar-from-1"])).memory is None
