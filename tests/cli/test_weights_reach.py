"""What the report says of tuned weights beside the law: shares, intervals, rates and words."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from genbo.bilevel.lower.reweight import Reweight
from genbo.bilevel.measured import Measured
from genbo.bilevel.regularization.bank import bank_of
from genbo.cli.commands import tune
from genbo.cli.errors import Preempted
from genbo.cli.job.job import read_job
from genbo.cli.plan.counts import plan
from genbo.cli.report import weights_words
from genbo.cli.report.held_out_side import Side
from genbo.cli.report.records import ComparedRow
from genbo.cli.report.records_weights import PromisedRecord, ReachedRecord, WeightsRow
from genbo.cli.report.sections.tuned_weights import lines_of
from genbo.cli.report.tuned_weights import Finetuned, Promised, Weights, error_of
from genbo.cli.stages import finetuning
from genbo.cli.stages.finetuning import promised_at
from tests.cli.test_outlay import network_job

Z = 1.959964
NOBODY: Any = None


def side(*rows: torch.Tensor) -> Side:
    return Side(scores=torch.stack(rows), shown=torch.zeros(0), cost={}, elapsed_s=0.0)


def normal(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gain(mean: float, se: float) -> Measured:
    """Of one prompt, by two samples."""
    half = se / math.sqrt(2)
    return Measured(torch.tensor([mean], dtype=torch.float64), torch.tensor([[half, -half]], dtype=torch.float64))


def weights_of(seed: int = 0, n: int = 400, promised: Promised | None = None, judges: tuple[str, ...] = ()) -> Weights:
    """r2 gains 0.8 with a spread of 1, and r1 loses half of that, with some noise of its own; held out, half of it."""
    own, other = (tuple("ab"[k % 2] for k in range(n)), tuple("cdefgh"[k % 6] for k in range(n)))
    sides = []
    for k, gained in enumerate((0.8, 0.4)):
        r1, r2, noise = (normal(n, 100 * seed + 10 * k + j) for j in range(3))
        more = 0.2 * normal(n, 100 * seed + 10 * k + 5)
        up = gained + noise
        judged = [3 * r1] * len(judges), [3 * r1 + 1] * len(judges)
        sides.append((side(r1, r2, *judged[0]), side(r1 - up / 2 + more, r2 + up, *judged[1])))
    (t0, t1), (h0, h1) = sides
    laws = (Finetuned(None, None, h0, None, t0), Finetuned(1.0, 4.0, h1, (12.0, 0.5), t1, promised))
    return Weights(NOBODY, laws, other, (1.0,), (1.0,), True, judges, own)


def test_the_share_is_the_gain_over_the_laws_and_counts_both_errors():
    promised = Promised(gain(-0.1, 0.01), gain(1.0, 0.05), 0.3, "reliable")
    row = weights_of(promised=promised).document()[1]
    found = row.on_tuned
    assert found.share == pytest.approx(found.r2.difference) and 0.65 < found.share < 0.95
    half = (found.r2.interval[1] - found.r2.interval[0]) / 2
    low, high = found.share_interval
    assert (high - low) / 2 == pytest.approx(math.hypot(half, Z * found.share * 0.05))
    assert row.on_held_out.share == pytest.approx(row.on_held_out.r2.difference) and row.on_held_out.share < 0.65
    assert row.promised.r2 == pytest.approx(1) and row.promised.r2_se == pytest.approx(0.05)


@pytest.mark.parametrize("unclear", [None, (0.05, 0.05, "reliable"), (1.0, 0.05, "refuse"), (-1.0, 0.05, "reliable")])
def test_without_a_clear_promise_there_is_no_share(unclear):
    promised = unclear and Promised(gain(0.0, 0.1), gain(*unclear[:2]), 0.3, unclear[2])
    found = weights_of(promised=promised).document()[1]
    assert found.on_tuned.share is found.on_held_out.share is found.on_tuned.share_interval is None
    assert weights_words.share(found, "style") == ""


def test_intervals_of_shares_and_rates_hold_the_truth_as_often_as_they_say():
    """The truth is 0.8 of the law's gain of 1, which is known to 0.05, and -1/2 of r1 a unit of r2."""
    held = {"share": 0, "rate": 0}
    for seed in range(200):
        error = 0.05 * float(normal(1, 7000 + seed))
        promised = Promised(gain(0.0, 0.1), gain(1.0 + error, 0.05), 0.3, "reliable")
        found = weights_of(seed + 1, n=120, promised=promised).document()[1].on_tuned
        held["share"] += found.share_interval[0] < 0.8 < found.share_interval[1]
        held["rate"] += found.r1_per_r2_interval[0] < -0.5 < found.r1_per_r2_interval[1]
    assert all(0.90 < count / 200 < 0.99 for count in held.values()), held


def test_there_is_no_rate_where_r2_did_not_clearly_move():
    weights = weights_of()
    still = replace(weights.laws[1], on_tuned=weights.laws[0].on_tuned)
    found = replace(weights, laws=(weights.laws[0], still)).document()[1]
    assert found.on_tuned.r1_per_r2 is None and found.on_held_out.r1_per_r2 == pytest.approx(-0.5, abs=0.1)


def test_fresh_seeds_of_the_tuning_prompts_are_what_is_held_out_where_no_other_prompts_are():
    row = replace(weights_of(), fresh_prompts=False).document()[1]
    assert row.on_held_out is None and row.on_tuned.r2.difference == pytest.approx(row.r2_gain.difference)


def test_judges_of_sets_have_not_seen_the_tuning_prompts():
    weights = weights_of(judges=("one", "set"))
    without = [replace(law.on_tuned, scores=law.on_tuned.scores[:3]) for law in weights.laws]
    laws = tuple(replace(law, on_tuned=own) for law, own in zip(weights.laws, without, strict=True))
    row = replace(weights, laws=laws).document()[1]
    assert set(row.on_tuned.judges) == {"one"} and set(row.on_held_out.judges) == {"one", "set"}
    assert row.on_tuned.judges["one"].difference == pytest.approx(1)
    assert next(line.judges for line in lines_of(row, ["one", "set"]))[1] == "—"


def test_the_promise_is_the_tilt_of_the_searchs_samples():
    """r2 standard normal: the tilt at lambda gains t = 1 / lambda, half of it in r1 = r2 / 2, at a KL of t^2 / 2."""
    r2 = normal(3 * 20_000, 5).reshape(3, 20_000)
    bank = bank_of(r2 / 2 + 7, r2 + 3)
    last = SimpleNamespace(banks=[bank])
    found = promised_at(last, 2.0, 3)
    assert found.r2.mean == pytest.approx(0.5, abs=0.02) and found.r1.mean == pytest.approx(0.25, abs=0.01)
    assert found.kl == pytest.approx(0.125, abs=0.01) and found.verdict == "reliable"
    assert error_of(found.r2) == pytest.approx(1 / math.sqrt(60_000), rel=0.5)
    few = promised_at(last, 2.0, 2)
    assert few.r2.value.tolist() == found.r2.value[:2].tolist()
    assert found.r2.mean == pytest.approx(Reweight().solve(bank, 2.0).r2.mean - r2.mean().item() - 3, abs=1e-3)
    assert promised_at(SimpleNamespace(banks=[]), 2.0, 3) is None


# -- words -----------------------------------------------------------------------------------------------------


def compared(difference: float, low: float, high: float, verdict: str) -> ComparedRow:
    seen = {"samples": 128, "prompts": 64, "verdict": verdict, "start": 0.0, "tuned": difference}
    return ComparedRow(**seen, difference=difference, interval=(low, high))


def row_of(**own: Any) -> WeightsRow:
    r2, r1 = compared(0.5, 0.4, 0.6, "better"), compared(0.02, -0.01, 0.05, "no measurable difference")
    reached = ReachedRecord(r1=r1, r2=r2, share=0.8, share_interval=(0.7, 0.9), r1_per_r2=0.04)
    law = PromisedRecord(r1=0.01, r1_se=0.01, r2=0.625, r2_se=0.01, kl=0.33)
    given = {"factor": 1.0, "lam": 2.0, "kl": 15.5, "kl_se": 0.4, "on_tuned": reached, "on_held_out": reached}
    return WeightsRow(**{**given, "promised": law, **own})


def test_the_headline_is_about_the_weights():
    search = SimpleNamespace(weights=[WeightsRow(), row_of()], lower="style", upper="taste")
    report: Any = SimpleNamespace(search=search, held_out=compared(0.01, -0.02, 0.04, "no measurable difference"))
    assert weights_words.about_lambda(report).endswith("taste +0.010 [−0.020, 0.040], no measurable difference.")
    assert weights_words.headline(report) == (
        "The weights tuned there: style +0.50 [0.40, 0.60] and taste +0.020 [−0.010, 0.050] on 128 held-out samples: "
        "better. On the tuning prompts they reach 80\u00a0% [70\u00a0%, 90\u00a0%] of the law's gain in style."
    )
    assert "64 prompts that the weights were not tuned for" in str(weights_words.lead(report))
    report.search = SimpleNamespace(weights=[WeightsRow(), WeightsRow(factor=1.0)], lower="style", upper="taste")
    assert weights_words.headline(report) is weights_words.lead(report) is weights_words.gain_of(report) is None


def test_why_the_kl_of_paths_is_more_is_explained_where_it_is():
    text = weights_words.about_kl(row_of())
    assert text.startswith(
        "At λ the paths' KL is 15.50 ± 0.40 nats and the law's is 0.330, 47 times as much. The KL of"
    )
    near = weights_words.about_kl(row_of(kl=0.4, kl_se=0.01))
    assert near == "At λ the paths' KL is 0.400 ± 0.010 nats and the law's is 0.330, 1.2 times as much."
    assert weights_words.about_kl(row_of(promised=None)) == weights_words.about_kl(row_of(kl=None)) == ""


def test_a_line_for_the_law_and_one_for_each_kind_of_prompts():
    law, own, other = lines_of(row_of(factor=0.1), [])
    assert (law.name, law.share) == ("the law at 0.1 λ", "—") and law.r2.startswith("+0.625 [0.60")
    assert (own.name, own.kl) == ("weights at 0.1 λ, tuning prompts", "—")
    assert other.kl.startswith("15.5") and other.share == "80\u00a0% [70\u00a0%, 90\u00a0%]"
    (alone,) = lines_of(row_of(promised=None, on_held_out=None), [])
    assert alone.name == "weights at λ, tuning prompts" and alone.kl.startswith("15.5")


# -- a run -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("1.safetensors.before_rename:2", marks=pytest.mark.slow),
        "tuned-on-tuned.safetensors.before_rename:1",
    ],
)
def test_left_and_gone_on_with_it_is_the_same_run(tiny_sd, tiny_clip, workplace, monkeypatch, point):
    """In the middle of a training, whose levels were weighted before, and in its samples: figures and costs."""
    job = network_job(tiny_sd, tiny_clip, finetune={"steps": 3, "batch": 5, "also": []})
    monkeypatch.setattr(finetuning, "OFTEN", 1)
    whole = tune.tune(job | {"output": "whole"}).result().document
    place, nth = point.rsplit(":", 1)
    monkeypatch.setenv("GENBO_FAULT", f"{place}:term:{nth}")
    monkeypatch.setattr("genbo.cli.run.faults._passed", {})
    with pytest.raises(Preempted):
        tune.tune(job).result()
    monkeypatch.delenv("GENBO_FAULT")
    again = tune.tune(job, resume=True).result().document
    for document in (whole, again):
        document["cost"].pop("elapsed_s")
    assert again["cost"] == whole["cost"] and again["search"] == whole["search"]
    planned = plan(read_job(job)).total.document()
    assert {key: again["cost"][key] for key in planned} == planned
