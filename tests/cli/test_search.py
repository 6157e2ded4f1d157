"""A search in place of a gradient: `search: gp` in a job, its loop, its journal, its resume and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch

from genbo.bilevel import search_loop
from genbo.bilevel.candidate_value import CandidateValue
from genbo.bilevel.loop import Budget, begin
from genbo.bilevel.searchers.grid import Grid
from genbo.bilevel.searchers.random import Random
from genbo.bilevel.trials import Candidate, NotTheSame
from genbo.bilevel.variants import Variants
from genbo.cli.commands.tune import tune
from genbo.cli.job.job import JobMistakes, read_job
from genbo.cli.plan.counts import plan
from genbo.cli.stages.build import assemble
from genbo.diffusion.seed import Seed

SEARCHERS = ["grid", "random", "tpe", "gp", "consensus"]


def job(tmp_path, search="random", steps=9, **more):
    return {
        "version": 1,
        "model": {
            "kind": "gaussian",
            "means": {"a": [2.0, 0.0], "b": [0.0, 2.0]},
            "std": 0.7,
            "sampler": {"kind": "ddim", "steps": 4},
        },
        "prompts": ["a", "b"],
        "tune": {"guidance": {"start": 4.0, "bounds": [0, 10]}},
        "reward": {"kind": "quadratic", "target": [1.2, 1.2]},
        "search": search,
        "budget": {"steps": steps, "samples": 16},
        "evaluate": {"samples": 32},
        "output": str(tmp_path / "run"),
        **more,
    }


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "run" / "steps.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("search", SEARCHERS)
def test_a_search_ends_at_the_best_candidate_that_it_measured(tmp_path, search):
    steps = 24 if search == "consensus" else 9
    found = tune(job(tmp_path, search, steps)).result()
    trials = lines(tmp_path)
    assert len(trials) == steps and trials[0]["phi"]["guidance"] == pytest.approx(4.0, rel=1e-9)
    best = max(trials, key=lambda trial: trial["objective"])
    assert found.phi["guidance"] == pytest.approx(best["phi"]["guidance"])
    assert found.verdict == "better"  # 4 overshoots the target by far
    assert all(trial["grad"] == [None] and trial["objective"] == trial["value"] for trial in trials)
    assert found.document["estimator"]["kind"] == search
    assert found.document["phi"]["guidance"]["se"] is None


def test_the_plan_is_what_the_meter_counts(tmp_path):
    made = job(tmp_path)
    total = plan(read_job(made)).total
    cost = tune(made).result().document["cost"]
    assert (cost["denoiser_calls"], cost["image_forwards"]) == (total.denoiser_calls, total.image_forwards)
    assert cost["reward_images"] == 9 * 16 + 2 * 32


def test_candidates_share_their_noise_unless_it_is_fresh(tmp_path):
    """The same candidate again: a grid of 4 comes back to its first point at trial 5 (the start is trial 0)."""
    again = {}
    for common in (True, False):
        a = assemble(read_job(job(tmp_path, {"kind": "grid", "common": common}, 9)))
        assert a.candidate_value == CandidateValue(common)
        budget = Budget(9, 16)
        steps = search_loop.tune(a.problem, a.candidate_value, Grid(), a.prompts, budget, Seed(0))
        trials = [(step.phi.item(), step.value) for step in steps]
        again[common] = [value for phi, value in trials if phi == pytest.approx(trials[1][0])]
    assert len(again[True]) == len(again[False]) == 1  # eight points and the start: none twice
    batches = [
        search_loop.batch_of_trial(("a", "b"), budget, Seed(0), trial, common=common)
        for common in (True, False)
        for trial in (0, 1)
    ]
    assert batches[0] == batches[1] and batches[2] != batches[3]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder and the report of a run that is not left."""
    place = tmp_path_factory.mktemp("whole")
    return place, tune(job(place, "tpe", 14)).result().document


@pytest.mark.parametrize("stop", [0, 1, 5])
def test_left_and_resumed_it_makes_the_same_trials(tmp_path, whole, stop):
    place, document = whole
    part = tune(job(tmp_path / "part", "tpe", 14))
    for _ in range(stop):
        next(part)
    part.close()
    rest = tune(job(tmp_path / "part", "tpe", 14), resume=stop > 0).result().document
    same = ("phi", "held_out", "verdict", "headline")
    assert {key: rest[key] for key in same} == {key: document[key] for key in same}
    assert [t["phi"] for t in lines(tmp_path / "part")] == [t["phi"] for t in lines(place)]


def test_trials_of_another_searcher_are_not_gone_on_with(tmp_path):
    a = assemble(read_job(job(tmp_path)))
    first = next(search_loop.tune(a.problem, CandidateValue(), Random(), a.prompts, Budget(9, 16), Seed(0)))
    second = next(
        search_loop.tune(a.problem, CandidateValue(), Random(), a.prompts, Budget(9, 16), Seed(0), first.state)
    )
    assert second.index == 1
    with pytest.raises(NotTheSame):
        next(search_loop.tune(a.problem, CandidateValue(), Random(), a.prompts, Budget(9, 16), Seed(1), second.state))


def test_shares_are_linear_in_a_bounded_number_and_its_inverse_is_the_start(tmp_path):
    problem = assemble(read_job(job(tmp_path))).problem
    for share in (0.25, 0.5, 0.9):
        u = search_loop.coordinates(problem, Candidate((share,)))
        assert problem.value(u).item() == pytest.approx(10 * share)
    assert search_loop.space_of(Variants(problem)).first.shares == pytest.approx((0.4,))


def test_numbers_without_bounds_are_searched_around_their_start(tmp_path):
    made = job(tmp_path, tune={"timesteps": {"start": "uniform"}})
    problem = assemble(read_job(made)).problem
    space = search_loop.space_of(Variants(problem))
    assert space.first.shares == (0.5, 0.5, 0.5)
    assert torch.allclose(search_loop.coordinates(problem, space.first), begin(problem).u)
    corner = search_loop.coordinates(problem, Candidate((0.0, 1.0, 0.5))) - begin(problem).u
    assert corner.tolist() == pytest.approx([-2.0, 2.0, 0.0], abs=1e-3)


def test_a_candidate_that_misses_a_constraint_is_not_the_best(tmp_path):
    """The sum of the coordinates is largest at a guidance that is too far from the target that is kept."""
    reward = {"reward": {"kind": "linear", "direction": [1.0, 1.0]}}
    keep = {"keep": [{"kind": "quadratic", "target": [1.2, 1.2], "at_least": -20.0}]}
    free = tune(job(tmp_path / "free", "grid", 9, **reward)).result()
    kept = tune(job(tmp_path / "kept", "grid", 9, **reward, **keep)).result()
    trials = {trial["phi"]["guidance"]: trial for trial in lines(tmp_path / "kept")}
    kept_by = [phi for phi, trial in trials.items() if trial["gaps"]["quadratic"] >= 0]
    assert trials[free.phi["guidance"]]["gaps"]["quadratic"] < 0 and len(kept_by) > 1
    assert kept.phi["guidance"] == max(kept_by, key=lambda phi: trials[phi]["value"]) < free.phi["guidance"]


def test_a_trial_that_fails_is_skipped_and_one_without_any_success_ends_the_run(tmp_path, monkeypatch):
    a = assemble(read_job(job(tmp_path)))
    columns = type(a.problem).columns

    def fails_above(limit):
        def broken(self, phi, batch):
            return [seen * (torch.nan if phi.max() > limit else 1.0) for seen in columns(self, phi, batch)]

        return broken

    monkeypatch.setattr(type(a.problem), "columns", fails_above(5.0))
    steps = list(search_loop.tune(a.problem, CandidateValue(), Grid(), a.prompts, Budget(9, 16), Seed(0)))
    assert len(steps) == 9 and {step.status for step in steps} == {"ok", "non_finite"}
    monkeypatch.setattr(type(a.problem), "columns", fails_above(-1.0))
    assert len(list(search_loop.tune(a.problem, CandidateValue(), Grid(), a.prompts, Budget(9, 16), Seed(0)))) == 3


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"estimator": "zeroth_order"}, "delete estimator: zeroth_order"),
        ({"optimizer": "adam"}, "no optimizer is used"),
        ({"search": "cmaes"}, "two numbers"),
        ({"search": "gpp"}, "did you mean 'gp'"),
        ({"search": {"kind": "gp", "startup": 0}}, "greater than 0"),
        ({"search": {"kind": "gp", "common": "no"}}, "must be true or false"),
        ({"budget": {"steps": 9, "samples": 16, "pool": 32}}, "share budget.samples"),
        ({"search": "grid", "budget": {"steps": 2, "samples": 16}}, "3 trials at least"),
    ],
)
def test_what_a_search_refuses_is_said_with_the_remedy(tmp_path, more, words):
    with pytest.raises(JobMistakes, match=words):
        read_job({**job(tmp_path), **more})


def test_newton_is_refused_where_multipliers_move_the_objective(tmp_path):
    made = {key: value for key, value in job(tmp_path).items() if key != "search"} | {"optimizer": "newton"}
    keep = {"keep": [{"kind": "linear", "direction": [1.0, 0.0], "at_least": "start"}]}
    assert read_job(made).optimizer.kind == "newton"
    with pytest.raises(JobMistakes, match="optimizer: the multipliers of keep"):
        read_job({**made, **keep})


def test_the_job_document_reads_back_to_the_same_job(tmp_path):
    for search in ("gp", {"kind": "tpe", "common": False, "startup": 4}):
        read = read_job(job(tmp_path, search))
        assert read_job(read.document()) == read and not {"optimizer", "estimator"} & set(read.document())
    plain = {key: value for key, value in job(tmp_path).items() if key != "search"}
    assert "search" not in read_job(plain).document()


# -- over lambda -------------------------------------------------------------------------------------------------------


def lambda_job(tmp_path, search="grid", steps=9, **more):
    """N(0, I), r2 = x1, r1 = -|x - c|^2: the best lambda is 1 / c1 = 2 / 3."""
    return {
        "version": 1,
        "model": {"kind": "gaussian", "means": {"o": [0.0, 0.0]}, "std": 1.0, "sampler": {"kind": "ddim", "steps": 16}}
        | {"guidance": 1.0, "batch": 4096},
        "prompts": ["o"],
        "tune": {"regularization": {"start": 3.0, "bounds": [0.3, 10]}},
        "reward": {"kind": "quadratic", "target": [1.5, 0.0], "scale": 0.5},
        "lower": {
            "kind": "reweight",
            "reward": {"kind": "linear", "direction": [1.0, 0.0]},
            "samples": 2048,
            "bridge": False,
        },
        "search": search,
        "budget": {"steps": steps},
        "evaluate": {"samples": 2048},
        "output": str(tmp_path / "run"),
        **more,
    }


@pytest.mark.parametrize("common", [True, False])
def test_a_search_over_lambda_takes_the_best_of_its_candidates(tmp_path, common):
    read = read_job(lambda_job(tmp_path, {"kind": "grid", "common": common}))
    planned = plan(read).tuning.image_forwards
    found = tune(lambda_job(tmp_path, {"kind": "grid", "common": common})).result()
    trials = lines(tmp_path)
    best = max((t for t in trials if t["value"] is not None), key=lambda t: t["value"])
    tried = sorted({round(t["phi"]["regularization"], 6) for t in trials})
    assert len(trials) == 9 and found.phi["regularization"] == pytest.approx(best["phi"]["regularization"])
    assert abs(found.phi["regularization"] - 2 / 3) <= (0.25 if common else 0.35) and len(tried) > 1
    assert trials[-1]["cost"]["image_forwards"] == planned == 2048 * 16 * (1 if common else 9)
    assert found.document["phi"]["regularization"]["se"] is None


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"keep": [{"kind": "linear", "direction": [1.0, 0.0], "at_least": 0.1}]}, "keeps no level"),
        ({"budget": {"steps": 9, "precision": "1.5x"}}, "ends after budget.steps candidates"),
        ({"budget": {"steps": 9, "work": 99}}, "limits a search whose candidates differ in cost"),
        ({"search": {"kind": "grid", "pruner": "asha"}}, "share one bank, so none is stopped early"),
        (
            {"tune": {"regularization": {"start": 3.0, "bounds": [0.3, 10]}, "sampler.steps": [16, 32]}},
            "lambda is searched for alone; choose this in a job of its own",
        ),
    ],
)
def test_what_a_search_over_lambda_refuses(tmp_path, more, words):
    with pytest.raises(JobMistakes, match=words):
        read_job(lambda_job(tmp_path, **more))
