"""Tuned weights against the pretrained model's: which way round, of how many samples, and how well that is known."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from genbo.bilevel.regularization.bank import bank_of
from genbo.bilevel.training.memoryless import memoryless, sample_with_path_kl
from genbo.cli.plan.counts import PATHS
from genbo.cli.report.held_out_side import Side
from genbo.cli.report.tuned_weights import Finetuned, Weights
from genbo.cli.run.chunk_cache import ChunkCache
from genbo.cli.stages.finetuning import bank_at, path_kl
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.process import Process, process_of
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Batch
from tests.diffusion.test_path_kl import chain, gaussian_kl, joint

T_2 = 4.302653  # Student's 97.5 % quantile for two degrees of freedom
STEPS = 160  # from which on an exact world's path is followed as it is


def process(mean: float, std: float) -> Process:
    return process_of(Gaussian({"a": [mean]}, std).open(), Ddim(STEPS, 1.0), Plain(1.0), batch=1000)


def followed(base: Process, tuned: Process, folder: Path, samples: int) -> tuple[float, float]:
    """What the report says of the paths of `tuned` beside those of `base`."""
    work: Any = SimpleNamespace(assembled=SimpleNamespace(problem=SimpleNamespace(process=base)))
    kept = ChunkCache(folder, {}, base.meter, lambda *_: None)
    return path_kl(work, tuned, 1.0, Batch(("a",) * samples, tuple(range(samples))), kept)


@pytest.mark.parametrize(("ours", "theirs"), [((0.6, 0.4), (0.0, 0.7)), ((0.0, 0.7), (0.6, 0.4))])
def test_the_kl_is_that_of_the_tuned_paths_from_the_pretrained_ones(tmp_path, ours, theirs):
    """Of two normal chains it is known on paper, and the other way round it is another number."""
    laws = [joint(chain(*which, STEPS, 1.0)) for which in (ours, theirs)]
    forth, back = gaussian_kl(*laws), gaussian_kl(*reversed(laws))
    kl, se = followed(process(*theirs), process(*ours), tmp_path, PATHS)
    assert abs(kl - forth) < 4 * se and abs(kl - back) > 4 * se


def test_the_error_of_a_kl_is_its_spread_over_the_root_of_the_paths(tmp_path):
    base, tuned = process(0.0, 0.7), process(0.6, 0.4)
    kl, se = followed(base, tuned, tmp_path, PATHS + 40)
    with torch.no_grad():
        each = sample_with_path_kl(memoryless(tuned), memoryless(base), Batch(("a",) * PATHS, tuple(range(PATHS))))[1]
    assert kl == pytest.approx(each.mean().item()), "no more paths than planned are followed"
    assert se == pytest.approx(each.std().item() / math.sqrt(PATHS))


# -- gains -----------------------------------------------------------------------------------------------------------


def side(*rows: list[float]) -> Side:
    return Side(scores=torch.tensor(rows, dtype=torch.float64), shown=torch.zeros(0), cost={}, elapsed_s=0.0)


@pytest.fixture
def weights() -> Weights:
    """Two upper rewards, 2 and -1 times, and a lower one, 3 times, on three prompts."""
    laws = (
        Finetuned(None, None, side([10, 0, -20], [1, 1, 1], [5, 50, 500]), None),
        Finetuned(1.0, 4.0, side([11, 1, -19], [2, 1, 0], [6, 52, 503]), (0.5, 0.1)),
        Finetuned(0.1, 0.4, side([9, -1, -21], [2, 1, 0], [16, 62, 513]), (5.0, 0.2)),
    )
    return Weights(process(0.0, 1.0), laws, ("a", "b", "c"), (2.0, -1.0), (3.0,), True)


def test_each_level_has_its_own_rewards_and_weights(weights):
    scores = {level: weights.scores(weights.at(1.0), level).tolist() for level in ("r1", "r2")}
    assert scores == {"r1": [20, 1, -38], "r2": [18, 156, 1509]}


def test_a_gain_is_the_first_after_the_second_sample_by_sample(weights):
    """r1 gains 2 - (1, 0, -1) and r2 3 (1, 2, 3): means 2 and 6, spreads 1 and 3."""
    gains = {level: weights.compared(1.0, None, level) for level in ("r1", "r2")}
    assert [found.difference for found in gains.values()] == pytest.approx([2 - 0, 6])
    halves = [(found.interval[1] - found.interval[0]) / 2 for found in gains.values()]
    assert halves == pytest.approx([T_2 / math.sqrt(3), 3 * T_2 / math.sqrt(3)], rel=1e-6)
    assert weights.compared(0.1, 1.0, "r1").difference == pytest.approx(-4)
    assert weights.compared(0.1, 1.0, "r2").difference == pytest.approx(30)


def test_the_rows_of_the_report(weights):
    pretrained, tuned, less = weights.document()
    assert (pretrained.r1_gain, pretrained.r2_gain, pretrained.kl) == (None, None, None)
    assert [row.r1 for row in (pretrained, tuned, less)] == pytest.approx([-20 / 3 - 1, -17 / 3, -29 / 3])
    assert [row.r1_gain.difference for row in (tuned, less)] == pytest.approx([2, -2])
    assert [row.r2_gain.difference for row in (tuned, less)] == pytest.approx([6, 36])
    assert [(row.factor, row.lam, row.kl, row.kl_se) for row in (tuned, less)] == [
        (1.0, 4.0, 0.5, 0.1), (0.1, 0.4, 5.0, 0.2),
    ]  # fmt: skip


def shifted(by: float, r1: float, r2: float) -> Finetuned:
    return Finetuned(by, by, side([10 + r1, r1, -20 + r1], [5 + r2, 50 + r2, 500 + r2]), (1.0, 0.1))


@pytest.mark.parametrize(
    ("factor", "r1", "r2", "said"),
    [
        (0.1, -1, 1, ": over-optimised."),
        (0.1, 1, 1, None),
        (0.1, -1, -1, None),
        (10.0, -1, -1, ": held back too much."),
        (10.0, 1, -1, None),
        (10.0, -1, 1, None),
        (10.0, 0, 0, ": no measurable difference in either."),
        (0.1, 0, 1, None),
    ],
)
def test_what_other_strengths_mean_is_said_where_the_samples_show_it(factor, r1, r2, said):
    laws = (Finetuned(None, None, side([0, 0, 0], [0, 0, 0]), None), shifted(1.0, 0, 0), shifted(factor, r1, r2))
    found = Weights(process(0.0, 1.0), laws, ("a", "b", "c"), (1.0,), (1.0,), True)
    text = list(found.remarks("taste", "style"))[-1].text
    assert text.startswith(f"Weights tuned at {factor:g} lambda against lambda: taste ")
    assert text.endswith(said) if said else text.endswith("].")


def test_weights_are_learned_from_the_bank_that_knows_lambda_best():
    """At lambda = 1 a few samples with even weights know more than many of which one weighs all."""
    r2 = torch.linspace(-1, 1, 400, dtype=torch.float64)
    even, hung = bank_of(r2, 1e-3 * r2), bank_of(r2.repeat(4), 60 * r2.repeat(4))
    assert bank_at([even, hung], 1.0) is even and bank_at([hung, even], 1.0) is even
    larger = bank_of(r2.repeat(4), 1e-3 * r2.repeat(4))
    assert bank_at([even, larger], 1.0) is larger and bank_at([larger, even], 1.0) is larger
