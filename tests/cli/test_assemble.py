"""A job with other numbers than the defaults at every key, against the objects that are tuned with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from genbo.bilevel.loop import Budget
from genbo.cli.job.job import read_job
from genbo.cli.stages.build import assemble
from genbo.diffusion.seed import Seed

JOB: dict[str, Any] = {
    "version": 1,
    "model": {"kind": "gaussian", "sampler": {"kind": "ddim", "steps": 5}, "guidance": 3.0, "batch": 7},
    "prompts": ["right"],
    "tune": {"guidance": {"start": 2.0, "bounds": [1, 9]}},
    "reward": [
        {"kind": "quadratic", "target": 0.0, "weight": 2.0},
        {"kind": "linear", "direction": 1.0, "weight": -0.5},
    ],
    "keep": [
        {"kind": "linear", "direction": 3.0, "at_least": -4.5},
        {"kind": "quadratic", "target": 1.0, "at_least": "start - 0.25"},
    ],
    "optimizer": {"kind": "sgd", "lr": 0.7},
    "estimator": {"kind": "zeroth_order", "h": 0.125},
    "budget": {"steps": 9, "samples": 6, "pool": 30, "denoiser_calls": 1000},
    "evaluate": {"prompts": ["left"], "samples": 8},
    "seed": 5,
}
IMAGE = torch.full((1, 1, 1, 1), 2.0)


def test_every_number_of_a_job_is_where_it_is_used() -> None:
    a = assemble(read_job(JOB))
    problem = a.problem
    assert a.budget == Budget(steps=9, samples=6, denoiser_calls=1000, pool=30) and a.seed == Seed(5)
    assert (problem.process.steps, problem.process.batch) == (5, 7)
    assert problem.first().tolist() == [2.0] and problem.tunables[0].bounds == (1, 9)
    assert (a.prompts, a.held_out, a.held_out_is_fresh_prompts) == (("right",), ("left",), True)
    assert (a.optimizer.lr, a.estimator.h, a.estimator_name) == (0.7, 0.125, "zeroth_order")


def test_rewards_and_constraints_have_each_its_own_weight_and_level() -> None:
    """At x = 2: -(2 - 0)^2 and 2, to be kept: 3 * 2 and -(2 - 1)^2."""
    a = assemble(read_job(JOB))
    assert [(weight, reward(IMAGE, ["right"]).item()) for weight, reward in a.problem.rewards] == [(2, -4), (-0.5, 2)]
    kept = [(c.at_least, c.relative_to_start, c.reward(IMAGE, ["right"]).item()) for c in a.problem.constraints]
    assert kept == [(-4.5, False, 6), (-0.25, True, -1)]
    assert (a.reward_names, a.constraint_names) == (
        ("quadratic", "linear"),
        tuple(c.name for c in a.problem.constraints),
    )
    assert len(set(a.constraint_names)) == 2
    assert [reward(IMAGE, ["right"]).item() for reward in a.judge.scorers] == [-4, 2, 6, -1]


def test_both_levels_of_a_search_have_their_own_rewards() -> None:
    job = {
        "version": 1,
        "model": {"kind": "gaussian", "sampler": {"kind": "ddim", "steps": 5}, "guidance": 1.0},
        "prompts": ["right"],
        "tune": {"regularization": {"start": 3.0, "bounds": [0.5, 20]}},
        "reward": {"kind": "quadratic", "target": 0.0},
        "lower": {"kind": "reweight", "reward": [{"kind": "linear", "direction": 1.0, "weight": 4.0}], "samples": 64},
    }
    a = assemble(read_job(job))
    assert [(weight, reward(IMAGE, []).item()) for weight, reward in a.problem.rewards] == [(1, -4)]
    assert [(weight, reward(IMAGE, []).item()) for weight, reward in a.lower_rewards] == [(4, 2)]
    assert (a.reward_names, a.lower_names) == (("quadratic",), ("linear",))
    assert (a.strength.start, a.strength.bounds, a.lower.samples) == (3.0, (0.5, 20), 64)


def test_tuning_looks_at_validation_data_and_the_report_at_test_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the means of the pixels, which a Fréchet distance keeps."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    job = {
        "version": 1,
        "data": "digits",
        "model": {"kind": "unet", "channels": [8, 16], "sampler": {"kind": "ddim", "steps": 3}},
        "tune": {"noise_schedule": {"parameters": ["end"]}},
        "lower": {"kind": "denoising", "pretrain": 1, "batch": 16},
        "reward": {"kind": "fid", "features": "pixels"},
    }
    a = assemble(read_job(job))
    assert a.data is not None
    shares = {"validation": a.data.validation, "test": a.data.test}
    means = {name: images.unit().double().flatten(1).mean(0) for name, images in shares.items()}
    assert not torch.allclose(means["validation"], means["test"])
    for problem, share in ((a.problem, "validation"), (a.judge, "test")):
        (reward,) = problem.scorers
        torch.testing.assert_close(reward.kept["mean"], means[share], rtol=1e-5, atol=1e-7)
