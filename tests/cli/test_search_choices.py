"""Choices under a search, on worlds where the best one follows on paper: what is chosen, drawn and paid for."""

from __future__ import annotations

import json
import math
from itertools import product

import pytest
import torch

from genbo.cli.commands.tune import tune
from genbo.cli.job.job import read_job
from genbo.cli.plan.counts import plan
from genbo.cli.stages.build import assemble
from tests.oracles import levels

MEAN, STD, TARGET, LOG_SNR_MAX = 2.0, 1.5, 2.0, 8.0
SAMPLES = 256
STEPS, ETAS = [12, 6, 9], [0.0, 1.0]


def job(tmp_path, tuned, search="grid", steps=6, **more):
    """One Gaussian without guidance: its samples are Gaussian, whatever the sampler; steps start at the first."""
    return {
        "version": 1,
        "model": {
            "kind": "gaussian",
            "means": {"a": [MEAN]},
            "std": STD,
            "sampler": {"kind": "ddim", "steps": tuned.get("sampler.steps", [3])[0]},
            "guidance": 1.0,
        },
        "prompts": ["a"],
        "tune": tuned,
        "reward": {"kind": "quadratic", "target": [TARGET]},
        "search": search,
        "budget": {"steps": steps, "samples": SAMPLES},
        "evaluate": {"samples": 512},
        "output": str(tmp_path / "run"),
        **more,
    }


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "run" / "steps.jsonl").read_text().splitlines()]


def on_paper(steps: int, eta: float) -> tuple[float, float]:
    """E and the standard deviation of -(x - TARGET)^2, where x is a chain of linear maps (Song et al., eq. 12)."""
    alpha, sigma = levels(LOG_SNR_MAX, steps)
    mu, variance = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for i in range(steps):
        a, s, a_next, s_next = alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]
        fresh = eta * s_next / s * (1 - (a / a_next) ** 2).clamp(min=0).sqrt()
        gain = a * STD**2 / (a**2 * STD**2 + s**2)
        kept = (s_next**2 - fresh**2).clamp(min=0).sqrt()
        by = a_next * gain + kept * (1 - a * gain) / s
        plus = (a_next - kept * a / s) * MEAN * (1 - gain * a)
        mu, variance = by * mu + plus, by**2 * variance + fresh**2
    off, v = (mu - TARGET).item(), variance.item()
    return -(off**2 + v), math.sqrt(2 * v**2 + 4 * v * off**2)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """The folder and the result of a grid over all six combinations."""
    place = tmp_path_factory.mktemp("chosen")
    made = job(place, {"sampler.steps": STEPS, "sampler.eta": ETAS})
    return place, made, tune(made).result()


def test_every_combination_has_its_value_on_paper_and_the_best_is_chosen(chosen):
    place, _, found = chosen
    trials = {tuple(trial["choices"].values()): trial for trial in lines(place)}
    assert list(lines(place)[0]["choices"].values()) == [STEPS[0], 0.0]  # the job's own comes first
    assert set(trials) == set(product(STEPS, ETAS))
    for (steps, eta), trial in trials.items():
        mean, deviation = on_paper(steps, eta)
        assert abs(trial["objective"] - mean) < 4 * deviation / SAMPLES**0.5
    best = max(product(STEPS, ETAS), key=lambda pair: on_paper(*pair))
    report = found.document
    assert (report["choices"]["sampler.steps"]["tuned"], report["choices"]["sampler.eta"]["tuned"]) == best
    gain = on_paper(*best)[0] - on_paper(STEPS[0], 0.0)[0]
    low, high = report["held_out"]["interval"]
    assert found.verdict == "better" and low - (high - low) < gain < high + (high - low)


def test_a_candidate_costs_what_its_steps_cost_and_the_plan_holds_both_ends(chosen):
    place, made, found = chosen
    spent = [0, *(trial["cost"]["image_forwards"] for trial in lines(place))]
    for before, after, trial in zip(spent, spent[1:], lines(place), strict=False):
        assert after - before == SAMPLES * trial["choices"]["sampler.steps"]
    planned, cost = plan(read_job(made)), found.document["cost"]
    assert planned.inexact == "what a candidate costs depends on its choices"
    assert planned.tuning.image_forwards == SAMPLES * 6 * max(STEPS)
    assert planned.least["tuning"].image_forwards == SAMPLES * (STEPS[0] + 5 * min(STEPS))
    for name in ("denoiser_calls", "image_forwards", "reward_images"):
        assert getattr(planned.total_at_least, name) <= cost[name] <= getattr(planned.total, name)
    assert cost["image_forwards"] == spent[-1] + 512 * (STEPS[0] + found.document["choices"]["sampler.steps"]["tuned"])


@pytest.mark.parametrize(
    "limits",
    [{}, {"work": 600}, {"work": 1}, {"denoiser_calls": 50}, {"work": 10**9}],
    ids=["none", "work", "little work", "calls", "much work"],
)
@pytest.mark.parametrize("search", ["random", {"kind": "random", "pruner": "asha"}, {"kind": "tpe", "common": False}])
def test_what_is_spent_lies_between_the_ends_of_the_plan(tmp_path, search, limits):
    """Also where the teachers' samples, and a level that is relative to the start, are drawn beside the candidates."""
    tuned = {"sampler.steps": [3, 6], "guidance": {"start": 1.0, "bounds": [0, 4]}}
    more = {
        "reward": {"kind": "teacher", "steps": 8, "space": "latents"},
        "keep": [{"kind": "quadratic", "target": [TARGET], "at_least": "start"}],
        "budget": {"steps": 12, "samples": 32, **limits},
        "evaluate": {"samples": 16},
    }
    made = job(tmp_path, tuned, search, **more)
    planned, cost = plan(read_job(made)), tune(made).result().document["cost"]
    for name in ("denoiser_calls", "image_forwards", "image_backwards", "reward_images"):
        assert getattr(planned.total_at_least, name) <= cost[name] <= getattr(planned.total, name)
    count = len(lines(tmp_path))
    assert count == 12 if not limits or limits.get("work") == 10**9 else count < 12
    assert count == 1 or limits.get("work") != 1


def test_choices_that_cost_the_same_have_an_exact_plan(tmp_path):
    made = job(tmp_path, {"sampler.eta": ETAS}, steps=2)
    planned = plan(read_job(made))
    cost = tune(made).result().document["cost"]
    assert planned.inexact is None
    assert all(cost[name] == count for name, count in planned.total.document().items())


def test_the_answer_is_written_as_it_was_judged(chosen):
    place, _, found = chosen
    best = {name: record["tuned"] for name, record in found.document["choices"].items()}
    written = json.loads((place / "run" / "tuned" / "genbo.json").read_text())
    assert written["sampler"] == {"kind": "ddim", "steps": best["sampler.steps"], "eta": best["sampler.eta"]}
    assert written["tuned"] == best and written["start"] == {"sampler.steps": STEPS[0], "sampler.eta": 0.0}
    rows = {row["value"]: row for row in found.document["choices"]["sampler.steps"]["values"]}
    trials = lines(place)
    for steps, row in rows.items():
        values = [trial["objective"] for trial in trials if trial["choices"]["sampler.steps"] == steps]
        assert row["candidates"] == row["whole"] == 2 and row["best"] == max(values)
        assert row["spread"] == pytest.approx(torch.tensor(values, dtype=torch.float64).std().item())
    page = (place / "run" / "report.html").read_text()
    assert "What was chosen" in page and f"Sampler steps {best['sampler.steps']} instead of {STEPS[0]}" in page


@pytest.mark.parametrize("search", ["grid", "random", "tpe", "gp"])
def test_numbers_and_choices_together(tmp_path, search):
    """Both samplers reach the target at some weight, and the better one is known: the value of each is on paper."""
    tuned = {"sampler.steps": [3, 12], "guidance": {"start": 1.0, "bounds": [0, 4]}}
    made = job(tmp_path, tuned, search, steps=10)
    found = tune(made).result()
    trials = lines(tmp_path)
    best = max(trials, key=lambda trial: trial["objective"])
    assert {trial["choices"]["sampler.steps"] for trial in trials} == {3, 12}
    assert found.phi["guidance"] == pytest.approx(best["phi"]["guidance"])
    assert found.document["choices"]["sampler.steps"]["tuned"] == best["choices"]["sampler.steps"]
    a = assemble(read_job(made))
    problem = a.at(best["choices"])
    assert problem.process.sampler.steps == best["choices"]["sampler.steps"]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A search over numbers and choices with a pruner, which was not left."""
    place = tmp_path_factory.mktemp("whole")
    return place, tune(_pruned_job(place)).result().document


def _pruned_job(place):
    tuned = {"sampler.steps": [3, 6], "sampler.eta": ETAS, "guidance": {"start": 1.0, "bounds": [0, 4]}}
    return job(place, tuned, {"kind": "tpe", "pruner": "asha", "startup": 4}, steps=9)


@pytest.mark.parametrize("stop", range(1, 9))
def test_left_at_any_trial_and_resumed_it_makes_the_same_trials(tmp_path, pruned, stop):
    place, document = pruned
    part = tune(_pruned_job(tmp_path))
    for _ in range(stop):
        next(part)
    part.close()
    rest = tune(_pruned_job(tmp_path), resume=True).result().document
    same = ("phi", "choices", "rungs", "held_out", "verdict", "headline")
    assert {key: rest[key] for key in same} == {key: document[key] for key in same}
    names = ("phi", "choices", "objective", "samples", "rungs", "cost")
    assert [{n: t[n] for n in names} for t in lines(tmp_path)] == [{n: t[n] for n in names} for t in lines(place)]


def test_killed_between_two_rungs_it_goes_on_with_the_whole_candidate(tmp_path, pruned, monkeypatch):
    """What the candidate under way had drawn is drawn once more, and counted once."""
    from genbo.bilevel.pruners._optuna import OptunaPruning

    place, document = pruned
    looks = sum(len(trial["rungs"]) for trial in lines(place)[:3]) + 1  # the fourth trial, at its first rung
    stops, seen = OptunaPruning.stops, [0]

    def killed(self, value, samples):
        seen[0] += 1
        if seen[0] == looks:
            raise KeyboardInterrupt
        return stops(self, value, samples)

    with monkeypatch.context() as patch:
        patch.setattr(OptunaPruning, "stops", killed)
        with pytest.raises(KeyboardInterrupt):
            tune(_pruned_job(tmp_path)).result()
    assert len(lines(tmp_path)) == 3
    rest = tune(_pruned_job(tmp_path), resume=True).result().document
    assert rest["choices"] == document["choices"] and rest["rungs"] == document["rungs"]
    counts = ("denoiser_calls", "image_forwards", "reward_images")
    assert [rest["cost"][name] for name in counts] == [document["cost"][name] for name in counts]


def test_choices_alone_are_best_tried_by_a_grid(tmp_path):
    notes = {
        kind: plan(read_job(job(tmp_path, {"sampler.eta": ETAS}, kind, steps=2))).warnings for kind in ("grid", "gp")
    }
    assert any("search: grid tries each once" in note for note in notes["gp"])
    assert not any("tries each once" in note for note in notes["grid"])


def test_a_teacher_is_the_jobs_own_whatever_is_chosen(tmp_path):
    """More steps are nearer to the teacher of many steps, whose samples are drawn once, by the job's own sampler."""
    reward = {"kind": "teacher", "steps": 24, "space": "latents"}
    made = job(tmp_path, {"sampler.kind": ["ddim", "dpmpp"], "sampler.steps": [3, 12]}, steps=4, reward=reward)
    found = tune(made).result()
    trials = {tuple(trial["choices"].values()): trial for trial in lines(tmp_path)}
    assert found.document["choices"]["sampler.steps"]["tuned"] == 12
    a = assemble(read_job(made))
    batch = _first_batch(a, made)
    from genbo.diffusion.sample import sample
    from genbo.diffusion.teacher import Lesson

    teacher = sample(Lesson(24).process(a.problem.process), batch)
    for chosen, trial in trials.items():
        drawn = sample(a.at(trial["choices"]).process, batch)
        assert trial["objective"] == pytest.approx(-(drawn - teacher).square().mean().item()), chosen
    spent = [0, *(trial["cost"]["image_forwards"] for trial in lines(tmp_path))]
    teachers = [SAMPLES * 24, 0, 0, 0]
    for before, after, trial, more in zip(spent, spent[1:], lines(tmp_path), teachers, strict=False):
        assert after - before == SAMPLES * trial["choices"]["sampler.steps"] + more
    planned = plan(read_job(made))
    assert planned.least["tuning"].image_forwards <= spent[-1] <= planned.tuning.image_forwards


def _first_batch(a, made):
    from genbo.bilevel.search_loop import batch_of_trial

    return batch_of_trial(a.prompts, a.budget, a.seed, 0, common=True)


def test_a_level_that_is_relative_is_the_starts_own(tmp_path):
    keep = [{"kind": "quadratic", "target": [TARGET], "at_least": "start"}]
    reward = {"kind": "linear", "direction": [1.0]}
    made = job(tmp_path, {"sampler.eta": ETAS, "sampler.steps": [3, 6]}, steps=4, keep=keep, reward=reward)
    cost = tune(made).result().document["cost"]
    trials = lines(tmp_path)
    start = trials[0]["scores"]["quadratic"]
    assert all(trial["gaps"]["quadratic"] == pytest.approx(trial["scores"]["quadratic"] - start) for trial in trials)
    spent = [0, *(trial["cost"]["image_forwards"] for trial in trials)]
    for before, after, trial in zip(spent, spent[1:], trials, strict=False):
        assert after - before == SAMPLES * (trial["choices"]["sampler.steps"] + 3)  # and the start once more
    planned = plan(read_job(made))
    assert planned.total_at_least.image_forwards <= cost["image_forwards"] <= planned.total.image_forwards


def test_a_pipeline_draws_by_what_was_chosen(tmp_path, tiny_sd):
    """`genbo.load` draws what was judged, with another sampler, other steps and another rule than the job's own."""
    from genbo import load
    from genbo.diffusion.sample import sample
    from genbo.diffusion.seed import Seed, batch_of

    made = {
        "version": 1,
        "model": {
            "pretrained": str(tiny_sd),
            "sampler": {"kind": "ddim", "steps": 2},
            "guidance": 3.0,
            "device": "cpu",
        },
        "prompts": ["a red apple"],
        "tune": {"sampler.kind": ["ddim", "dpmpp"], "sampler.steps": [2, 3], "guidance.kind": ["plain", "rescaled"]},
        "reward": {"kind": "compressibility"},
        "search": "grid",
        "budget": {"steps": 8, "samples": 2},
        "evaluate": {"samples": 4},
        "output": str(tmp_path / "run"),
    }
    found = tune(made).result()
    best = {name: record["tuned"] for name, record in found.document["choices"].items()}
    a = assemble(read_job(made))
    judged = a.at(best).at(a.problem.first())
    loaded = load(found.folder, device="cpu")
    assert loaded.process.sampler == judged.sampler and type(loaded.process.rule) is type(judged.rule)
    batch = batch_of(["a red apple"], 2, Seed(3))
    with torch.no_grad():
        assert torch.allclose(sample(loaded.process, batch), sample(judged, batch), atol=1e-5)
    assert f"num_inference_steps={best['sampler.steps']}" in str(found.document["use"]["diffusers"])


def test_time_steps_start_where_each_sampler_has_them(tmp_path):
    """Numbers without bounds are searched around the start of the sampler that was chosen with them."""
    from genbo.bilevel.loop import begin
    from genbo.bilevel.search_loop import coordinates
    from genbo.bilevel.trials import Candidate

    tuned = {"sampler.kind": ["ddim", "dpmpp"], "timesteps": {"start": "uniform"}}
    made = job(tmp_path, tuned, "random", steps=4)
    made["model"]["sampler"]["steps"] = 4
    found = tune(made).result()
    a = assemble(read_job(made))
    for kind in ("ddim", "dpmpp"):
        problem = a.at({"sampler.kind": kind})
        middle = Candidate((0.5,) * problem.parameters)
        assert torch.allclose(coordinates(problem, middle), begin(problem).u)
        assert problem.process.sampler.steps == 4
    assert len(lines(tmp_path)) == 4 and found.document["status"] == "done"
    best = max(lines(tmp_path), key=lambda trial: trial["objective"])
    assert found.document["choices"]["sampler.kind"]["tuned"] == best["choices"]["sampler.kind"]
