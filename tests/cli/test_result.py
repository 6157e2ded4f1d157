"""What report.json says of scores that are known, worked out by hand; Student's quantiles are those of a table."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from genbo.bilevel.problem import Constraint, Problem
from genbo.bilevel.tunables.guidance import Guidance, Knots
from genbo.cli.report.held_out_side import Side
from genbo.cli.report.summary import Findings, HeldOut, Names, Tuned, document_of, last_good, noise_ratio, tuned_of
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.process import process_of
from genbo.diffusion.samplers.ddim import Ddim
from genbo.rewards.quadratic import Quadratic

T_2 = 4.302653  # Student's 97.5 % quantile for two degrees of freedom
HALF = T_2 / math.sqrt(3)  # half an interval of three prompts that spread by 1: 2.4841
PROMPTS = ("a", "b", "c")
STEPS = 4


def problem_of(weights=(1.0,), constraints=(), **guidance: Any) -> Problem:
    process = process_of(Gaussian().open(), Ddim(steps=STEPS), Plain(1.0), batch=8)
    reward = Quadratic(target=1.0).open("cpu")
    kept = tuple(Constraint(f"kept {k}", reward, *level) for k, level in enumerate(constraints))
    tunable = Guidance(**{"start": 2.0, "bounds": (0.0, 10.0), **guidance})
    return Problem(process, (tunable,), tuple((weight, reward) for weight in weights), kept)


def side(rows: Any) -> Side:
    return Side(scores=torch.tensor(rows, dtype=torch.float64), shown=torch.zeros(0), cost={}, elapsed_s=0.0)


def document(problem: Problem, start: Any, tuned: Any, *, fresh: bool = True, records: Any = (), **given: Any) -> dict:
    names = Names(tuple(f"reward {k}" for k in range(len(problem.rewards))), tuple(c.name for c in problem.constraints))
    found = Findings(
        problem=problem,
        names=names,
        records=records,
        tuned=given.pop("answer", Tuned(torch.tensor([3.0], dtype=torch.float64), [0.5], "mean")),
        held_out=HeldOut(
            start=side(start), tuned=side(tuned), prompts=given.pop("prompts", PROMPTS), fresh_prompts=fresh
        ),
        cost={},
        planned={},
        estimator={"kind": "zeroth_order", "reason": "by hand"},
        job={"reward": [{"kind": "quadratic"}], "prompts": ["z"]},
        environment={},
        reproduce="genbo tune job.yaml",
        **given,
    )
    return document_of(found)


# -- start against tuned ---------------------------------------------------------------------------------------------


def test_the_verdict_is_that_of_the_weighted_rewards_and_no_constraints():
    """2 r_0 - r_1: gains of 2 * (1, 1, 1) - (1, 0, -1) = 1, 2, 3 over the start, whatever the constraint does."""
    problem = problem_of((2.0, -1.0), [(-1e9, False)])
    start = [[10, 20, 30], [5, 5, 5], [0, 0, 0]]
    tuned = [[11, 21, 31], [6, 5, 4], [-9, -9, -9]]
    said = document(problem, start, tuned)
    total = said["held_out"]
    assert (total["start"], total["tuned"], total["difference"]) == pytest.approx((35, 37, 2))
    assert total["interval"] == pytest.approx([2 - HALF, 2 + HALF], rel=1e-6)
    assert said["verdict"] == total["verdict"] == "no measurable difference" and total["samples"] == 3
    assert [row["weight"] for row in said["rewards"].values()] == [2.0, -1.0]
    assert [row["difference"] for row in said["rewards"].values()] == pytest.approx([1, 0])
    assert said["rewards"]["reward 1"]["interval"] == pytest.approx([-HALF, HALF], rel=1e-6)
    assert said["rewards"]["reward 0"]["verdict"] == "better"
    assert [(row["prompt"], row["difference"]) for row in total["by_prompt"]] == [("a", 1), ("b", 2), ("c", 3)]


def test_an_interval_speaks_of_fresh_prompts_or_of_fresh_seeds():
    """a gains 1 and 3, b gains 10 and 14: between prompts they spread by 7.07, within them by sqrt(5)."""
    problem, prompts = problem_of(), ("a", "b", "a", "b")
    start, tuned = [[0, 5, 0, 5]], [[1, 15, 3, 19]]
    both = [document(problem, start, tuned, prompts=prompts, fresh=fresh) for fresh in (True, False)]
    by_prompt, by_seed = (said["held_out"] for said in both)
    assert [said["rewards"]["reward 0"]["interval"] for said in both] == [by_prompt["interval"], by_seed["interval"]]
    assert by_prompt["difference"] == by_seed["difference"] == pytest.approx(7)
    assert by_prompt["interval"][1] - 7 == pytest.approx(12.7062 * 5, rel=1e-5)
    assert by_seed["interval"][1] - 7 == pytest.approx(T_2 * math.sqrt(5) / 2, rel=1e-6)
    assert (by_prompt["fresh_prompts"], by_seed["fresh_prompts"]) == (True, False)
    assert (by_prompt["verdict"], by_seed["verdict"]) == ("no measurable difference", "better")
    rows = by_prompt["by_prompt"]
    assert [(row["prompt"], row["difference"], row["samples"]) for row in rows] == [("a", 2, 2), ("b", 12, 2)]


def test_prompts_are_listed_from_the_worst_to_the_best():
    rows = document(problem_of(), [[0, 0, 0]], [[3, -1, 2]])["held_out"]["by_prompt"]
    assert [row["prompt"] for row in rows] == ["b", "c", "a"]


# -- keep ------------------------------------------------------------------------------------------------------------

RELATIVE = [  # by how much each prompt changes, at_least: start - 1; gap, held, broken
    ((0, 1, 2), 2, True, False),
    ((-2, -1, 0), 0, True, False),  # exactly at its level
    ((-3, -2, -1), -1, False, False),  # below it, by less than 2.48
    ((-4, -3, -2), -2, False, False),
    ((-5, -4, -3), -3, False, True),  # and by more
]
ABSOLUTE = [  # what each prompt has when tuned, at_least: 7
    ((8, 9, 10), 2, True, False),
    ((6, 7, 8), 0, True, False),
    ((4, 5, 6), -2, False, False),
    ((3, 4, 5), -3, False, True),
]


@pytest.mark.parametrize(("change", "gap", "held", "broken"), RELATIVE)
def test_a_level_below_the_start_is_broken_only_where_its_interval_says_so(change, gap, held, broken):
    start = [100.0, 0.0, -40.0]  # prompts differ far more than any sample of them moves
    tuned = [a + b for a, b in zip(start, change, strict=True)]
    (kept,) = document(problem_of((1.0,), [(-1.0, True)]), [[0, 0, 0], start], [[9, 9, 9], tuned])["keep"].values()
    assert kept["at_least"] == pytest.approx(20 - 1) and kept["tuned"] == pytest.approx(20 + sum(change) / 3)
    assert (kept["gap"], kept["held"], kept["broken"]) == (pytest.approx(gap), held, broken)


@pytest.mark.parametrize(("tuned", "gap", "held", "broken"), ABSOLUTE)
def test_a_level_that_is_a_number_is_broken_only_where_the_interval_says_so(tuned, gap, held, broken):
    problem = problem_of((1.0,), [(7.0, False)])
    (kept,) = document(problem, [[0, 0, 0], [20, 20, 20]], [[9, 9, 9], tuned])["keep"].values()
    assert kept["at_least"] == 7 and kept["tuned"] == pytest.approx(sum(tuned) / 3)
    assert (kept["gap"], kept["held"], kept["broken"]) == (pytest.approx(gap), held, broken)


def test_a_level_that_is_a_number_is_told_by_the_tuned_samples_and_not_by_what_changed():
    """Every prompt fell by exactly 9, but what they have, 1, 5 and 12, says little of a mean of 7."""
    problem = problem_of((1.0,), [(7.0, False)])
    tuned = [1.0, 5.0, 12.0]
    (kept,) = document(problem, [[0, 0, 0], [x + 9 for x in tuned]], [[9, 9, 9], tuned])["keep"].values()
    assert kept["gap"] == pytest.approx(-1) and kept["interval"] == pytest.approx([-9, -9])
    assert (kept["held"], kept["broken"]) == (False, False)


def test_what_was_not_kept_is_in_the_headline_and_a_warning_and_what_may_be_noise_is_not():
    problem = problem_of((1.0,), [(-1.0, True), (-1.0, True), (-1.0, True)])
    start = [[0, 0, 0]] * 4
    said = document(problem, start, [[4, 5, 6], [-5, -4, -3], [-4, -3, -2], [0, 1, 2]])
    assert "better, but kept 0 fell below its level." in said["headline"]
    assert "kept 1" not in said["headline"] and "kept 2" not in said["headline"]
    levels = {line["text"].split()[1]: line["level"] for line in said["trust"] if line["text"].startswith("Kept ")}
    assert levels == {"0": "warning", "1": "note", "2": "good"}


# -- the answer ------------------------------------------------------------------------------------------------------


def record(u: float, grad: float, status: str = "ok", se: float = 0.01) -> dict:
    number = [None if math.isnan(x) else x for x in (u, grad, se)]
    return {"status": status, "u": number[:1], "grad": number[1:2], "grad_se": number[2:]}


def path(*us: float, root: float = 0.5) -> list[dict]:
    """A path along the line g = -2 (u - root)."""
    return [record(u, -2 * (u - root)) for u in us]


def test_the_answer_is_the_same_without_the_steps_that_had_no_gradient():
    """The line falls through 0 at u = 0.5; what stands between its points is not finite, flat, and far away."""
    problem = problem_of()
    good = path(-1.0, -0.5, 0.0, 0.3, 0.6, 0.55, 0.5, 0.45)
    nothing = [record(6.0, math.nan, "non_finite"), record(-6.0, 0.0, "flat"), record(9.0, math.inf, "non_finite")]
    mixed = [nothing[0], *good[:3], *nothing[1:], *good[3:], nothing[2]]
    clean, found = tuned_of(problem, good), tuned_of(problem, mixed)
    assert torch.equal(found.phi, clean.phi) and (found.se, found.method) == (clean.se, clean.method)
    assert found.phi.item() == pytest.approx(10 / (1 + math.exp(-0.5)), rel=0.01)  # the link: 10 sigmoid(u)


def test_the_error_bar_goes_through_the_link_by_its_slope():
    """Of phi = 10 sigmoid(u) the slope at u is phi (1 - phi / 10): a bar in phi is at most 2.5 of the bar in u."""
    from genbo.bilevel.root_estimate import answer

    records = path(-0.2, 0.1, 0.4, 0.7, 0.6, 0.5, 0.45, 0.55)
    found = tuned_of(problem_of(), records)
    columns = [[torch.tensor(r[name], dtype=torch.float64) for r in records] for name in ("u", "grad", "grad_se")]
    of_u = answer(*columns)
    phi = found.phi.item()
    assert phi == pytest.approx(10 * of_u.u.sigmoid().item())
    assert found.se == [pytest.approx(phi * (1 - phi / 10) * of_u.u_se.item())]


def test_where_no_step_had_a_gradient_the_answer_is_the_start():
    problem = problem_of()
    records = [record(3.0, 0.0, "flat"), record(-3.0, math.nan, "non_finite")]
    found = tuned_of(problem, records)
    assert torch.equal(found.phi, problem.first()) and (found.se, found.method) == ([None], "start")


def test_the_last_good_value_is_that_of_the_last_finite_step():
    problem = problem_of()
    records = [record(0.0, 1.0), record(1.0, 0.0, "flat"), record(5.0, math.nan, "non_finite")]
    found = last_good(problem, records)
    assert found.phi.item() == pytest.approx(10 / (1 + math.exp(-1))) and found.se == [None]
    assert torch.equal(last_good(problem, records[2:]).phi, problem.first())


def test_several_numbers_have_each_its_own_error_and_range():
    answer = Tuned(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), [0.1, None, 0.3], "mean")
    said = document(problem_of(shape=Knots(3)), [[0, 0, 0]], [[1, 2, 3]], answer=answer)["phi"]["guidance"]
    assert (said["start"], said["tuned"], said["se"]) == ([2.0] * 3, [1.0, 2.0, 3.0], [0.1, None, 0.3])
    assert said["bounds"] == [0.0, 10.0] and said["start_over_steps"] == [2.0] * STEPS
    assert said["tuned_over_steps"] == pytest.approx([1.0, 1 + 2 / 3, 1 + 4 / 3, 3.0])


# -- how far gradients stand from noise ------------------------------------------------------------------------------


def test_how_many_errors_a_gradient_stands_from_zero():
    """The root mean square over coordinates, of those whose error is known and not 0: here of 3, -4 and 0."""
    assert noise_ratio([3.0, -8.0, 0.0], [1.0, 2.0, 5.0]) == pytest.approx(math.sqrt(25 / 3))
    assert noise_ratio([3.0, 7.0, None, 5.0], [1.0, 0.0, 1.0, None]) == pytest.approx(3)
    assert noise_ratio([1.0, None], [0.0, 1.0]) is None


@pytest.mark.parametrize(("first", "level", "figure"), [(2.5, "good", "2.5"), (1.5, "warning", "1.5")])
def test_the_first_gradients_are_those_of_the_first_third(first, level, figure):
    """The middle one of three; steps without a gradient are not counted, but said."""
    ratios = [9.0, first, 0.1, *[50.0] * 6]
    records = [record(0.1 * k, ratio, se=1.0) for k, ratio in enumerate(ratios)]
    records.insert(1, record(0.0, math.nan, "non_finite"))
    records.insert(3, record(0.0, 0.0, "flat"))
    said = document(problem_of(), [[0, 0, 0]], [[1, 2, 3]], records=records)["trust"]
    (stood,) = (line for line in said if line["text"].startswith("The first gradients"))
    assert stood["level"] == level and f"{figure} standard errors from zero" in stood["text"]
    texts = [line["text"] for line in said if line["level"] == "warning"]
    assert any(text.startswith("1 gradient of 11 were exactly zero") for text in texts)
    assert any(text.startswith("1 step of 11 had numbers that were not finite") for text in texts)


@pytest.mark.parametrize(
    ("phi", "said"), [(0.05, "lower bound 0"), (9.95, "upper bound 10"), (0.15, None), (9.85, None), (5.0, None)]
)
def test_an_answer_within_a_hundredth_of_the_range_from_a_bound_is_at_it(phi, said):
    answer = Tuned(torch.tensor([phi], dtype=torch.float64), [None], "mean")
    trust = document(problem_of(), [[0, 0, 0]], [[1, 2, 3]], answer=answer)["trust"]
    at = [line["text"] for line in trust if line["level"] == "warning" and "bound" in line["text"]]
    assert (len(at) == 1 and said in at[0]) if said else at == []
