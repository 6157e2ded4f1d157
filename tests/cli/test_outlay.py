"""A plan against what a whole run spends, and both against hooks on the networks: exact, or a range that says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genbo.bilevel.lower import finetune
from genbo.cli import outlay, tune
from genbo.cli.cost import Cost
from genbo.cli.job import read_job
from genbo.cli.plan import plan
from genbo.diffusion.models.gaussian import GaussianModel
from genbo.diffusion.models.mixture import MixtureModel
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
    monkeypatch.setattr("genbo.cli.speed.guessed_s", lambda assembled, *costs: [0.0] * len(costs))  # no call beside
    for module in (finetune, outlay):
        monkeypatch.setattr(module, "WORLD_ROWS", {"weighted": 40, "gradient": 20})
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


@pytest.mark.parametrize("case", TUNED)
@pytest.mark.parametrize("estimator", ["differences", "one-point", "reverse", "reverse-kept"])
def test_hyperparameters(case: str, estimator: str, hooked: Hooked) -> None:
    spent(tuned(case, estimator), hooked, exact=True)


def test_forwards_with_the_samples_nothing_goes_back(hooked: Hooked) -> None:
    from genbo.diffusion.process import Meter

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


def test_a_black_box_calls_as_it_likes(family_folder, hooked: Hooked) -> None:
    """This one draws a third row for each sample."""
    model = {"kind": "blackbox", "pretrained": str(family_folder("sd_pag")), "device": "cpu", "height": 16}
    model |= {"width": 16, "sampler": {"kind": "dpmpp", "steps": 2}, "batch": 3}
    own = {"model": model, "prompts": ["a dog"], "reward": {"kind": "quadratic"}, "evaluate": {"samples": 2}}
    own |= {"tune": {"guidance": {"start": 3.0, "bounds": [1, 10]}}, "budget": {"steps": 1, "samples": 3}}
    job = tuned("guidance", "differences", **own)
    spent(job, hooked, exact=False, meanwhile="by its own call")


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
    job["lower"] |= {"precision": 1e-9, "samples": 400}
    cost = tune.tune(job).result().document["cost"]
    assert {key: cost[key] for key in vars(Cost())} == plan(read_job(job)).total.document()


def test_the_most_that_three_rounds_draw_by_hand() -> None:
    """Shifted banks of 70 and 140 a prompt, pilots of 18 and 35; twice there and once back, 4 steps, 2 prompts."""
    tuning = plan(read_job(searched("shifted-banks"), ["model.guidance=1"])).tuning
    assert tuning.image_forwards == 4 * 2 * (70 + 70 + 2 * 18 + 140 + 2 * 35)
    assert tuning.image_backwards == 4 * 2 * (18 + 35)
    assert tuning.reward_images == 2 * (70 + 70 + 18 + 140 + 35)


# -- networks ----------------------------------------------------------------------------------------------------------


SMALL = {"kind": "quadratic", "scale": 1e-3}


def network_job(tiny_sd: Path, tiny_clip: Path, **own: Any) -> dict[str, Any]:
    model = {"pretrained": str(tiny_sd), "sampler": {"kind": "ddim", "steps": 2}, "device": "cpu", "batch": 12}
    return {
        "version": 1,
        "model": {**model, "guidance": 2.0},
        "prompts": ["a dog"],
        "tune": {"regularization": {"start": 5.0, "bounds": [4, 6]}},
        "reward": {"kind": "clip", "pretrained": str(tiny_clip)},
        "lower": {"kind": "reweight", "reward": SMALL, "samples": 12, "bridge": False},
        "budget": {"steps": 1},
        "evaluate": {"prompts": ["a cat"], "samples": 12},
        "output": "run",
        **own,
    }


NETWORKS: dict[str, Any] = {
    "weights-by-gradients": {"finetune": {"method": "gradient", "steps": 1, "batch": 13}},
    "trained": {"lower": {"kind": "finetune", "reward": SMALL, "samples": 3, "steps": 1, "batch": 13}},
}


@pytest.mark.parametrize("case", NETWORKS)
def test_weights_of_a_network(case: str, tiny_sd: Path, tiny_clip: Path, hooked: Hooked) -> None:
    job = network_job(tiny_sd, tiny_clip, **NETWORKS[case])
    spent(job, hooked, exact=True)


def test_weights_of_a_network_that_is_guided_at_some_steps(tiny_sd: Path, tiny_clip: Path, hooked: Hooked) -> None:
    job = network_job(tiny_sd, tiny_clip, finetune={"steps": 2, "batch": 13})
    job["model"]["guidance"] = [2.0, 1.0]
    spent(job, hooked, exact=False, meanwhile="at random")


LOWER = {"kind": "denoising", "pretrain": 6, "batch": 5}
COUPLED = {**LOWER, "noise_levels": "schedule", "steps": 2, "z_steps": 3, "z_refresh": 2, "z_batches": 2}


@pytest.mark.parametrize("lower", [LOWER, COUPLED], ids=["broad", "coupled"])
@pytest.mark.parametrize("estimator", ["auto", "backwards"])
def test_a_network_in_training(lower: dict[str, Any], estimator: str, hooked: Hooked) -> None:
    backwards = {"kind": "penalty", "direct": "reverse_mode"} if lower is COUPLED else "reverse_mode"
    job = {
        "version": 1,
        "data": "digits",
        "model": {"kind": "unet", "channels": [4, 8], "sampler": {"kind": "ddim", "steps": 2}, "batch": 8},
        "tune": {"noise_schedule": {"parameters": ["end"], "start": {"end": 0.6}, "normalised": False}},
        "lower": lower,
        "reward": {"kind": "mmd", "features": "pixels"},
        "estimator": "auto" if estimator == "auto" else backwards,
        "budget": {"steps": 2, "samples": 8},
        "evaluate": {"samples": 9},
        "output": "run",
    }
    spent(job, hooked, exact=True)
