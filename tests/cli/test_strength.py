"""What a search for lambda says of two laws whose samples are written down: differences, intervals, and silence."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from genbo.bilevel.measured import Relative
from genbo.bilevel.regularization.bank import bank_of
from genbo.bilevel.regularization.best_of_n import BestOfN
from genbo.bilevel.regularization.curve import Optimum, Point
from genbo.bilevel.regularization.search import Round
from genbo.bilevel.regularization.tilted import EXACT, Fit, Law, Measured
from genbo.cli.report.lambda_pair import Pair
from genbo.cli.report.lambda_rows import point_of, record_of
from genbo.cli.report.lambda_summary import Pretrained, Searched
from genbo.cli.report.lambda_untrained import Against, Untrained
from genbo.cli.report.records_report import RunReport
from genbo.cli.report.records_weights import WeightsRow
from genbo.cli.report.trust import remark

GOOD = Fit(ess=500.0, max_weight=0.004, khat=0.1, samples=1000.0)
SOME = Fit(ess=100.0, max_weight=0.03, khat=0.6, samples=1000.0)
REFUSED = Fit(ess=1.2, max_weight=0.9, khat=1.5, samples=1000.0)
T_2, Z = 4.302653, 1.959964


def numbers(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def law(r1, influence=((0.0,),), fit=GOOD, lam=1.0, r2=0.0, kl=0.0) -> Law:
    """r1 of each prompt with what its samples did to it."""
    n = len(r1)
    measured = Measured(numbers(r1), numbers(influence).expand(n, -1))
    others = (Measured(torch.full((n,), x, dtype=torch.float64), torch.zeros(n, 1).double()) for x in (r2, kl, 0.0))
    second, third, covariance = others
    return Law(lam, None, measured, second, third, covariance, 1.0, fit)


def pair(start: Law, tuned: Law, *, shared: bool = True, fresh: bool = False) -> Pair:
    prompts = tuple("abcdefghijklmnopqrstuvwxyz"[: len(start.r1.value)])
    return Pair(start=start, tuned=tuned, shared=shared, prompts=prompts, samples=4 * len(prompts), fresh_prompts=fresh)


def half(found) -> float:
    low, high = found.interval
    assert (low + high) / 2 == pytest.approx(found.difference)
    return (high - low) / 2


# -- two laws --------------------------------------------------------------------------------------------------------

LEFT, RIGHT = (0.3, -0.3, 0.2, -0.2), (0.6, -0.6, -0.2, 0.2)  # what four samples did: sums of squares .26, .80


def test_laws_by_the_same_samples_differ_by_what_each_sample_did_to_both():
    """Influences of the difference are 0.3, -0.3, -0.4, 0.4, without any skewness: their squares add up to 0.5."""
    found = pair(law([1.0], [LEFT]), law([3.0], [RIGHT])).compared("r1")
    assert (found.start, found.tuned, found.difference) == (1, 3, 2)
    assert half(found) == pytest.approx(Z * math.sqrt(0.5), rel=1e-6)


def test_laws_by_samples_of_their_own_add_their_errors():
    found = pair(law([1.0], [LEFT]), law([3.0], [RIGHT]), shared=False).compared("r1")
    assert half(found) == pytest.approx(Z * math.sqrt(0.26 + 0.80), rel=1e-6)


def test_a_few_known_prompts_are_spoken_of_by_their_samples():
    """Two prompts, each with an influence of the difference of 0.5: the mean has sqrt(1) / 2."""
    found = pair(law([1.0, 5.0], [LEFT]), law([3.0, 10.0], [RIGHT])).compared("r1")
    assert found.difference == pytest.approx(3.5) and half(found) == pytest.approx(Z * math.sqrt(1.0) / 2, rel=1e-6)


@pytest.mark.parametrize("shared", [True, False])
def test_fresh_prompts_are_counted_and_not_their_samples(shared):
    """Differences of 1, 2, 3, spread by 1, whatever the samples did."""
    start, tuned = law([10.0, 0.0, -10.0], [LEFT]), law([11.0, 2.0, -7.0], [RIGHT])
    found = pair(start, tuned, shared=shared, fresh=True).compared("r1")
    assert found.difference == pytest.approx(2) and half(found) == pytest.approx(T_2 / math.sqrt(3), rel=1e-6)


def test_many_prompts_are_counted_too_where_they_are_the_tuning_prompts():
    """Nine of them, differences 1 to 9: a standard deviation of 2.7386 and Student's quantile of 8 degrees, 2.306."""
    start, tuned = law([0.0] * 9, [LEFT]), law([float(k) for k in range(1, 10)], [LEFT])
    assert half(pair(start, tuned).compared("r1")) == pytest.approx(2.306 * 2.73861 / 3, rel=1e-3)


def test_each_number_is_compared_by_its_own_name():
    found = {
        which: pair(law([1.0], r2=2.0, kl=4.0), law([1.5], r2=5.0, kl=9.0)).compared(which) for which in ("r2", "kl")
    }
    assert [(c.start, c.tuned, c.difference) for c in found.values()] == [(2, 5, 3), (4, 9, 5)]


# -- best-of-n ---------------------------------------------------------------------------------------------------------


def best_of(r1: float, kl: float = 0.9) -> BestOfN:
    of = law([r1], [LEFT], r2=1.0, kl=kl)
    return BestOfN(4, of.r1, of.r2, Relative(of.kl.value, of.kl.influence))


def against(r1: float, fit: Fit = GOOD) -> Untrained:
    tuned = law([3.0], [LEFT], fit, lam=0.7, r2=2.0, kl=1.1)
    return Untrained(100, (best_of(r1),), Against(best_of(r1), tuned, True, ("a",), 100, False))


@pytest.mark.parametrize(
    ("r1", "level", "sentence"),
    [
        (5.0, "warning", "has a higher clip than λ = 0.700 at less KL (0.900 and 1.10 nats): 5.00 and 3.00, +2.00"),
        (3.0, "note", "shows no measurable difference in clip from λ = 0.700 (KL 0.900 and 1.10 nats): +0.00"),
        (1.0, "note", "has a lower clip than λ = 0.700 (KL 0.900 and 1.10 nats): −2.00"),
    ],
)
def test_best_of_n_is_in_the_verdict_only_where_it_is_better(r1, level, sentence):
    found = replace(searched(pair(*BETTER)), untrained=against(r1))
    held_out, _, _ = found.compared()
    first = found.trust(report(held_out))[0]
    assert first.level == level and f"Best-of-4 by aesthetic, which needs no tuning, {sentence}" in first.text
    assert ("Best-of-4" in found.headline(report(held_out))) == (r1 > 3)


def test_best_of_n_is_not_compared_with_a_law_of_too_few_samples():
    found = against(5.0, REFUSED).document()
    assert found.against is None and len(found.points) == 1


# -- what is said of them --------------------------------------------------------------------------------------------


def searched(of: Pair | None, **optimum) -> Searched:
    best = Optimum(
        **{"kind": "interior", "lam": 0.7, "r1": 3.0, "verdict": "reliable", "reason": "r1 is highest", **optimum}
    )
    curve = tuple(
        Point(lam, law([r1], lam=lam), Measured(numbers([0.1]), numbers([[0.0]])))
        for lam, r1 in ((0.5, 2.0), (1.0, 3.0))
    )
    last = Round((), curve, best, "done", "r1 is highest")
    return Searched(last, Pretrained(0.0, 0.0), "clip", "aesthetic", "reweight", "the tilt", of)


def report(held_out) -> RunReport:
    lam = {"start": 3.0, "tuned": 0.7, "se": 0.1, "bounds": [0.1, 10.0]}
    return RunReport(phi={"regularization": lam}, held_out=held_out, job={"prompts": ["z"], "reward": []})


BETTER = (law([1.0], [LEFT], lam=3.0), law([9.0], [LEFT], lam=0.7))


def test_samples_that_speak_of_both_give_the_verdict_of_the_upper_reward():
    found = searched(pair(*BETTER))
    held_out, rewards, keep = found.compared()
    assert held_out is not None and held_out.verdict == "better" and held_out.difference == 8 and not keep
    assert [row.verdict for row in rewards.values()] == ["better", "", ""], "of r2 and KL none is better or worse"
    assert found.headline(report(held_out)).endswith(": better.")
    assert held_out.document()["by_prompt"] == [{"prompt": "a", "difference": 8.0, "samples": 4}]


@pytest.mark.parametrize(("start", "tuned"), [(REFUSED, GOOD), (GOOD, REFUSED), (REFUSED, REFUSED)])
@pytest.mark.parametrize("shared", [True, False])
def test_where_samples_cannot_speak_of_one_of_them_there_is_no_verdict(start, tuned, shared):
    """However clear the difference looks: what one sample says is no evidence."""
    found = searched(pair(law([1.0], [LEFT], start), law([9.0], [LEFT], tuned), shared=shared))
    held_out, _, _ = found.compared()
    assert held_out is not None and held_out.verdict is None
    said = report(held_out)
    headline = found.headline(said)
    assert "no verdict" in headline and "better" not in headline
    assert remark(
        "warning", "The held-out samples are too few for both lambdas; raise evaluate.samples, or start nearer."
    ) in (found.trust(said))


@pytest.mark.parametrize(("start", "tuned"), [(REFUSED, GOOD), (GOOD, REFUSED)])
def test_a_judge_of_too_few_samples_gives_no_verdict_and_no_number(start, tuned):
    few, enough = pair(law([1.0], [LEFT], start), law([9.0], [LEFT], tuned)), pair(*BETTER)
    found = replace(searched(enough), judges={"few": few, "enough": enough, "none": None}).opinions()
    assert found["enough"].verdict == "better" and found["enough"].difference == 8
    for name in ("few", "none"):
        row = found[name]
        assert row.verdict is None and row.difference is None and row.interval == (None, None)
    assert found["few"].reason == "its samples are too few for both lambdas"


def test_doubtful_samples_still_give_a_verdict():
    found = searched(pair(law([1.0], [LEFT], SOME), law([9.0], [LEFT], GOOD)))
    assert found.pair is not None and found.pair.has_enough_samples
    held_out, _, _ = found.compared()
    assert held_out is not None and held_out.verdict == "better"


def test_without_held_out_laws_there_is_no_verdict_and_no_row():
    found = searched(None)
    assert found.compared() == (None, {}, {})
    assert "no verdict" in found.headline(report(None))


def test_what_is_said_of_the_samples_is_of_the_lambda_nearest_to_the_answer():
    """0.7 lies nearest to 0.8, where the effective size is 100 and the KL 4; its neighbours have others."""
    fits = {0.5: (REFUSED, 9.0), 0.8: (SOME, 4.0), 2.0: (GOOD, 1.0)}
    zero = Measured(numbers([0.0]), numbers([[0.0]]))
    curve = tuple(
        Point(lam, Law(lam, None, zero, zero, Measured(numbers([kl]), numbers([[0.1]])), zero, 1.0, fit), zero)
        for lam, (fit, kl) in fits.items()
    )
    found = searched(None)
    found = replace(found, last=replace(found.last, curve=curve))
    texts = [line.text for line in found.trust(report(None))]
    assert any("effective size 100, largest weight 0.03" in text for text in texts)
    assert any("4.00 ± 0.10 nats of KL" in text for text in texts)


def test_laws_that_are_known_on_paper_have_no_width_and_no_samples():
    exact = [
        Law(lam, None, *(Measured(numbers([x]), torch.zeros(1, 0).double()) for x in (x, 0, 0, 0)), 1.0, EXACT)
        for lam, x in ((3.0, 1.0), (0.7, 2.0))
    ]
    found = searched(Pair(exact[0], exact[1], True, ("a",), 0, False))
    held_out, _, _ = found.compared()
    assert held_out is not None and held_out.interval == (1.0, 1.0) and held_out.verdict == "better"
    assert "in closed form: better" in found.headline(report(held_out))


# -- the key `search` ------------------------------------------------------------------------------------------------


class Rows:
    """Tuned weights whose rows are known."""

    def document(self) -> list[WeightsRow]:
        return [WeightsRow(factor=1.0)]


def test_the_search_as_an_object():
    best = searched(None).last.optimum
    curve = tuple(
        Point(lam, law([lam], lam=lam, fit=fit), Measured(numbers([0.1]), numbers([[0.0]])))
        for lam, fit in ((0.5, REFUSED), (1.0, GOOD), (2.0, SOME), (4.0, GOOD))
    )
    banks = tuple(bank_of(torch.randn(2, n), torch.randn(2, n)) for n in (64, 128))
    last = Round(banks, curve, replace(best, interval=(0.5, 0.9), log_se=0.1, others=(2.5,)), "spent", "r1 is highest")
    tilt = law([1.0], lam=0.8, fit=SOME)
    known = Pretrained(-1.0, 2.0)
    said = (
        Searched(last, known, "clip", "style", "guided", "its own law", None, Rows(), tilt)
        .document()
        .model_dump(exclude_unset=True)
    )
    assert [row["lam"] for row in said["curve"]] == [0.5, 1, 2, 4] and said["reach"] == [1, 4]
    assert said["pretrained"] == {"r1": -1.0, "r2": 2.0} and said["samples"] == [64, 128]
    wanted = {"kind": "interior", "lam": 0.7, "interval": (0.5, 0.9), "log_se": 0.1, "others": [2.5], "r1": 3.0}
    assert {key: said["optimum"][key] for key in wanted} == wanted
    assert said["tilt"] == {"lam": 0.8, "verdict": "doubtful"} and said["weights"] == [{"factor": 1.0}]
    assert (said["upper"], said["lower"], said["solver"], said["after"]) == ("clip", "style", "guided", "spent")
    assert said["pretrained_reason"] is None
    none, unknown = replace(last, optimum=None, curve=curve[:1]), Pretrained(reason="no plain samples")
    without = Searched(none, unknown, "clip", "style", "guided", "law", None).document().model_dump(exclude_unset=True)
    assert without["pretrained_reason"] == "no plain samples"
    assert [without[key] for key in ("optimum", "reach", "pretrained", "tilt", "weights")] == [None] * 5


# -- rows ------------------------------------------------------------------------------------------------------------


def test_a_row_of_the_curve_has_every_mean_beside_its_own_error():
    parts = {
        name: Measured(numbers([x]), numbers([[se]]))
        for name, x, se in (("r1", 1.0, 0.1), ("r2", 2.0, 0.2), ("kl", 3.0, 0.3))
    }
    at = Law(lam=0.5, gamma=None, covariance=parts["r1"], r1_sd=1.0, fit=SOME, **parts)
    row = point_of(Point(0.5, at, Measured(numbers([4.0]), numbers([[0.4]])))).document()
    means = {"r1": 1.0, "r2": 2.0, "kl": 3.0, "grad": 4.0}
    assert {name: row[name] for name in means} == means
    assert [row[f"{name}_se"] for name in means] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert (row["lam"], row["verdict"], row["ess"], row["max_weight"], row["khat"]) == (0.5, "doubtful", 100, 0.03, 0.6)


def test_a_row_of_the_curve_has_the_wider_error_bar_of_a_kl():
    """0.1 of 1 is (e^0.3 - 1) / 3, as an error of the logarithm."""
    zero = Measured(numbers([0.0]), numbers([[0.0]]))
    kl = Relative(numbers([1.0]), numbers([[0.1]]))
    row = point_of(Point(0.5, Law(0.5, None, zero, zero, kl, zero, 1.0, SOME), zero)).document()
    assert row["kl"] == 1 and row["kl_se"] == pytest.approx(math.expm1(0.3) / 3)


def test_a_line_of_the_journal_has_the_gradient_where_the_optimum_is():
    grads = {0.5: 0.5, 1.0: 0.01, 2.0: -0.6}
    curve = tuple(
        Point(lam, law([lam], [[lam / 10]], lam=lam), Measured(numbers([g]), numbers([[g / 10]])))
        for lam, g in grads.items()
    )
    best = Optimum("interior", 1.02, 3.0, "reliable", "r1 is highest", log_se=0.05)
    line = record_of(
        2, Round((), curve, best, "more", "again", target=0.9), [0.3], {"denoiser_calls": 7}, 1.23456, "clip"
    )
    assert (line["step"], line["u"], line["phi"], line["value"]) == (2, [0.3], {"regularization": 1.02}, 3.0)
    assert (
        line["grad"] == [0.01] and line["grad_se"] == pytest.approx([0.001]) and line["value_se"] == pytest.approx(0.1)
    )
    assert (line["status"], line["after"], line["target"], line["shifted"]) == ("ok", "more", 0.9, False)
