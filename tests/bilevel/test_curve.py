"""The optimum of a curve whose laws are decreed: a line for the gradient, and errors and verdicts as one likes."""

from __future__ import annotations

import math

import pytest
import torch

from genbo.bilevel.measured import Measured
from genbo.bilevel.regularization.curve import Point, optimum, settled, trace
from genbo.bilevel.regularization.tilted import Fit, Law

GOOD = Fit(ess=500.0, max_weight=0.004, khat=0.1, samples=1000.0)
SOME = Fit(ess=100.0, max_weight=0.03, khat=0.6, samples=1000.0)
REFUSED = Fit(ess=1.2, max_weight=0.9, khat=1.5, samples=1000.0)
BOUNDS = (0.1, 10.0)
Z = 1.959964


def measured(mean: float, se: float = 0.0) -> Measured:
    return Measured(torch.tensor([mean], dtype=torch.float64), torch.tensor([[se]], dtype=torch.float64))


def decreed(root: float, fall: float, fit=lambda lam: GOOD):
    """F = -fall log^2(lambda / root) / 2, so g = -fall log(lambda / root); every g has the error 0.02."""

    def solve(lam: float, gamma: float | None = None) -> Law:
        x = math.log(lam / root)
        zero = measured(0.0)
        return Law(lam, gamma, measured(-fall * x**2 / 2), zero, zero, zero, 1.0, fit(lam))

    def slope(solve, lam: float) -> Measured:
        return measured(-fall * math.log(lam / root), 0.02)

    return solve, slope


def found_of(*decree, points=41):
    solve, slope = decreed(*decree)
    return optimum(solve, slope, trace(solve, slope, BOUNDS, points))


@pytest.mark.parametrize("fall", [0.5, 2.0])
def test_the_interval_is_the_error_of_the_gradient_over_its_fall(fall):
    found = found_of(1.3, fall)
    assert (found.kind, found.verdict) == ("interior", "reliable") and found.lam == pytest.approx(1.3, rel=1e-3)
    assert found.log_se == pytest.approx(0.02 / fall, rel=1e-6)
    assert found.interval == pytest.approx([found.lam * math.exp(s * Z * 0.02 / fall) for s in (-1, 1)], rel=1e-5)


@pytest.mark.parametrize("where", [lambda lam: True, lambda lam: lam < 1.3, lambda lam: lam > 1.3])
def test_where_samples_are_doubtful_on_either_side_of_it_the_interval_is_wider(where):
    """Twice as wide, at least: error bars there were measured to be too short."""
    found, sure = found_of(1.3, 2.0, lambda lam: SOME if where(lam) else GOOD), found_of(1.3, 2.0)
    assert found.verdict == "doubtful" and found.lam == pytest.approx(sure.lam)
    assert found.log_se >= 1.99 * sure.log_se
    low, high = found.interval
    assert math.log(high / low) == pytest.approx(2 * Z * found.log_se, rel=1e-5)


def test_below_what_samples_can_speak_of_nothing_is_read():
    """The root lies where they refuse: F still rises at the last lambda that they know."""
    found = found_of(0.5, 2.0, lambda lam: REFUSED if lam < 0.7 else GOOD)
    assert found.kind == "out_of_reach" and 0.7 <= found.lam < 0.8 and found.interval is None


# -- a walk ----------------------------------------------------------------------------------------------------------


def walked(*rows: tuple[float, float, float, float], fits=None) -> list[Point]:
    """Points of log lambda, gradient, its error, and r1."""
    fits = fits or [GOOD] * len(rows)
    zero = measured(0.0)
    return [
        Point(math.exp(x), Law(math.exp(x), None, measured(r1), zero, zero, zero, 1.0, fit), measured(g, se))
        for (x, g, se, r1), fit in zip(rows, fits, strict=True)
    ]


@pytest.mark.parametrize(("left", "right", "x", "r1"), [(1.0, -3.0, -0.5, 10.0), (3.0, -1.0, 0.5, 20.0)])
def test_a_root_between_two_lambdas_has_the_reward_of_the_nearest(left, right, x, r1):
    """A line through (-1, left) and (1, right); errors 0.1 and 0.2 count by how near their ends are."""
    found = settled(
        walked((-2, 9.0, 0.1, 0.0), (-1, left, 0.1, 10.0), (1, right, 0.2, 20.0), (2, -9.0, 0.1, 5.0)), BOUNDS
    )
    assert found.kind == "interior" and math.log(found.lam) == pytest.approx(x) and found.r1 == r1
    share = (x + 1) / 2
    assert found.log_se == pytest.approx(math.hypot((1 - share) * 0.1, share * 0.2) * 2 / 4)
    assert found.interval == pytest.approx([found.lam * math.exp(s * Z * found.log_se) for s in (-1, 1)], rel=1e-6)


def test_a_root_is_as_doubtful_as_the_worse_of_its_ends():
    for fits in ([GOOD, SOME], [SOME, GOOD]):
        assert settled(walked((-1, 1.0, 0.1, 0.0), (1, -1.0, 0.1, 0.0), fits=fits), BOUNDS).verdict == "doubtful"


def test_gradients_that_noise_may_have_made_and_laws_that_refuse_are_no_ends():
    """The point in the middle is left out, whichever it is, and the line goes through its neighbours."""
    ends = (-1, 1.0, 0.1, 0.0), (1, -1.0, 0.1, 0.0)
    noisy = walked(ends[0], (0.3, -0.15, 0.1, 9.0), ends[1])
    silent = walked(ends[0], (0.3, -5.0, 0.1, 9.0), ends[1], fits=[GOOD, REFUSED, GOOD])
    for curve in (noisy, silent):
        assert math.log(settled(curve, BOUNDS).lam) == pytest.approx(0.0, abs=1e-12)


def test_of_several_maxima_the_higher_is_taken_and_the_other_is_named():
    for first, second in ((7.0, 1.0), (1.0, 7.0)):
        rows = [(-2, 1.0, 0.1, first), (-1.5, -3.0, 0.1, 0.0), (0.5, 1.0, 0.1, second), (1.0, -3.0, 0.1, 0.0)]
        found = settled(walked(*rows), BOUNDS)
        roots = [math.log(found.lam), *map(math.log, found.others)]
        assert found.r1 == 7.0 and roots == pytest.approx([-1.875, 0.625] if first > second else [0.625, -1.875])


@pytest.mark.parametrize(
    ("rows", "kind", "x"),
    [
        ([(math.log(0.1), -1.0, 0.1, 5.0), (0, -2.0, 0.1, 1.0)], "lower_bound", math.log(0.1)),
        ([(-1, -1.0, 0.1, 5.0), (0, -2.0, 0.1, 1.0)], "out_of_reach", -1),
        ([(0, 1.0, 0.1, 1.0), (math.log(10), 0.5, 0.1, 5.0)], "upper_bound", math.log(10)),
        ([(0, 1.0, 0.1, 1.0), (1, 0.5, 0.1, 5.0)], "out_of_reach", 1),
        ([(0, 0.1, 0.1, 1.0), (1, -0.1, 0.1, 5.0)], "unclear", 1),
    ],
)
def test_where_a_walk_found_no_root_it_says_which_end_is_best(rows, kind, x):
    found = settled(walked(*rows), BOUNDS)
    assert found.kind == kind and math.log(found.lam) == pytest.approx(x) and found.interval is None
