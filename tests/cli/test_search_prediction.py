"""What a network that the job trains predicts, chosen by a search: a network for each prediction, trained alike."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import genbo
from genbo.cli.job.job import JobMistakes, read_job
from genbo.cli.plan.counts import plan
from genbo.cli.report.held_out_side import shown_samples
from genbo.cli.stages.build import assemble
from genbo.diffusion.sample import sample
from genbo.diffusion.seed import Seed, batch_of

PRETRAIN, BATCH, SAMPLES = 6, 16, 16
PREDICTIONS = ["v_prediction", "epsilon", "sample"]


def job(place, **changed):
    return {
        "version": 1,
        "data": "digits",
        "model": {"kind": "unet", "channels": [4], "sampler": {"kind": "ddim", "steps": 3}, "batch": 40},
        "tune": {"noise_schedule": {"parameters": ["end"]}, "lower.prediction": PREDICTIONS},
        "lower": {"kind": "denoising", "pretrain": PRETRAIN, "batch": BATCH},
        "reward": {"kind": "mmd", "features": "pixels"},
        "search": "random",
        "budget": {"steps": 6, "samples": SAMPLES},
        "evaluate": {"samples": 24},
        "output": str(place / "run"),
        **changed,
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    place = tmp_path_factory.mktemp("prediction")
    return place, genbo.tune(job(place)).result()


def steps_of(place):
    return [json.loads(line) for line in (place / "run" / "steps.jsonl").read_text().splitlines()]


def test_every_prediction_has_a_network_of_its_own_and_the_plan_counts_them(found):
    place, result = found
    planned = plan(read_job(job(place)))
    assert planned.training.image_backwards == len(PREDICTIONS) * PRETRAIN * BATCH
    assert planned.inexact is None
    assert {key: result.document["cost"][key] for key in planned.total.document()} == planned.total.document()
    networks = {file.stem for file in (place / "run" / "network").glob("*.safetensors")}
    assert networks == {"start", "prediction-epsilon", "prediction-sample"}
    tried = {trial["choices"]["lower.prediction"] for trial in steps_of(place)}
    assert len(tried) > 1 and tried <= set(PREDICTIONS)


def test_each_problem_samples_the_network_of_its_prediction(tmp_path):
    a = assemble(read_job(job(tmp_path)))
    problems = {value: a.at({"lower.prediction": value}) for value in PREDICTIONS}
    assert {value: problem.process.model.prediction for value, problem in problems.items()} == {
        value: value for value in PREDICTIONS
    }
    assert problems["v_prediction"] is a.problem
    assert a.at({"lower.prediction": "epsilon"}) is problems["epsilon"]
    assert len({id(problem.process.meter) for problem in problems.values()}) == 1


def test_the_tuned_folder_draws_what_was_judged(found):
    _, result = found
    again = genbo.load(result.folder)
    assert again.process.model.prediction == result.document["choices"]["lower.prediction"]["tuned"]
    shown = load_file(result.folder / "evaluation" / "tuned.safetensors")["shown"]
    batch = batch_of(read_job(result.document["job"]).held_out, 24, Seed(0).child("evaluate"))
    with torch.no_grad():
        drawn = again.process.model.decode(sample(again.process, batch))
    mine = (drawn[sorted(shown_samples(batch.prompts))] * 255).round()
    assert (mine - shown.float()).abs().max() <= 1


def test_left_and_resumed_it_makes_the_same_trials(found, tmp_path):
    place, result = found
    part = genbo.tune(job(tmp_path))
    for _ in range(3):
        next(part)
    part.close()
    rest = genbo.tune(job(tmp_path), resume=True).result()
    same = ("phi", "choices", "held_out", "verdict")
    assert {key: rest.document[key] for key in same} == {key: result.document[key] for key in same}
    assert [trial["u"] for trial in steps_of(tmp_path)] == [trial["u"] for trial in steps_of(place)]


def test_a_network_that_is_trained_for_its_schedule_takes_no_choice(tmp_path):
    lower = {"kind": "denoising", "pretrain": PRETRAIN, "batch": BATCH, "noise_levels": "schedule", "steps": 2}
    with pytest.raises(JobMistakes, match="every candidate would need a network of its own"):
        read_job(job(tmp_path, lower=lower))


def test_a_reward_of_sets_takes_no_pruner(tmp_path):
    with pytest.raises(JobMistakes, match=r"mmd scores all samples together.*take another reward"):
        read_job(job(tmp_path, search={"kind": "random", "pruner": "hyperband"}))
