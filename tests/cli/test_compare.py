"""`genbo compare`: equal work, shared held-out samples, kept runs, and what its record and its page hold."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from genbo.cli.commands.tune import tune
from genbo.cli.errors import UserMistake
from genbo.cli.job.job import JobMistakes, read_job
from genbo.cli.main import app
from genbo.cli.plan.counts import plan
from genbo.cli.plan.entrants import OWN, entrants_of, work_of
from genbo.cli.report.contest import ComparisonRecord, TunerRow, cells, record_of
from genbo.cli.stages.build import assemble
from genbo.diffusion.seed import batch_of

RUNNER = CliRunner()


def job(tmp_path, **more):
    return {
        "version": 1,
        "model": {
            "kind": "gaussian",
            "means": {"a": [2.0, 0.0], "b": [0.0, 2.0]},
            "std": 0.7,
            "sampler": {"kind": "ddim", "steps": 4},
        },
        "prompts": ["a", "b"],
        "tune": {"guidance": {"start": 4.0, "bounds": [0, 10], "shape": {"knots": 2}}},
        "reward": {"kind": "quadratic", "target": [1.2, 1.2]},
        "optimizer": {"kind": "adam", "lr": 0.3},
        "budget": {"steps": 8, "samples": 8},
        "evaluate": {"samples": 16},
        "output": str(tmp_path / "run"),
        **more,
    }


def written(tmp_path, **more):
    place = tmp_path / "job.yaml"
    place.write_text(json.dumps(job(tmp_path, **more)))
    return place


def run(*words):
    return RUNNER.invoke(app, ["compare", *map(str, words)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A comparison of two repeats with three searchers, of which one cannot take so few trials."""
    tmp_path = tmp_path_factory.mktemp("compare")
    place = written(tmp_path)
    result = run(place, "--with", "grid,random", "--repeats", 2, "--json", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    return place, tmp_path / "out", json.loads(result.stdout)


def test_every_tuner_has_the_same_work(finished):
    _, folder, record = finished
    assert list(record["tuners"]) == ["job", "grid", "random"]
    for name, row in record["tuners"].items():
        assert 0.9 * record["work"] < row["work"] <= record["work"], name
        cost = json.loads((folder / f"{name}-0" / "report.json").read_text())["steps"][-1]["cost"]
        each = [json.loads((folder / f"{name}-{k}" / "figures.json").read_text())["work"] for k in (0, 1)]
        assert each[0] == cost["image_forwards"] + 2 * cost["image_backwards"]
        assert row["work"] == sum(each) / 2


def test_the_planned_work_is_what_the_job_spends(finished):
    place, _, record = finished
    assert record["work"] == work_of(plan(read_job(place)).tuning) == record["tuners"]["job"]["work"]


def test_a_gain_is_the_difference_of_held_out_means(finished):
    _, folder, record = finished
    for name, row in record["tuners"].items():
        reports = [json.loads((folder / f"{name}-{k}" / "report.json").read_text()) for k in (0, 1)]
        gains = [report["held_out"]["difference"] for report in reports]
        assert row["gains"] == pytest.approx(gains)
        assert row["gain"] == pytest.approx(sum(gains) / 2)
        assert row["way"][-1]["gain"] == pytest.approx(row["gain"])
        assert row["phi"] == [{key: value["tuned"] for key, value in report["phi"].items()} for report in reports]


def test_differences_are_the_jobs_gain_minus_the_tuners(finished):
    _, _, record = finished
    rows = record["tuners"]
    for name in ("grid", "random"):
        assert rows[name]["difference"] == pytest.approx(rows["job"]["gain"] - rows[name]["gain"])
    assert "difference" not in rows["job"] and "standing" not in rows["job"]
    assert ComparisonRecord.read(record, "comparison.json").document() == record


def test_repeats_differ_by_their_seed_and_share_it_between_tuners(finished):
    _, folder, _ = finished
    seeds = {
        (name, k): json.loads((folder / f"{name}-{k}" / "report.json").read_text())["job"]["seed"]
        for name in ("job", "grid", "random")
        for k in (0, 1)
    }
    assert seeds == {(name, k): k for name in ("job", "grid", "random") for k in (0, 1)}
    starts = [json.loads((folder / f"{name}-0" / "figures.json").read_text())["start"] for name in ("job", "grid")]
    assert starts[0] == starts[1]


def test_what_has_ended_is_not_run_again(finished):
    place, folder, record = finished
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*-*/report.json")}
    (folder / "random-1" / "figures.json").unlink()  # a kill between the run's end and its figures
    result = run(place, "--with", "grid,random", "--repeats", 2, "--json", "-o", folder, "--resume")
    again = json.loads(result.stdout)
    for row in (*record["tuners"].values(), *again["tuners"].values()):
        row.pop("elapsed_s")
    assert again == record
    changed = [file.parent.name for file, at in before.items() if file.stat().st_mtime_ns != at]
    assert changed == ["random-1"]


def test_a_folder_that_is_there_is_not_written_over(finished):
    place, folder, _ = finished
    result = run(place, "-o", folder)
    assert isinstance(result.exception, UserMistake) and "--resume" in str(result.exception)


def test_the_page_says_what_the_record_says(finished):
    _, folder, record = finished
    page = (folder / "comparison.html").read_text()
    assert record["headline"] in page and "<script" not in page
    for name in record["tuners"]:
        assert f">{name}<" in page
    assert page.count("<polyline") == len(record["tuners"])


def test_a_searcher_that_cannot_search_is_left_out_with_its_reason(tmp_path):
    made = read_job(job(tmp_path, tune={"guidance": {"start": 4.0, "bounds": [0, 10]}}))
    found = entrants_of(made, ["cmaes", "gp"], tmp_path)
    assert [entrant.name for entrant in found.each] == [OWN, "gp"]
    assert "two numbers" in found.left_out["cmaes"]


def test_trials_divide_the_work(tmp_path):
    made = read_job(job(tmp_path))
    usual = entrants_of(made, ["gp"], tmp_path).each[1].job.budget
    few = entrants_of(made, ["gp"], tmp_path, trials=8).each[1].job.budget
    half = entrants_of(made, ["gp"], tmp_path, share=0.5)
    assert usual.steps == 16 and few.steps == 8
    assert few.samples == pytest.approx(2 * usual.samples, abs=2)
    assert half.each[0].job.budget.steps * half.each[0].job.budget.samples == pytest.approx(8 * 8 / 2, abs=4)
    assert half.each[1].job.budget.samples == pytest.approx(usual.samples / 2, abs=1)


@pytest.mark.parametrize(("kind", "members"), [("two_point", 2), ("one_point", 1)])
def test_the_papers_estimators_have_fresh_noise_and_the_same_work(tmp_path, kind, members):
    made = read_job(job(tmp_path))
    found = entrants_of(made, [kind], tmp_path).each[1].job
    estimator = found.estimator.options
    assert (estimator.common, estimator.directions, estimator.count) == (False, "random", 1)
    work = work_of(plan(made).tuning)
    each = 8 * members * 4 * 2  # samples, sides, steps of the sampler, rows of a guided one
    assert work - each < work_of(plan(found).tuning) <= work
    assert found.budget.steps == work // each


def test_teachers_are_drawn_once_for_all_candidates(tmp_path):
    """A search's plan: a hundred candidates take as many teacher's samples as one."""
    more = {"tune": {"timesteps": {"start": "uniform"}}, "reward": {"kind": "teacher", "steps": 20}, "search": "random"}
    made = job(tmp_path, **more)
    del made["optimizer"]
    one, many = (read_job({**made, "budget": {"steps": n, "samples": 8}}) for n in (1, 100))
    each = 8 * 4 * 2
    assert plan(many).tuning.image_forwards - plan(one).tuning.image_forwards == 99 * each


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--with", "gpp"], "did you mean 'gp'"),
        (["--with", ""], "nothing to compare with"),
        (["--with", "grid", "--trials", "3"], "5 trials at least"),
        (["--with", "random", "--budget", "0.01"], "16 trials of 4 samples take"),
        (["--with", "random", "--set", "budget.steps=0"], "tunes nothing"),
        (["--with", "random", "--set", "objective=worst"], "mean rewards"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, words, message):
    result = run(written(tmp_path), *words)
    assert isinstance(result.exception, UserMistake) and message in str(result.exception)


def test_an_estimator_whose_first_step_is_too_dear_is_left_out(tmp_path):
    found = entrants_of(read_job(job(tmp_path)), ["two_point", "one_point"], tmp_path, work=64)
    assert [entrant.name for entrant in found.each] == [OWN, "one_point"]
    assert found.left_out["two_point"] == "one step takes 128 units of work, and each tuner may spend 64"


def test_levels_that_no_score_counts_are_named(tmp_path):
    kept = {"kind": "linear", "direction": [1, 0], "at_least": "start"}
    result = run(written(tmp_path, keep=kept), "--with", "random", "--repeats", 1, "-o", tmp_path / "out")
    assert result.exit_code == 0 and "levels under keep" in result.stdout
    assert "levels under keep" in (tmp_path / "out" / "comparison.html").read_text()


def test_a_searcher_named_twice_is_compared_once(tmp_path):
    found = entrants_of(read_job(job(tmp_path)), ["gp", "random", "gp"], tmp_path)
    assert [entrant.name for entrant in found.each] == [OWN, "gp", "random"]


@pytest.mark.parametrize("inside", ["", "/out"])
def test_a_file_where_the_folder_would_be_is_a_mistake(tmp_path, inside):
    (tmp_path / "file").write_text("mine")
    result = run(written(tmp_path), "--with", "random", "-o", f"{tmp_path}/file{inside}")
    assert isinstance(result.exception, UserMistake) and "is a file" in str(result.exception)
    assert (tmp_path / "file").read_text() == "mine"


def figures(tuned, start=(0.0, 0.0, 0.0, 0.0), work=100):
    return {
        "phi": {"guidance": 2.0},
        "work": work,
        "cost": {"denoiser_calls": 5},
        "elapsed_s": 1.0,
        "peak_bytes": None,
        "prompts": ["a", "b", "c", "d"],
        "fresh_prompts": True,
        "start": list(start),
        "tuned": list(tuned),
        "way": [{"work": work, "gain": 0.0}],
    }


def test_words_of_a_record_made_by_hand():
    ahead = [figures([1.0, 1.1, 1.0, 1.1]), figures([1.1, 1.0, 1.1, 1.0])]
    behind = [figures([0.1, 0.0, 0.0, 0.1]), figures([0.0, 0.1, 0.1, 0.0])]
    same = [figures([1.1, 1.0, 1.1, 1.0]), figures([1.0, 1.1, 1.0, 1.1])]
    failed = [figures([1.0] * 4), {"failed": "not finite"}]
    plans = dict.fromkeys(("job", "grid", "gp", "tpe"), (8, 8))
    runs = {"job": ahead, "grid": behind, "gp": same, "tpe": failed}
    made = record_of(runs, plans, own="job", work=100, common=True, left_out={}, job={})
    assert [made.tuners[name].standing for name in runs] == [None, "ahead", "no measurable difference", None]
    assert made.headline == "At equal work the job is ahead of grid and shows no measurable difference to gp."
    assert made.tuners["tpe"].failed == ["not finite"] and cells("tpe", made.tuners["tpe"])[1] == "failed"
    turned = record_of({"job": behind, "grid": ahead}, plans, own="job", work=100, common=True, left_out={}, job={})
    assert turned.tuners["grid"].standing == "behind"
    lost = record_of({"job": failed, "grid": same}, plans, own="job", work=100, common=True, left_out={}, job={})
    assert lost.headline == "The job failed in 1 repeat: not finite" and isinstance(lost.tuners["grid"], TunerRow)


def test_a_comparison_over_lambda_has_equal_samples_and_counts_repeats(tmp_path):
    made = {
        "version": 1,
        "model": {"kind": "gaussian", "means": {"o": [0.0, 0.0]}, "std": 1.0, "sampler": {"kind": "dpmpp", "steps": 24}}
        | {"guidance": 1.0, "batch": 4096},
        "prompts": ["o"],
        "tune": {"regularization": {"start": 3.0, "bounds": [0.5, 10]}},
        "reward": {"kind": "quadratic", "target": [1.5, 0.0], "scale": 0.5},
        "lower": {"kind": "reweight", "reward": {"kind": "linear", "direction": [1.0, 0.0]}, "samples": 2048},
        "budget": {"steps": 2},
        "evaluate": {"samples": 4096},
        "output": str(tmp_path / "run"),
    }
    place = tmp_path / "job.yaml"
    place.write_text(json.dumps(made))
    result = run(place, "--with", "grid,cmaes", "--repeats", 2, "--json", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["work"] == work_of(plan(read_job(made)).tuning) and "cmaes" in record["left_out"]
    assert record["tuners"]["job"]["work"] <= record["work"]  # the search for lambda may end early
    assert 0.9 * record["work"] < record["tuners"]["grid"]["work"] <= record["work"]
    for row in record["tuners"].values():  # E[r1] at lambda is -((1 / lambda - 1.5)^2 + 2) / 2, at infinity -2.125
        exact = [(1.5**2 - (1 / phi["regularization"] - 1.5) ** 2) / 2 for phi in row["phi"]]
        assert row["gain"] == pytest.approx(sum(exact) / 2, abs=0.1)
    fixed = run(place, *values_in(tmp_path, a={"regularization": 2.0}, b={"regularization": 3.0}))
    assert isinstance(fixed.exception, UserMistake) and "no lambdas" in str(fixed.exception)
    one = run(place, "--with", "grid", "--repeats", 1, "-o", tmp_path / "one")
    assert isinstance(one.exception, UserMistake) and "--repeats" in str(one.exception)


def values_in(tmp_path, **files) -> list[str]:
    """`--phi` options for files of these names."""
    words = []
    for name, value in files.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps(value))
        words += ["--phi", str(tmp_path / f"{name}.yaml")]
    return words


def test_names_of_files_are_shown_as_they_are(tmp_path):
    words = values_in(tmp_path, **{"[red]low": {"guidance": [0.5, 0.5]}, "<i>high": {"guidance": [3.0, 1.0]}})
    result = run(written(tmp_path), *words, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "[red]low is" in result.stdout and "<i>high" in result.stdout
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "[red]low" in page and "<i>" not in page and "&lt;i&gt;high" in page


def test_fixed_values_are_compared_on_the_same_samples(tmp_path):
    """Against the scores of the problem itself, drawn here."""
    place = written(tmp_path)
    phis = {"low": [0.5, 0.5], "ramp": [3.0, 1.0]}
    words = values_in(tmp_path, **{name: {"guidance": phi} for name, phi in phis.items()})
    result = run(place, *words, "--json", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    a = assemble(read_job(place))
    batch = batch_of(a.held_out, 16, a.seed.child("evaluate"))
    scores = {n: a.judge.scores(torch.tensor([phi], dtype=torch.float64), batch)[0, 0] for n, phi in phis.items()}
    for name, row in record["tuners"].items():
        assert row["gain"] == pytest.approx(scores[name].mean().item()) and row["phi"] == [{"guidance": phis[name]}]
    difference = (scores["low"] - scores["ramp"]).mean().item()
    assert record["tuners"]["ramp"]["difference"] == pytest.approx(difference)
    standing = record["tuners"]["ramp"]["standing"]
    assert record["headline"].startswith("low ") and standing in ("ahead", "behind", "no measurable difference")
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "low minus it" in page and "job" not in page.partition("<main>")[2]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"low": {"guidance": 2.0}, "far": {"guidance": 11.0}}, "outside the bounds"),
        ({"low": {"guidance": 2.0}, "odd": {"lambda": 1.0}}, "lambda"),
        ({"low": {"guidance": 2.0}, "list": [2.0]}, "like guidance: 2.5"),
    ],
)
def test_values_that_the_job_does_not_allow_are_refused(tmp_path, files, message):
    result = run(written(tmp_path), *values_in(tmp_path, **files), "-o", tmp_path / "out")
    assert result.exit_code != 0 and message in str(result.exception)


@pytest.mark.parametrize("shape", [{"knots": 2}, None])
def test_a_job_without_steps_evaluates_its_start_once(tmp_path, shape):
    guidance = {"start": 4.0, "bounds": [0, 10], **({"shape": shape} if shape else {})}
    made = job(tmp_path, tune={"guidance": guidance}, budget={"steps": 0, "samples": 8})
    planned = plan(read_job(made)).total
    found = tune(made).result()
    cost = found.document["cost"]
    assert found.verdict is None and "Nothing was tuned" in found.document["headline"]
    assert (cost["denoiser_calls"], cost["image_forwards"]) == (planned.denoiser_calls, planned.image_forwards)
    assert planned.image_forwards == 16 * 4 * 2 and found.phi == {"guidance": [4.0, 4.0] if shape else 4.0}
    assert found.document["held_out"]["start"] == found.document["held_out"]["tuned"]
    with pytest.raises(JobMistakes, match="search without steps"):
        read_job({key: value for key, value in made.items() if key != "optimizer"} | {"search": "random"})
