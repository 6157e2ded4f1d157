"""A plan against what a whole run spends, and both against hooks on the networks: exact, or a range that says why."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genbo.bilevel.lower import _measured_law, finetune
from genbo.cli.commands import check, show, tune
from genbo.cli.errors import Preempted, UserMistake
from genbo.cli.job.job import read_job
from genbo.cli.plan import lambda_counts
from genbo.cli.plan.cost import Cost
from genbo.cli.plan.counts import plan
from genbo.cli.report import html
from genbo.cli.stages.build import assemble
from genbo.diffusion.models.gaussian import GaussianModel
from genbo.diffusion.models.mixture import MixtureModel
from genbo.diffusion.process import Meter
from genbo.rewards.linear import Linear


class Hooked:
    """Calls of networks and rows in them, there and back, counted at the networks and in no other place."""

    def __init__(self) -> None:
        self.calls = self.rows = self.back = 0

    def watch(self, output: Tensor) -> Tensor:
        self.calls += 1
        self.rows += len(output)
        return PassedBack.apply(output, self) if output.requires_grad else output

    def agree_with(self, cost: dict[str, Any]) -> None:
        counts = ("denoiser_calls", "image_forwards", "image_backwards")
        assert (self.calls, self.rows, self.back) == tuple(cost[key] for key in counts)


class PassedBack(torch.autograd.Function):
    """Nothing, but for counting the rows of the gradient that comes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, hooked: Hooked) -> Tensor:
        ctx.hooked = hooked
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.hooked.back += len(grads[0])
        return grads[0], None


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hooked]:
    """On every exact world and every network of diffusers."""
    found = Hooked()

    def watched(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *given: found.watch(call(*given))

    for world in (GaussianModel, MixtureModel):
        monkeypatch.setattr(world, "__call__", watched(world.__call__))

    def after(module: Any, given: Any, output: Any) -> Any:
        if type(module).__name__ not in ("UNet2DModel", "UNet2DConditionModel"):
            return None
        if isinstance(output, tuple):
            return (found.watch(output[0]), *output[1:])
        output.sample = found.watch(output.sample)
        return output

    handle = torch.nn.modules.module.register_module_forward_hook(after)
    yield found
    handle.remove()


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    guess = "genbo.cli.plan.throughput.guessed_s"
    monkeypatch.setattr(guess, lambda process, prompt, *costs: [0.0] * len(costs))  # no call beside
    for module in (finetune, lambda_counts):
        monkeypatch.setattr(module, "WORLD_ROWS", {"weighted": 40, "gradient": 20})
    for module in (_measured_law, lambda_counts):
        monkeypatch.setattr(module, "WORLD_STEPS", 5)


def spent(job: Any, hooked: Hooked, *, exact: bool, meanwhile: str = "") -> None:
    """Runs a job and holds plan, meter and hooks against each other, count by count."""
    planned = plan(read_job(job))
    cost = tune.tune(job).result().document["cost"]
    hooked.agree_with(cost)
    least, most = planned.total_at_least.document(), planned.total.document()
    assert most == {key: cost["planned"][key] for key in most} and least == cost["planned_at_least"]
    assert (planned.inexact is None) == exact and cost["inexact"] == planned.inexact
    assert meanwhile in (planned.inexact or "")
    if exact:
        assert {key: cost[key] for key in most} == most == least
    assert all(least[key] <= cost[key] <= most[key] for key in most), (least, cost, most)


# -- hyperparameters ---------------------------------------------------------------------------------------------------

WORLD = {"kind": "mixture", "sampler": {"kind": "ddim", "steps": 4}, "batch": 10}
TUNED: dict[str, Any] = {
    "guidance": {"tune": {"guidance": {"start": 2.0}}},
    "guidance-a-step": {"tune": {"guidance": {"start": 1.0, "shape": "per_step"}}},
    "times": {"tune": {"timesteps": {}}, "reward": {"kind": "teacher", "steps": 9}, "model": {"guidance": 2.0}},
    "one-step-that-stays": {"tune": {"guidance": {"start": 1.0}}, "budget": {"steps": 1, "samples": 12}},
}
ESTIMATORS: dict[str, Any] = {
    "differences": "zeroth_order",
    "one-point": {"kind": "zeroth_order", "directions": "random", "points": "one_point"},
    "reverse": "reverse_mode",
    "reverse-kept": {"kind": "reverse_mode", "checkpoint": False},
    "forward": "forward_mode",
}


def tuned(case: str, estimator: str = "reverse", **own: Any) -> dict[str, Any]:
    job = {
        "version": 1,
        "prompts": ["east", "north"],
        "reward": {"kind": "quadratic"},
        "estimator": ESTIMATORS[estimator],
        "budget": {"steps": 2, "samples": 12},
        "evaluate": {"samples": 13},
        "output": "run",
        **TUNED[case],
    }
    return {**job, "model": {**WORLD, **TUNED[case].get("model", {})}, **own}


PAIRS = [(case, estimator) for case in TUNED for estimator in ("differences", "reverse")]


@pytest.mark.parametrize(
    ("case", "estimator"), [*PAIRS, ("guidance-a-step", "one-point"), ("guidance-a-step", "reverse-kept")]
)
def test_hyperparameters(case: str, estimator: str, hooked: Hooked) -> None:
    spent(tuned(case, estimator), hooked, exact=True)


def test_forwards_with_the_samples_nothing_goes_back(hooked: Hooked) -> None:
    planned = plan(read_job(tuned("guidance", "forward"))).total
    assert planned.image_backwards == 0 and planned.image_forwards > 0
    meter = Meter()
    meter.goes_back(torch.zeros(3), 3)
    assert meter.image_backwards == 0


def test_the_counts_of_reverse_mode_by_hand(hooked: Hooked) -> None:
    """T = 4 guided steps: each twice there, and back from all but the first, which is given noise alone."""
    planned = plan(read_job(tuned("guidance")))
    tuning = planned.tuning
    assert (tuning.image_forwards, tuning.image_backwards) == (2 * 12 * 4 * 2 * 2, 2 * 12 * 3 * 2)
    assert tuning.denoiser_calls == 2 * 2 * 4 * 2  # 12 samples in calls of 10


def test_where_a_switch_is_tuned_rows_are_a_range(hooked: Hooked) -> None:
    own = {"model": {**WORLD, "guidance": {"kind": "interval", "weight": 3.0, "start": 0.2, "stop": 0.6}}}
    own["tune"] = {"guidance.stop": {"start": 0.6, "bounds": [0.3, 1]}}
    spent(tuned("guidance", "differences", **own), hooked, exact=False, meanwhile="switched on is itself tuned")


def test_minutes_may_end_a_run_early(hooked: Hooked) -> None:
    job = tuned("guidance", budget={"steps": 5, "samples": 12, "minutes": 1e-6})
    spent(job, hooked, exact=False, meanwhile="ends after 1e-06 minutes")


# -- a search for lambda -----------------------------------------------------------------------------------------------

R1, R2 = {"kind": "quadratic", "target": [1.5, 0.0], "scale": 0.5}, {"kind": "linear", "direction": [1.0, 0.0]}
NOISY = {"kind": "ddim", "steps": 4, "eta": 1.0}
SEARCHES: dict[str, Any] = {  # the lower level, what else, and whether the plan is exact
    "one-bank": ({"kind": "reweight", "samples": 70}, {"budget": {"steps": 1}}, True),
    "banks": ({"kind": "reweight", "samples": 70, "bridge": False}, {}, False),
    "shifted-banks": ({"kind": "reweight", "samples": 70}, {}, False),
    "on-paper": ({"kind": "closed_form"}, {}, True),
    "guided": ({"kind": "guided", "samples": 20}, {}, False),
    "guided-by-a-gap": ({"kind": "guided", "samples": 20}, {"estimator": "value_gap", "sampler": NOISY}, False),
    "guided-by-a-covariance": ({"kind": "guided", "samples": 20}, {"estimator": "covariance"}, False),
    "trained": ({"kind": "finetune", "samples": 20, "steps": 2}, {"budget": {"steps": 2}}, False),
    "trained-by-gradients": (
        {"kind": "finetune", "samples": 20, "steps": 2, "method": "gradient"},
        {"budget": {"steps": 1}, "estimator": "covariance"},
        False,
    ),
    "weights": ({"kind": "reweight", "samples": 70}, {"budget": {"steps": 1}, "finetune": {"steps": 2}}, False),
}


def searched(case: str, **own: Any) -> dict[str, Any]:
    lower, more, _ = SEARCHES[case]
    more = dict(more)
    sampler = more.pop("sampler", {"kind": "dpmpp", "steps": 4})
    return {
        "version": 1,
        "model": {"kind": "gaussian", "means": {"a": [0.0, 0.0], "b": [0.2, 0.0]}, "sampler": sampler, "batch": 64},
        "prompts": ["a", "b"],
        "tune": {"regularization": {"start": 3.0, "bounds": [0.3, 20]}},
        "reward": R1,
        "lower": {**lower, "reward": R2},
        "budget": {"steps": 3},
        "evaluate": {"samples": 150},
        "output": "run",
        **more,
        **own,
    }


@pytest.mark.parametrize("case", SEARCHES)
def test_searches(case: str, hooked: Hooked) -> None:
    spent(searched(case), hooked, exact=SEARCHES[case][2])


def test_shifts_of_a_reward_without_gradients_go_nowhere_back(hooked: Hooked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Linear, "differentiable", False)
    job = searched("shifted-banks")
    assert plan(read_job(job)).total.image_backwards == 0
    spent(job, hooked, exact=False)


def test_the_first_bank_alone_where_it_is_enough(hooked: Hooked) -> None:
    """r1 that only rises with r2 has its optimum at the bound, which plain samples show: the least of the range."""
    rising = {**searched("shifted-banks"), "reward": R2, "tune": {"regularization": {"start": 3.0, "bounds": [2, 20]}}}
    rising["lower"] = {"kind": "reweight", "samples": 700, "reward": R2}
    planned = plan(read_job(rising))
    cost = tune.tune(rising).result().document["cost"]
    assert {key: cost[key] for key in vars(Cost())} == planned.total_at_least.document()
    assert planned.total_at_least.image_forwards < planned.image_forwards


@pytest.mark.parametrize("case", ["guided", "guided-by-a-gap", "guided-by-a-covariance"])
def test_one_lambda_is_the_least_that_guided_samples_cost(case: str, hooked: Hooked) -> None:
    """Or the most, where the best, which is then the start, is it but to rounding: its held-out law is drawn again."""
    job = searched(case, budget={"steps": 1})
    planned = plan(read_job(job))
    cost = tune.tune(job).result().document["cost"]
    found = Cost(*(cost[key] for key in vars(Cost())))
    assert found in (planned.total_at_least, planned.total) and found.image_backwards > 0
    hooked.agree_with(cost)


def test_where_no_precision_is_enough_the_most_is_drawn(hooked: Hooked) -> None:
    job = searched("banks")
    job["lower"] |= {"precision": 1e-9, "samples": 200}
    job["tune"] = {"regularization": {"start": 3.0, "bounds": [0.05, 20]}}
    cost = tune.tune(job).result().document["cost"]
    assert {key: cost[key] for key in vars(Cost())} == plan(read_job(job)).total.document()


def test_the_most_that_three_rounds_draw_by_hand() -> None:
    """Shifted banks of 70 and 140 a prompt, pilots of 18 and 35; twice there and once back, 4 steps, 2 prompts."""
    tuning = plan(read_job(searched("shifted-banks"), ["model.guidance=1"])).tuning
    assert tuning.image_forwards == 4 * 2 * (70 + 70 + 2 * 18 + 140 + 2 * 35)
    assert tuning.image_backwards == 4 * 2 * (18 + 35)
    assert tuning.reward_images == 2 * (70 + 70 + 18 + 140 + 35)


@pytest.mark.parametrize("guidance", [1.0, 2.0, [2.0, 1.0, 1.0, 2.0]], ids=["plain", "guided", "at-some-steps"])
@pytest.mark.parametrize("anchor", [True, False], ids=["", "alone"])
@pytest.mark.parametrize("method", ["weighted", "gradient"])
def test_one_look_at_a_loss(method: str, anchor: bool, guidance: Any, hooked: Hooked) -> None:
    """42 rows, or 21, in calls of 16; at random steps, of which some are not guided."""
    rows = {"weighted": 42, "gradient": 21}[method]
    own = {"method": method, "anchor": anchor, "batch": rows}
    read = read_job(searched("weights", finetune=own), ["model.batch=16", f"model.guidance={json.dumps(guidance)}"])
    a, options = assemble(read), read.finetune.options  # type: ignore[union-attr]
    guided = [weight != 1 for weight in (guidance if isinstance(guidance, list) else [guidance] * 4)]
    most, least = (lambda_counts.Searching(read, guided, 16, most=most) for most in (True, False))
    if method == "gradient":
        training = options.gradient(a.problem.process, a.prompts, a.lower_rewards, 2.0, a.seed)
    else:
        x, logw = torch.zeros(2, 9, *a.problem.process.model.shape, dtype=torch.float64), torch.zeros(2, 9)
        training = options.weighted(a.problem.process, a.prompts, x, logw, a.seed)
    training.loss.backward(training.process, 0)
    hooked.agree_with(found := a.problem.process.meter.as_dict())
    between = [least._look(options).document(), found, most._look(options).document()]
    assert all(low <= here <= high for low, here, high in zip(*(each.values() for each in between), strict=True))
    assert (between[0] == between[2]) == (method == "gradient" or not isinstance(guidance, list))
    assert ("at random" in (most.inexact() or "")) == (between[0] != between[2])


@pytest.mark.parametrize("case", ["shifted-banks", "guided", "trained", "on-paper"])
def test_the_time_of_a_search_is_measured(case: str, hooked: Hooked, capsys: pytest.CaptureFixture[str]) -> None:
    """Some of what it draws; that pace is its own, and no other lower level's."""
    job = searched(case)
    Path("job.json").write_text(json.dumps(job))
    if case == "on-paper":
        with pytest.raises(UserMistake, match="nothing to measure"):
            check.run(Path("job.json"), measure=True)
        return
    assert plan(read_job(job)).expected_s is None
    assert check.run(Path("job.json"), measure=True) == 0
    planned = plan(read_job(job))
    assert planned.expected_s is not None and planned.expected_at_least_s is not None
    assert planned.expected_s / planned.expected_at_least_s == pytest.approx(
        planned.image_forwards / planned.total_at_least.image_forwards
    )
    assert hooked.back > 0 or case == "shifted-banks"
    assert plan(read_job(searched("guided-by-a-covariance" if case != "guided" else "trained"))).expected_s is None


# -- networks ----------------------------------------------------------------------------------------------------------


SMALL = {"kind": "quadratic", "scale": 1e-3}


def network_job(tiny_sd: Path, tiny_clip: Path, **own: Any) -> dict[str, Any]:
    model = {"pretrained": str(tiny_sd), "sampler": {"kind": "ddim", "steps": 2}, "device": "cpu", "batch": 6}
    return {
        "version": 1,
        "model": {**model, "guidance": 2.0},
        "prompts": ["a dog"],
        "tune": {"regularization": {"start": 5.0, "bounds": [4, 6]}},
        "reward": {"kind": "clip", "pretrained": str(tiny_clip)},
        "lower": {"kind": "reweight", "reward": SMALL, "samples": 24, "bridge": False},
        "budget": {"steps": 1},
        "evaluate": {"prompts": ["a cat"], "samples": 10},
        "output": "run",
        **own,
    }


@pytest.mark.parametrize("method", ["gradient", "weighted"])
def test_weights_of_a_network(method: str, tiny_sd: Path, tiny_clip: Path, hooked: Hooked) -> None:
    spent(network_job(tiny_sd, tiny_clip, finetune={"method": method, "steps": 1, "batch": 7}), hooked, exact=True)


LOWER = {"kind": "denoising", "pretrain": 6, "batch": 5}
COUPLED = {**LOWER, "noise_levels": "schedule", "steps": 2, "z_steps": 2, "z_refresh": 2, "z_batches": 2}


@pytest.mark.parametrize("lower", [LOWER, COUPLED], ids=["broad", "coupled"])
def test_a_network_in_training(lower: dict[str, Any], hooked: Hooked) -> None:
    job = {
        "version": 1,
        "data": "digits",
        "model": {"kind": "unet", "channels": [4, 8], "sampler": {"kind": "ddim", "steps": 2}, "batch": 6},
        "tune": {"noise_schedule": {"parameters": ["end"], "start": {"end": 0.6}, "normalised": False}},
        "lower": lower,
        "reward": {"kind": "mmd", "features": "pixels"},
        "estimator": {"kind": "penalty", "direct": "reverse_mode"} if lower is COUPLED else "reverse_mode",
        "budget": {"steps": 2, "samples": 8},
        "evaluate": {"samples": 9},
        "output": "run",
    }
    spent(job, hooked, exact=True)


# -- runs from before --------------------------------------------------------------------------------------------------


def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A meter that does not know what goes back."""
    monkeypatch.setattr(Meter, "as_dict", lambda self: {k: v for k, v in vars(self).items() if k != "image_backwards"})


@pytest.mark.parametrize("job", [tuned("guidance"), searched("shifted-banks")], ids=["climb", "search"])
@pytest.mark.parametrize("point", ["step.computed:2", "evaluation.part:1"])
def test_a_run_that_was_begun_before_is_ended(job: dict[str, Any], point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its backwards are not known, and so not said: what is left of the run has too few of them."""
    monkeypatch.setenv("GENBO_FAULT", point.replace(":", ":term:"))
    monkeypatch.setattr("genbo.cli.run.faults._passed", {})
    with monkeypatch.context() as before:
        as_before(before)
        with pytest.raises(Preempted):
            tune.tune(job).result()
    monkeypatch.delenv("GENBO_FAULT")
    cost = tune.tune(job, resume=True).result().document["cost"]
    assert "image_backwards" not in cost and cost["image_forwards"] <= cost["planned"]["image_forwards"]
    row = next(line for line in Path("run/report.html").read_text().splitlines() if "image backwards" in line)
    assert row.rstrip().endswith('<td class="n">—</td></tr>')


def test_a_run_that_was_ended_before_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    folder = tune.tune(tuned("guidance", "differences")).result().folder
    document = json.loads((folder / "report.json").read_text())
    for cost in (document["cost"], document["cost"]["planned"], *(step["cost"] for step in document["steps"])):
        for key in ("image_backwards", "planned_at_least", "inexact"):
            cost.pop(key, None)
    (folder / "report.json").write_text(json.dumps(document))
    status = json.loads((folder / "status.json").read_text())
    kept = {key: value for key, value in status.items() if key not in ("report", "sha256")}  # hashes came later, too
    (folder / "status.json").write_text(json.dumps(kept))
    assert show.run(folder) == 0
    said = capsys.readouterr().out
    assert "image forwards" in said and "backwards" not in said
    html.run(folder)
    row = next(line for line in (folder / "report.html").read_text().splitlines() if "image backwards" in line)
    assert row.count("—") == 2
