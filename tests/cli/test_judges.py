"""Judges, the shape of a verdict and prompts that are tuned on: from the job to what a person reads."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from genbo.bilevel.verdict import compare
from genbo.cli.commands import batch, show, tune
from genbo.cli.job.job import JobMistakes, read_job
from genbo.cli.job.schema import job_schema
from genbo.cli.plan.counts import plan
from genbo.cli.report import html, trust, words
from genbo.cli.report.records import ComparedRow, HeldOutRow
from genbo.cli.report.records_report import RunReport
from genbo.cli.run.job_digest import digest_of
from genbo.cli.stages.run import Result
from genbo.rewards import bundled

MODEL: dict[str, Any] = {"kind": "mixture", "sampler": {"kind": "ddim", "steps": 5}, "batch": 16}
JUDGES = [{"kind": "quadratic", "target": [3.0, 0.0]}, {"kind": "linear", "direction": [0.0, 1.0]}]
JOB: dict[str, Any] = {
    "version": 1,
    "model": MODEL,
    "prompts": ["east"],
    "tune": {"guidance": {"start": 4.0, "bounds": [0, 20]}},
    "reward": {"kind": "quadratic", "target": [1.2, 0.2]},
    "budget": {"steps": 6, "samples": 16},
    "evaluate": {"prompts": ["north", "east", "south"], "samples": 24, "judges": JUDGES},
    "output": "run",
}


def judged_by(*judges: Any, **own: Any) -> dict[str, Any]:
    return {**JOB, **own, "evaluate": {**JOB["evaluate"], "judges": list(judges)}}


def report_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "report.json").read_text()))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("judges")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        tune.tune(JOB).result()
    return place / "run"


# -- reading -----------------------------------------------------------------------------------------------------------


def test_one_judge_is_a_list_of_one_and_none_is_none():
    assert read_job(judged_by(JUDGES[1])) == read_job({**JOB, "evaluate": {**JOB["evaluate"], "judges": JUDGES[1]}})
    assert read_job({**JOB, "evaluate": {**JOB["evaluate"], "judges": None}}).evaluate.judges == ()
    assert "judges" not in read_job(judged_by()).document()["evaluate"]


def test_the_document_is_the_job_again():
    job = read_job(JOB)
    assert read_job(job.document()) == job
    assert read_job(job.document()).digest() == job.digest()


def test_judges_are_called_by_their_weights_and_never_as_a_reward():
    reward = {"kind": "clip", "pretrained": "emoji-clip"}
    judges = [
        {"kind": "clip", "pretrained": "emoji-judge"},
        {"kind": "aesthetic", "pretrained": "emoji-style"},
        "linear",
    ]
    job = {**JOB, "model": {"pretrained": "emoji"}, "prompts": ["key"], "reward": reward}
    read = read_job({**job, "evaluate": {"samples": 4, "judges": judges}})
    assert [judge.name for judge in read.evaluate.judges] == ["emoji-judge", "emoji-style", "linear"]
    assert [judge.name for judge in read_job(JOB).evaluate.judges] == ["quadratic-2", "linear"]


@pytest.mark.parametrize(
    ("own", "where", "piece"),
    [
        ({"judges": [{"kind": "quadratic", "target": [1.2, 0.2]}]}, "evaluate.judges", "under reward: a judge must be"),
        ({"judges": {"kind": "quadratic", "target": [1.2, 0.2]}}, "evaluate.judges", "under reward: a judge must be"),
        ({"judges": ["linear", "linear"]}, "evaluate.judges.1", "is listed twice; delete one"),
        ({"judges": ["linar"]}, "evaluate.judges.0", "unknown judge 'linar'; did you mean 'linear'"),
        ({"judges": [{"kind": "linear", "weight": 2.0}]}, "evaluate.judges.0.weight", "delete the weight"),
        ({"judges": [{"kind": "linear", "scale": 2.0}]}, "evaluate.judges.0.scale", "unknown key"),
        ({"judge": ["linear"]}, "evaluate.judge", "did you mean 'judges'"),
        ({"judges": [{"kind": "kid", "features": "digits-features"}]}, "data", "kid compares samples with data"),
    ],
    ids=["reward", "reward-alone", "twice", "unknown", "weight", "option", "key", "data"],
)
def test_what_is_wrong_with_judges(own, where, piece):
    with pytest.raises(JobMistakes) as caught:
        read_job({**JOB, "evaluate": {**{k: v for k, v in JOB["evaluate"].items() if k != "judges"}, **own}})
    assert [m for m in caught.value.mistakes if m.where.startswith(where) and piece in m.message], caught.value


def test_what_is_kept_is_no_judge():
    with pytest.raises(JobMistakes, match="under keep: a judge must be one"):
        read_job(judged_by("linear", keep=[{"kind": "linear", "at_least": "start"}]))


def test_a_reward_without_weight_steers_nothing_and_may_judge():
    rewards = [JOB["reward"], {"kind": "linear", "weight": 0.0}]
    assert read_job(judged_by("linear", reward=rewards)).evaluate.judges[0].name == "linear-2"


@pytest.mark.parametrize("how", ["path", "copy", "template"])
def test_the_same_weights_under_another_name_are_no_judge(how, tmp_path):
    folder = bundled.folder("emoji-judge")
    assert folder is not None
    judge = {"kind": "clip", "pretrained": str(folder)}
    if how == "copy":
        judge["pretrained"] = str(shutil.copytree(folder, tmp_path / "other"))
    if how == "template":
        judge = {"kind": "clip", "pretrained": "emoji-judge", "template": "a drawing of {}"}
    reward = {"kind": "clip", "pretrained": "emoji-judge"}
    job = {**JOB, "model": {"pretrained": "emoji"}, "prompts": ["key"], "reward": reward}
    with pytest.raises(JobMistakes, match="a judge must be one that tuning never uses"):
        read_job({**job, "evaluate": {"samples": 4, "judges": [judge]}})
    other = {"kind": "clip", "pretrained": "emoji-clip"}
    assert read_job({**job, "evaluate": {"samples": 4, "judges": [other]}}).evaluate.judges[0].name == "emoji-clip"


def test_the_schema_knows_judges():
    from jsonschema import Draft7Validator

    valid = Draft7Validator(job_schema())
    assert not list(valid.iter_errors({**JOB, "evaluate": {"judges": ["linear", {"kind": "clip", "pretrained": "x"}]}}))
    assert not list(valid.iter_errors({**JOB, "evaluate": {"judges": {"kind": "quadratic"}}}))
    assert list(valid.iter_errors({**JOB, "evaluate": {"judges": [{"kind": "linear", "weight": 1.0}]}}))


# -- prompts that are tuned on -----------------------------------------------------------------------------------------


def test_prompts_that_are_tuned_on_are_left_out_by_name():
    job = read_job(JOB)
    assert (job.held_out, job.left_out) == (("north", "south"), ("east",))
    assert job.held_out_is_fresh_prompts
    assert any(
        "1 prompt is both tuned on and held out, and left out" in w and "'east'" in w for w in plan(job).warnings
    )


def test_one_sample_of_each_prompt_is_enough_beside_an_overlap():
    """Eight held-out prompts of which one is tuned on: the verdict's kind stays, and nothing is refused."""
    means = {letter: [float(i)] for i, letter in enumerate("abcdefgh")}
    model = {"kind": "gaussian", "means": means, "sampler": {"kind": "ddim", "steps": 2}}
    own = {"model": model, "prompts": ["a"], "evaluate": {"prompts": list("abcdefgh"), "samples": 8}}
    job = read_job({**JOB, **own, "reward": "quadratic"})
    assert job.left_out == ("a",) and job.held_out_is_fresh_prompts


def test_where_every_prompt_is_tuned_on_all_are_taken_with_fresh_seeds():
    job = read_job({**JOB, "prompts": ["east", "north"], "evaluate": {"prompts": ["north", "east"], "samples": 8}})
    assert (job.held_out, job.left_out) == (("north", "east"), ())
    assert not job.held_out_is_fresh_prompts
    assert any("every held-out prompt is tuned on too" in warning for warning in plan(job).warnings)
    with pytest.raises(JobMistakes, match="every prompt here is tuned on too, so only new seeds"):
        read_job({**JOB, "prompts": ["east", "north"], "evaluate": {"prompts": ["north", "east"], "samples": 2}})


def test_without_prompts_of_its_own_nothing_is_left_out():
    job = read_job({**JOB, "evaluate": {"samples": 8}})
    assert (job.held_out, job.left_out) == (("east",), ())


def test_the_evaluation_draws_what_nothing_was_tuned_on(done):
    found = report_of(done)["held_out"]
    assert {row["prompt"] for row in found["by_prompt"]} == {"north", "south"}
    assert (found["prompts"], found["counted"], found["samples"]) == (2, 2, 24)
    assert found["left_out"] == ["east"] and found["fresh_prompts"]
    assert any("'east'" in said["text"] for said in report_of(done)["trust"])


# -- what judges say ---------------------------------------------------------------------------------------------------


def test_a_judge_is_the_reward_of_the_same_images(done):
    """By hand, from noise: both sides drawn again, and the distance to the judge's own target."""
    from genbo.cli.stages.build import assemble
    from genbo.diffusion.seed import batch_of

    document = report_of(done)
    a = assemble(read_job(JOB))
    batch_ = batch_of(("north", "south"), 24, a.seed.child("evaluate"))
    rows = []
    for phi in (4.0, document["phi"]["guidance"]["tuned"]):
        points = a.problem.drawn(torch.tensor([[phi]], dtype=torch.float64), batch_).samples.double().flatten(1)
        rows.append(-(points - torch.tensor([3.0, 0.0], dtype=torch.float64)).square().sum(1))
    wanted = compare(*rows, batch_.prompts)
    said = document["judges"]["quadratic-2"]
    assert said["difference"] == pytest.approx(wanted.difference, rel=1e-4)
    assert said["interval"] == pytest.approx(wanted.interval, rel=1e-3)
    assert (said["verdict"], said["prompts"], said["gained"]) == (wanted.verdict, 2, wanted.shape.gained)


def test_judges_change_no_number_of_the_rest(done, workplace):
    tune.tune({**JOB, "evaluate": {k: v for k, v in JOB["evaluate"].items() if k != "judges"}}).result()
    with_judges, without = report_of(done), report_of(workplace / "run")
    for key in ("phi", "held_out", "rewards", "verdict"):
        assert with_judges[key] == without[key]
    assert without["judges"] == {}


def test_the_plan_counts_what_judges_look_at(done):
    planned, cost = plan(read_job(JOB)), report_of(done)["cost"]
    assert planned.inexact is None
    assert cost["planned"]["reward_images"] == planned.reward_images == cost["reward_images"]
    alone = plan(read_job(judged_by()))
    assert planned.reward_images - alone.reward_images == 2 * 24 * len(JUDGES)
    assert planned.image_forwards == alone.image_forwards == cost["image_forwards"]


@pytest.mark.parametrize("steps", [9, 7], ids=["the-rewards-teacher", "its-own-teacher"])
def test_the_plan_counts_the_teacher_of_a_judge(workplace, steps):
    judge = {"kind": "teacher", "steps": steps, "distance": "absolute"}
    job = judged_by(judge, reward={"kind": "teacher", "steps": 9}, budget={"steps": 2, "samples": 4})
    planned = plan(read_job(job))
    cost = tune.tune(job).result().document["cost"]
    assert planned.inexact is None
    assert (cost["image_forwards"], cost["reward_images"]) == (planned.image_forwards, planned.reward_images)


def test_a_judge_that_gives_no_number_says_nothing_and_spoils_nothing(workplace, monkeypatch):
    from genbo.rewards import linear

    monkeypatch.setattr(linear._Along, "__call__", lambda self, images, prompts: images.flatten(1).sum(1) * math.nan)
    found = tune.tune(judged_by("linear", JUDGES[0])).result()
    assert found.verdict == "better"
    broken, other = found.judges.values()
    assert broken is None and other is not None
    assert "by linear no verdict" in found.document["headline"]
    assert any("linear gives no verdict: its score" in said["text"] for said in found.document["trust"])
    show.run(workplace / "run")
    assert "no verdict" in (workplace / "run" / "report.html").read_text()


B, N, W = "better", "no measurable difference", "worse"


@pytest.mark.parametrize(
    ("verdict", "judges", "said"),
    [
        (B, {}, "better"),
        (B, {"emoji-judge": N}, "better by clip; by emoji-judge no measurable difference"),
        (B, {"emoji-judge": B}, "better by clip and by emoji-judge"),
        (B, {"a": W, "b": B}, "better by clip and by b; by a worse"),
        (N, {"a": N}, "no measurable difference by clip and by a"),
        (N, {"a": B}, "no measurable difference by clip; by a better"),
        (B, {"a": None}, "better by clip; by a no verdict"),
    ],
)
def test_the_headline_says_who_does_not_confirm(verdict, judges, said):
    assert words.opinions(verdict, "clip", {name: ComparedRow(verdict=v) for name, v in judges.items()}) == said


@pytest.mark.parametrize(
    ("verdict", "judge", "level"),
    [(B, B, "good"), (B, N, "warning"), (B, W, "warning"), (N, N, "note"), (N, W, "warning"), (W, B, "note")],
)
def test_every_pair_of_verdicts_has_its_meaning(done, verdict, judge, level):
    document = copy.deepcopy(report_of(done))
    document["verdict"] = verdict
    document["judges"] = {"emoji-judge": {**document["judges"]["linear"], "verdict": judge, "ruined": []}}
    (said,) = trust.about_judges(RunReport.model_validate(document))
    assert said.level == level
    assert said.text.startswith("emoji-judge judges the same images, and tuning never saw it: ")
    assert f"{document['judges']['emoji-judge']['gained']} prompts gained" in said.text


def test_every_page_shows_them(done, capsys):
    document = report_of(done)
    assert document["headline"].endswith("better by quadratic and by quadratic-2; by linear no measurable difference.")
    show.run(done)
    shown = capsys.readouterr().out
    assert "judge quadratic-2" in shown and "judge linear" in shown and "2 / 0" in shown
    page = html.render(document, None, "run")
    assert "<h2>Judges</h2>" in page and ">linear</bdi>: no measurable difference" in page
    cells = batch._cells({"job": "a", "exit_code": 0, "status": "done", "report": document})
    assert cells[4] == "better; quadratic-2: better; linear: no measurable difference"
    assert Result(done, document).judges == {"quadratic-2": "better", "linear": "no measurable difference"}


def test_a_report_from_before_there_were_judges_is_still_drawn(done):
    document = report_of(done)
    del document["judges"]
    rows = [document["held_out"], *document["rewards"].values()]
    for row in rows:
        for key in ("counted", "gained", "lost", "unchanged", "median", "worst", "ruined", "left_out"):
            row.pop(key, None)
    assert "<h2>Judges</h2>" not in html.render(document, None, "run")
    assert trust.about_held_out(RunReport.model_validate(document))
    assert batch._cells({"job": "a", "exit_code": 0, "status": "done", "report": document})[4] == "better"


# -- going on with other judges ----------------------------------------------------------------------------------------


def test_a_judge_can_be_asked_after_the_end_and_tunes_nothing(workplace):
    first = tune.tune(judged_by(JUDGES[0])).result()
    run = workplace / "run"
    kept = {p: p.read_bytes() for p in [run / "steps.jsonl", *sorted((run / "ckpt").rglob("*.safetensors"))]}
    again = tune.tune(judged_by(*JUDGES), resume=True).result()
    assert list(again.judges) == ["quadratic-2", "linear"]
    assert {p: p.read_bytes() for p in kept} == kept
    for key in ("phi", "held_out", "verdict"):
        assert again.document[key] == first.document[key]
    assert again.document["judges"]["quadratic-2"] == first.document["judges"]["quadratic-2"]
    assert "linear" in (run / "job.yaml").read_text()
    html = (run / "report.html").stat().st_mtime_ns
    assert tune.tune(judged_by(*JUDGES), resume=True).result().document == again.document
    assert (run / "report.html").stat().st_mtime_ns == html


def test_judges_are_no_part_of_what_a_run_is_but_of_what_an_evaluation_is(workplace):
    """The digest stays; scores that other judges gave are not taken for these."""
    one, other = (read_job(judged_by(judge)).document() for judge in JUDGES)
    assert digest_of(one) == digest_of(other) == digest_of(read_job(judged_by()).document())
    tune.tune(judged_by(JUDGES[0])).result()
    moved = {"kind": "quadratic", "target": [-3.0, 0.0]}
    found = tune.tune(judged_by(moved), resume=True).result().document["judges"]["quadratic-2"]
    fresh = tune.tune(judged_by(moved, output="fresh")).result().document["judges"]["quadratic-2"]
    assert found == fresh


# -- single prompts ----------------------------------------------------------------------------------------------------


def test_a_ruined_prompt_is_a_warning_however_good_the_mean_is(done):
    document = report_of(done)
    ruined = {"prompt": "key", "difference": -0.2, "interval": [-0.3, -0.1], "samples": 8}
    document["held_out"] |= {"ruined": [ruined], "gained": 9, "lost": 1, "prompts": 10}
    remarks = trust.about_held_out(RunReport.model_validate(document))
    texts = [said.text for said in remarks if said.level == "warning"]
    assert texts == ["The prompt 'key' is clearly worse, whatever the mean is: −0.20 [−0.30, −0.10] (8 samples)."]


@pytest.mark.parametrize(("gained", "lost", "level"), [(62, 66, "warning"), (64, 64, "warning"), (66, 62, "note")])
def test_a_mean_that_most_prompts_do_not_share_is_a_warning(done, gained, lost, level):
    held_out = {**report_of(done)["held_out"], "gained": gained, "lost": lost, "prompts": 128, "median": -0.0002}
    (said,) = trust.about_shape(HeldOutRow.model_validate(held_out))
    assert said.level == level
    assert f"{gained} of 128 prompts gained and {lost} lost (median −0.000200, worst" in said.text


# -- a search for lambda -----------------------------------------------------------------------------------------------

LAM, START = 1.0, 3.0
SEARCH: dict[str, Any] = {
    "version": 1,
    "model": {
        "kind": "gaussian",
        "means": {"a": [0.0, 0.0], "b": [0.2, 0.0]},
        "std": 1.0,
        "sampler": {"kind": "dpmpp", "steps": 32},
        "guidance": 1.0,
        "batch": 2048,
    },
    "prompts": ["a"],
    "tune": {"regularization": {"start": START, "bounds": [0.5, 20]}},
    "reward": {"kind": "quadratic", "target": [1.0, 0.0], "scale": 0.5},
    "lower": {"kind": "reweight", "reward": {"kind": "linear", "direction": [1.0, 0.0]}, "samples": 4096},
    "budget": {"steps": 1},
    "evaluate": {"samples": 4096, "judges": [{"kind": "quadratic", "target": [0.0, 0.0], "scale": 0.5}]},
    "output": "run",
}


def test_a_judge_of_lambda_is_the_closed_form(workplace):
    """Under N(1 / lambda, 1) in the first coordinate the judge's E[-|x|^2 / 2] is -1 - 1 / (2 lambda^2): worse."""
    document = tune.tune(SEARCH).result().document
    said, lam = document["judges"]["quadratic-2"], document["phi"]["regularization"]["tuned"]
    wanted = 1 / (2 * START**2) - 1 / (2 * lam**2)
    low, high = said["interval"]
    assert said["verdict"] == "worse" and document["verdict"] == "better"
    assert abs(said["difference"] - wanted) < 2 * (high - low) / 2 + 0.02 * abs(wanted)
    assert "better by quadratic; by quadratic-2 worse." in document["headline"]
    planned = plan(read_job(SEARCH))
    assert planned.evaluation["held_out"].reward_images == 2 * 4096
    assert document["cost"]["reward_images"] == planned.reward_images


@pytest.mark.parametrize("lower", ["closed_form", "guided", "finetune"])
def test_where_no_samples_are_shared_judges_are_refused(lower):
    reward = SEARCH["lower"]["reward"]
    model = {"pretrained": "emoji"} if lower == "finetune" else SEARCH["model"]
    prompts = ["key"] if lower == "finetune" else ["a"]
    job = {**SEARCH, "model": model, "prompts": prompts, "lower": {"kind": lower, "reward": reward}}
    with pytest.raises(
        JobMistakes, match="judges score samples, but this lower level has no samples that all lambdas share"
    ):
        read_job({**job, "evaluate": {"samples": 64, "judges": ["compressibility"]}})


def test_the_lower_reward_is_no_judge():
    with pytest.raises(JobMistakes, match="under lower: a judge must be one"):
        read_job({**SEARCH, "evaluate": {"samples": 64, "judges": [SEARCH["lower"]["reward"]]}})


def test_quantiles_of_the_tables_stand_in_the_interval(done):
    """Two prompts: Student's with one degree, 12.7062 standard errors."""
    found = report_of(done)["held_out"]
    a, b = (row["difference"] for row in found["by_prompt"])
    half = 12.7062 * abs(a - b) / math.sqrt(2) / math.sqrt(2)
    assert found["interval"][1] - found["difference"] == pytest.approx(half, rel=1e-4)


def test_tuned_weights_are_judged_too():
    """Rows of scores by hand: one upper reward, two lower ones with weights, then the judge."""
    from typing import cast

    from genbo.cli.report.tuned_weights import Finetuned
    from genbo.cli.stages.finetuning import Weights
    from genbo.cli.stages.holdout import Side

    def law(factor: float | None, scores: list[list[float]]) -> Finetuned:
        return Finetuned(factor, factor, Side(torch.tensor(scores), torch.zeros(0), {}, 0.0), None)

    before = [[1.0, 1.0, 2.0, 2.0], [0.0] * 4, [0.0] * 4, [5.0, 6.0, 5.0, 6.0]]
    after = [[2.0, 2.0, 3.0, 3.1], [1.0] * 4, [10.0] * 4, [4.0, 5.1, 4.1, 5.0]]
    laws = (law(None, before), law(1.0, after))
    weights = Weights(cast(Any, None), laws, ("a", "b", "c", "d"), (2.0,), (1.0, 0.5), True, ("judge",))
    row = weights.document()[1]
    assert row.r2 == pytest.approx(1 + 5) and row.r1 == pytest.approx(2 * 2.525)
    assert row.judges["judge"].difference == pytest.approx(-0.95)
    assert (row.judges["judge"].verdict, row.judges["judge"].lost) == ("worse", 4)
    assert "judge −0.95" in next(weights.remarks("r1", "r2")).text


def test_a_prompt_that_lambda_ruins_is_found_by_its_own_samples():
    """Influences by hand: standard errors 0.1 a prompt; five prompts, so t at 0.995 with three degrees."""
    from types import SimpleNamespace

    from genbo.bilevel.regularization.tilted import Measured
    from genbo.cli.report.lambda_pair import Pair

    def law(values: list[float], influence: float) -> Any:
        value = torch.tensor(values, dtype=torch.float64)
        r1 = Measured(value, torch.full((5, 4), influence, dtype=torch.float64))
        return SimpleNamespace(r1=r1, fit=SimpleNamespace(verdict="reliable"))

    start, tuned = law([0.0] * 5, 0.0), law([-0.8, -0.5, 1.0, 1.0, 1.0], 0.05)
    found = Pair(start, tuned, True, tuple("abcde"), 20, True).compared("r1").shape
    (ruined,) = found.ruined
    assert (ruined.prompt, ruined.samples) == ("a", 4)
    assert ruined.interval == pytest.approx((-0.8 - 0.5840909, -0.8 + 0.5840909), rel=1e-5)
    assert (found.gained, found.lost, found.median) == (3, 2, 1.0)
