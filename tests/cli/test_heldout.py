"""What the verdict is measured on: prompts and noise that tuning never saw, and samples kept for what they are of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from genbo.bilevel.problem import Problem
from genbo.bilevel.tunables.guidance import Guidance
from genbo.cli.commands import tune
from genbo.cli.errors import Diverged
from genbo.cli.job.job import read_job
from genbo.cli.report.held_out_side import Side
from genbo.cli.stages.build import assemble
from genbo.cli.stages.holdout import evaluate_side
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.process import process_of
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Batch, Seed, batch_of
from genbo.rewards.quadratic import Quadratic
from tests.cli.test_regularize import JOB as LAMBDA_JOB
from tests.cli.test_tune import JOB_DICT

HELD_OUT = {**JOB_DICT, "prompts": ["east"], "evaluate": {"prompts": ["north", "south"], "samples": 24}}


class Drawn:
    """Every sample that a problem draws, by its prompt and seed, in the order of drawing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[tuple[str, int]] = []
        drawn = Problem.drawn

        def noted(problem: Problem, phi: Any, chunk: Batch, **options: Any) -> Any:
            self.rows += zip(chunk.prompts, chunk.seeds, strict=True)
            return drawn(problem, phi, chunk, **options)

        monkeypatch.setattr(Problem, "drawn", noted)


# -- what it is drawn from -------------------------------------------------------------------------------------------


def test_the_prompts_of_the_evaluation_are_its_own() -> None:
    a = assemble(read_job(HELD_OUT))
    assert (a.prompts, a.held_out, a.held_out_is_fresh_prompts) == (("east",), ("north", "south"), True)
    same = assemble(read_job(JOB_DICT))
    assert same.prompts == same.held_out == ("east", "north") and not same.held_out_is_fresh_prompts
    partly = assemble(read_job({**HELD_OUT, "prompts": ["east", "north"]}))
    assert not partly.held_out_is_fresh_prompts or "north" not in partly.held_out


def test_a_climb_is_judged_on_prompts_and_noise_that_it_never_drew(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Drawn(monkeypatch)
    document = tune.tune(HELD_OUT).result().document
    tuned_on = [row for row in drawn.rows if row[0] == "east"]
    judged_on = [row for row in drawn.rows if row[0] != "east"]
    assert len(set(tuned_on)) == 4 * 8, "steps of 8 samples, each with noise of its own"
    assert drawn.rows.index(judged_on[0]) == len(tuned_on), "tuning draws nothing of the evaluation"
    assert judged_on[:24] == judged_on[24:] and len(set(judged_on)) == 24, "both sides on the same samples"
    assert sorted(prompt for prompt, _ in judged_on[:24]) == ["north"] * 12 + ["south"] * 12
    assert not {seed for _, seed in tuned_on} & {seed for _, seed in judged_on}
    assert {row["prompt"] for row in document["held_out"]["by_prompt"]} == {"north", "south"}
    assert document["held_out"]["samples"] == 24


def test_without_prompts_of_its_own_the_evaluation_has_fresh_noise(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Drawn(monkeypatch)
    tune.tune(JOB_DICT).result()
    tuned_on, judged_on = drawn.rows[: -2 * 24], drawn.rows[-2 * 24 :]
    assert len(set(judged_on)) == 24
    assert not {seed for _, seed in tuned_on} & {seed for _, seed in judged_on}


@pytest.mark.parametrize("kind", ["closed_form", "reweight"])
def test_a_search_for_lambda_is_judged_on_prompts_that_it_never_drew(workplace: Path, kind: str) -> None:
    """Prompt b lies 0.2 to the right of a; at lambda its samples stand 1 / lambda farther on, with variance 1."""
    options = {"samples": 2048, "bridge": False} if kind == "reweight" else {}
    lower = {"kind": kind, "reward": {"kind": "linear", "direction": [1.0, 0.0]}, **options}
    job = {**LAMBDA_JOB, "lower": lower, "budget": {"steps": 1}, "evaluate": {"prompts": ["b"], "samples": 2048}}
    document = tune.tune(job).result().document
    assert [row["prompt"] for row in document["held_out"]["by_prompt"]] == ["b"]
    near = {"abs": 1e-6} if kind == "closed_form" else {"abs": 0.1}
    best = document["search"]["optimum"]["lam"]
    assert document["rewards"]["linear"]["start"] == pytest.approx(0.2 + 1 / 3, **near)
    assert document["rewards"]["linear"]["tuned"] == pytest.approx(0.2 + 1 / best, abs=1.5 * near["abs"])
    assert document["held_out"]["start"] == pytest.approx(-((0.2 + 1 / 3 - 1.5) ** 2) / 2 - 1, **near)


def test_the_banks_of_a_search_and_of_its_evaluation_share_no_noise(workplace: Path) -> None:
    from genbo.cli.run.tensors import read_tensors

    lower = {**LAMBDA_JOB["lower"], "samples": 256, "bridge": False}
    tune.tune({**LAMBDA_JOB, "lower": lower, "budget": {"steps": 1}, "evaluate": {"samples": 256}}).result()
    searched, judged = (
        read_tensors(workplace / "run" / folder / "round-0.safetensors", {}) for folder in ("banks", "evaluation")
    )
    assert searched is not None and judged is not None and searched["r2"].numel() == judged["r2"].numel() == 256
    assert not set(searched["r2"].flatten().tolist()) & set(judged["r2"].flatten().tolist())


# -- what is kept ----------------------------------------------------------------------------------------------------


def side_at(
    folder: Path,
    weight: float,
    prompts: Sequence[str] = ("right", "left"),
    job: str = "job",
    between: Callable[..., None] = lambda *_: None,
    reward: Any = None,
) -> Side:
    """Eight samples at this guidance, three in a call of the network."""
    process = process_of(Gaussian().open(), Ddim(steps=4), Plain(1.0), batch=3)
    reward = reward or Quadratic(target=1.0).open("cpu")
    problem = Problem(process, (Guidance(start=1.0, bounds=(0.0, 10.0)),), ((1.0, reward),))
    batch = batch_of(prompts, 8, Seed(0).child("evaluate"))
    phi = torch.tensor([weight], dtype=torch.float64)
    return evaluate_side(folder, "tuned", problem, phi, batch, job, between)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Samples of a guidance of 2, in a folder."""
    side_at(tmp_path / "evaluation", 2.0)
    return tmp_path / "evaluation"


@pytest.mark.parametrize(
    "other",
    [{"weight": 3.0}, {"weight": 2.0 + 1e-12}, {"weight": 2.0, "prompts": ["right"]}, {"weight": 2.0, "job": "x"}],
)
def test_what_was_kept_of_another_value_prompt_or_job_is_drawn_again(
    kept: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    again, alone = side_at(kept, **other), side_at(tmp_path / "empty", **other)
    assert torch.equal(again.scores, alone.scores)
    assert again.cost == alone.cost and again.cost["denoiser_calls"] > 0


def test_a_kept_chunk_of_another_value_is_drawn_again(tmp_path: Path) -> None:
    """A run that was killed leaves chunks: those of another value are not taken for this one's."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        side_at(tmp_path / "part", 2.0, between=killed)
    assert [file.name for file in (tmp_path / "part").iterdir()] == ["tuned-0000.safetensors"]
    found, alone = side_at(tmp_path / "part", 3.0), side_at(tmp_path / "empty", 3.0)
    assert torch.equal(found.scores, alone.scores) and found.cost == alone.cost


def test_what_was_kept_is_not_drawn_again_and_costs_what_it_did(kept: Path, tmp_path: Path) -> None:
    """The same file, the same scores, and the cost of the first time."""
    file = kept / "tuned.safetensors"
    before = file.stat().st_mtime_ns
    again, alone = side_at(kept, 2.0), side_at(tmp_path / "empty", 2.0)
    assert torch.equal(again.scores, alone.scores) and again.cost == alone.cost
    assert file.stat().st_mtime_ns == before


def test_what_is_kept_says_what_it_is_of(kept: Path) -> None:
    from genbo.cli.run.tensors import words_in

    words = words_in(kept / "tuned.safetensors")
    batch = batch_of(("right", "left"), 8, Seed(0).child("evaluate"))
    assert (words["phi"], words["prompts"], words["job"]) == ([2.0], list(batch.prompts), "job")


def test_a_score_that_is_no_number_is_said_with_its_prompt(tmp_path: Path) -> None:
    def broken(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([math.inf if prompt == "left" else 1.0 for prompt in prompts])

    with pytest.raises(Diverged, match="held-out sample is not finite \\(prompt 'left'\\)"):
        side_at(tmp_path / "broken", 2.0, reward=broken)
    assert side_at(tmp_path / "sound", 2.0, ("right",), reward=broken).scores.tolist() == [[1.0] * 8]
