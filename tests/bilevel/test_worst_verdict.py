"""The verdict on the worst prompts: numbers made by hand, and how often its interval holds the truth."""

from __future__ import annotations

import pytest
import torch

from genbo.bilevel.objective import Objective
from genbo.bilevel.verdict import compare
from genbo.bilevel.worst_verdict import tails

WORST, HALF = Objective(0.0), Objective(0.5)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_each_half_judges_what_the_other_has_chosen():
    """Prompt a has 1 and 4, b has 3 and 2: the first half chooses a, which the second has at 4; and b at 3."""
    found = tails(tensor(1, 3, 4, 2), tensor(9, 9, 9, 9), torch.tensor([0, 1, 0, 1]), WORST, fresh_prompts=False)
    assert found.start == pytest.approx((4 + 3) / 2)  # where the plain estimate is 2.5
    assert found.tuned == 9


def test_clear_worst_prompts_by_hand():
    """a is clearly the worst on both sides; it gains 2, 2, 3, 1 and its samples spread by the root of 2/3."""
    start = tensor(0, 0, 0, 0, 50, 50, 50, 50)
    tuned = tensor(2, 2, 3, 1, 60, 70, 80, 90)
    found = compare(start, tuned, ("a",) * 4 + ("b",) * 4, fresh_prompts=False, objective=WORST)
    assert (found.start, found.tuned, found.difference) == pytest.approx((0, 2, 2))
    half = 3.182446 * (2 / 3 / 4) ** 0.5
    assert found.interval == pytest.approx((2 - half, 2 + half), rel=1e-6)
    assert (found.verdict, found.groups, found.prompts) == ("better", 8, 2)


def test_the_worst_prompt_may_be_another_one_tuned():
    start, tuned = tensor(0, 0.1, 5, 5.1), tensor(7, 7.1, 3, 3.1)
    found = compare(start, tuned, ("a", "a", "b", "b"), fresh_prompts=False, objective=WORST)
    assert (found.start, found.tuned) == pytest.approx((0.05, 3.05))
    assert found.shape.worst == ("b", pytest.approx(-2))


def test_the_mean_is_compared_as_before():
    start, tuned = torch.randn(12, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    prompts = tuple("abcd" * 3)
    assert compare(start, tuned, prompts) == compare(start, tuned, prompts, objective=Objective(1.0))


def test_nothing_moved_is_no_difference():
    x = torch.randn(40, dtype=torch.float64)
    found = compare(x, x, tuple("abcdefghij" * 4), fresh_prompts=True, objective=HALF)
    assert (found.difference, found.interval, found.verdict) == (0, (0, 0), "no measurable difference")


def test_a_single_sample_of_a_prompt_is_refused():
    with pytest.raises(ValueError, match="two or more of each"):
        compare(tensor(1, 2, 3), tensor(2, 3, 4), ("a", "a", "b"), objective=WORST)


def test_fresh_prompts_are_counted_where_many_are_among_the_worst():
    x, prompts = torch.randn(160, dtype=torch.float64), [str(n % 40) for n in range(160)]
    y = x + torch.randn(160, dtype=torch.float64)
    many, few = (compare(x, y, prompts, fresh_prompts=True, objective=Objective(share)) for share in (0.5, 0.1))
    assert (many.groups, few.groups) == (40, 160)


def cover(start, tuned, share: float, samples: int, runs: int, fresh=None) -> tuple[float, float]:
    """Of the prompts' means (C,) on both sides: how often the interval lies above the truth, and below it."""
    draw = torch.Generator().manual_seed(0)
    of, truth, above, below = None, None, 0, 0
    for _ in range(runs):
        s, t = (start, tuned) if fresh is None else fresh(draw)
        of = torch.arange(len(s)).repeat(samples)
        one, two = torch.randn(2, len(of), generator=draw, dtype=torch.float64)
        objective = Objective(share)
        truth = (objective.value(tuned) - objective.value(start)).item()
        found = tails(s[of] + one, t[of] + (one + two) / 2**0.5, of, objective, fresh_prompts=fresh is not None)
        above, below = above + (found.interval[0] > truth), below + (found.interval[1] < truth)
    return above / runs, below / runs


SPREAD = torch.linspace(-2, 2, 10, dtype=torch.float64)
NEAR = torch.linspace(0, 1, 10, dtype=torch.float64)
WORLDS = {
    "all gain the same": (SPREAD, SPREAD + 0.3),
    "all tie when tuned": (SPREAD, 0 * SPREAD),
    "the order turns around": (NEAR, NEAR.flip(0)),
    "two tie when tuned": (SPREAD, SPREAD.clamp(min=-1.5)),
}


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("samples", [2, 4, 8, 32])
def test_the_interval_holds_for_new_seeds(world, share, samples):
    """Ten prompts whose means differ by less than their noise: it is called better by mistake in 5 % at most."""
    above, below = cover(*WORLDS[world], share, samples, 600)
    print(f"{world}, share {share}, {samples} samples a prompt: above {above:.3f}, below {below:.3f}")
    assert above <= 0.06 and above + below <= 0.14


@pytest.mark.slow
@pytest.mark.parametrize(("share", "prompts"), [(0.2, 128), (0.2, 40), (0.5, 16)])
@pytest.mark.parametrize("samples", [2, 8])
def test_the_interval_holds_for_prompts_like_these(share, prompts, samples):
    """Prompts drawn from a law on both sides, whose worst share is known from 200,000 of them."""
    many = torch.randn(3, 200_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start, tuned = 2 * many[0], 1.4 * many[0] + 0.4 * many[1]

    def fresh(draw):
        at = torch.randint(200_000, (prompts,), generator=draw)
        return start[at], tuned[at]

    above, below = cover(start, tuned, share, samples, 300, fresh)
    print(f"share {share} of {prompts} prompts, {samples} samples: above {above:.3f}, below {below:.3f}")
    assert above <= 0.06 and above + below <= 0.1
