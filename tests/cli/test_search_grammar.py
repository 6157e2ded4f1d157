"""What a job may choose, what `check` refuses with its remedy, and searches with choices in a comparison."""

from __future__ import annotations

import pytest

from genbo.cli.job.job import JobMistakes, read_job
from genbo.cli.job.schema import job_schema
from tests.cli.test_search_choices import ETAS, job


@pytest.mark.parametrize(
    ("tuned", "more", "words"),
    [
        ({"sampler.kind": ["ddim", "dpmpp"], "sampler.eta": [0, 1]}, {}, "dpmpp has no option 'eta'; take dpmpp out"),
        ({"sampler.kind": ["ddim", "dpmp"]}, {}, "did you mean 'dpmpp'"),
        (
            {"sampler.kind": ["euler", "dpmpp"]},
            {},
            "own ddim, which is not in the list; add it, or set model.sampler.k",
        ),
        ({"sampler.kind": "dpmpp"}, {}, "a list of two values or more"),
        ({"sampler.steps": [3]}, {}, "not a list of 1"),
        ({"sampler.steps": [3, 3]}, {}, "in the list twice"),
        ({"sampler.steps": [3, 20000]}, {}, "at most 10000 steps"),
        ({"sampler.eta": [0, 2]}, {}, "less than or equal to 1"),
        ({"sampler.etas": [0, 1]}, {}, "did you mean 'sampler.eta'"),
        ({"lower.prediction": ["epsilon", "sample"]}, {}, "network that the job trains"),
        ({"sampler.steps": [3, 6]}, {"search": None}, "a gradient cannot follow a choice; add search"),
        ({"sampler.steps": [3, 6]}, {"budget": {"steps": 5, "samples": 8}}, "2 combinations.*set it to 2"),
        ({"sampler.steps": list(range(3, 600))}, {}, "more than 500; shorten"),
        ({"sampler.steps": [3, 6], "guidance": {"start": 1.0, "shape": "per_step"}}, {}, "knots, or delete this"),
        (
            {"sampler.steps": [3, 2], "guidance": {"start": 1.0, "shape": {"knots": 3}}},
            {},
            "with 2 steps, tune.guidance",
        ),
        ({"sampler.kind": ["ddim", "dpmpp"]}, {"search": "cmaes"}, "not over sampler.kind; take tpe"),
        ({"sampler.kind": ["ddim", "dpmpp"]}, {"search": "consensus"}, "not over sampler.kind; take tpe"),
        (
            {"sampler.kind": ["ddim", "ddpm"]},
            {"reward": {"kind": "teacher", "steps": 9}, "budget": {"steps": 2, "samples": 8}},
            "with sampler.kind ddpm: teacher compares",
        ),
        ({"guidance": {"start": 1.0}}, {"search": {"kind": "tpe", "pruner": "ash"}}, "did you mean 'asha'"),
        (
            {"guidance": {"start": 1.0}},
            {"search": {"kind": "tpe", "pruner": {"kind": "asha", "least": 999}}},
            "raise budget.samples, or lower least",
        ),
        ({"guidance": {"start": 1.0}}, {"search": None, "budget": {"work": 99}}, "limits a search"),
    ],
)
def test_what_cannot_be_chosen_is_refused_with_the_remedy(tmp_path, tuned, more, words):
    with pytest.raises(JobMistakes, match=words):
        read_job(job(tmp_path, tuned, **more))


def test_an_option_of_one_rule_alone_cannot_be_tuned_beside_both(tmp_path):
    made = job(tmp_path, {"guidance.kind": ["plain", "rescaled"], "guidance.rescale": {"start": 0.5}}, "tpe")
    made["model"]["guidance"] = {"kind": "rescaled", "weight": 2.0}
    with pytest.raises(JobMistakes, match="the guidance rule plain has no option 'rescale'; take plain out of"):
        read_job(made)


def test_the_document_the_schema_and_overrides_know_choices(tmp_path):
    from jsonschema import Draft7Validator

    tuned = {"sampler.kind": ["ddim", "dpmpp"], "sampler.steps": [3, 6], "guidance": {"start": 1.0}}
    made = job(tmp_path, tuned, {"kind": "tpe", "pruner": {"kind": "hyperband", "reduction": 2}})
    read = read_job(made)
    assert read_job(read.document()) == read and read.document()["tune"]["sampler.kind"] == ["ddim", "dpmpp"]
    valid = Draft7Validator(job_schema())
    assert not list(valid.iter_errors(made))
    for wrong in ({"sampler.kind": ["ddim", "dpmp"]}, {"sampler.kind": ["ddim"]}, {"sampler.steps": [3, 0]}):
        assert list(valid.iter_errors({**made, "tune": wrong}))
    plain = job(tmp_path, {"guidance": {"start": 1.0}}, "tpe")
    set_ = read_job(plain, ["tune.sampler.kind=[ddim, euler]", "tune.guidance.kind=[plain, apg]", "search.pruner=asha"])
    assert [choice.values for choice in set_.choices.values()] == [("ddim", "euler"), ("plain", "apg")]
    assert set_.search is not None and set_.search.pruner is not None and set_.search.pruner.kind == "asha"


# -- in a comparison ---------------------------------------------------------------------------------------------------


def test_a_comparison_gives_every_search_the_same_work(tmp_path):
    """A pruner makes more candidates of it; none begins another once the work is spent."""
    from genbo.cli.commands.compare import compared
    from genbo.cli.plan.entrants import entrants_of

    tuned = {"sampler.steps": [3, 6], "guidance": {"start": 3.0, "bounds": [0, 4]}}
    work = 24 * 64 * 12
    budget = {"steps": 400, "samples": 64, "work": work}
    read = read_job(job(tmp_path, tuned, {"kind": "random", "pruner": "asha"}, budget=budget, evaluate={"samples": 64}))
    entrants = entrants_of(read, ["random", "grid", "one_point"], tmp_path / "out")
    assert entrants.work == work and list(entrants.left_out) == ["one_point"]
    record = compared(read, entrants, 1, tmp_path / "out", common=True, overwrite=False, quiet=True)
    for entrant in entrants.each:
        row, one = record.tuners[entrant.name], entrant.job.budget.samples * 2 * 6
        assert work <= row.work < work + one
        assert set(row.phi[0]) == {"sampler.steps", "guidance"}
    assert record.tuners["job"].trials > 2 * record.tuners["random"].trials
    assert "sampler.steps" in (tmp_path / "out" / "comparison.html").read_text()


def test_a_comparison_of_candidates_that_differ_in_cost_needs_a_limit(tmp_path):
    from genbo.cli.errors import UserMistake
    from genbo.cli.plan.entrants import entrants_of

    tuned = {"sampler.steps": [3, 6], "guidance": {"start": 3.0, "bounds": [0, 4]}}
    with pytest.raises(UserMistake, match=r"differ in cost.*set budget\.work"):
        entrants_of(read_job(job(tmp_path, tuned, "tpe")), ["random"], tmp_path / "out")
    limited = job(tmp_path, tuned, "tpe", budget={"steps": 99, "samples": 64, "work": 40_000})
    half = entrants_of(read_job(limited), ["random"], tmp_path / "out", share=0.5)
    assert half.work == 20_000 and {entrant.job.budget.work for entrant in half.each} == {20_000}
    equal = job(tmp_path, {"sampler.eta": ETAS, "guidance": tuned["guidance"]}, "tpe", steps=20)
    same = entrants_of(read_job(equal), ["random"], tmp_path / "out")
    assert [entrant.name for entrant in same.each] == ["job", "random"]
