"""The answer of a path: its point, its intervals and its kinds, on fields whose optimum is known by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from genbo.bilevel import field
from genbo.bilevel.optimizers.adam import Adam
from genbo.bilevel.root_estimate import Answer, Domain, answer

Noise = Callable[[torch.Generator, int], Tensor]
ROOT = torch.tensor([0.4, -0.7], dtype=torch.float64)
ROUND = -torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=torch.float64)


def normal(generator: torch.Generator, size: int) -> Tensor:
    return torch.randn(size, generator=generator, dtype=torch.float64)


def skewed(generator: torch.Generator, size: int) -> Tensor:
    """A mean of 8 squares of normal numbers: mean 0, variance 1, skewness 1."""
    return (normal(generator, 8 * size).reshape(8, size).square() - 1).mean(0) * 2


def climb(
    slope: Callable[[Tensor], Tensor],
    start: list[float],
    noise: float | Tensor = 0.1,
    steps: int = 20,
    seed: int = 0,
    draw: Noise = normal,
    optimizer: Adam | None = None,
    planned: int | None = None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Steps of Adam up a field, whose gradients are seen with noise of this standard error a coordinate."""
    generator, state = torch.Generator().manual_seed(seed), {}
    u, optimizer = torch.tensor(start, dtype=torch.float64), optimizer or Adam()
    se = torch.as_tensor(noise, dtype=torch.float64).expand(len(u))
    path = []
    for k in range(steps):
        g = slope(u) + se * draw(generator, len(u))
        path.append((u, g, se))
        u, state = optimizer.step(u, g, state, k / (planned or steps))
    us, gs, ses = zip(*path, strict=True)
    return list(us), list(gs), list(ses)


def quadratic(u: Tensor) -> Tensor:
    return ROUND @ (u - ROOT)


def curved(u: Tensor) -> Tensor:
    """F' = -(tanh(u) + u^2 / 4 - 0.3 u), which has its root at 0 and another shape on each side."""
    return -(u.tanh() + u.square() / 4 - 0.3 * u)


def inside(found: Answer, truth: Tensor) -> Tensor:
    assert found.interval is not None
    return (found.interval[:, 0] <= truth) & (truth <= found.interval[:, 1])


# -- the field ---------------------------------------------------------------------------------------------------------


def test_covariances_are_derivatives_of_one_kernel():
    """Of F itself: wide'x'y, its square, and a Gaussian; gradients and Hessians by automatic differentiation."""
    p, length, rho, wide, bend = 3, 0.7, 1.3, 2.0, 1.5
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(p, generator=generator, dtype=torch.float64) for _ in range(2))

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        bent = rho**2 * length**2 * torch.exp(-(x - y).square().sum() / (2 * length**2))
        return bent + wide**2 * (x @ y) + bend**2 / 4 * (x @ y) ** 2

    jacobian = torch.autograd.functional.jacobian
    i, j = torch.triu_indices(p, p)

    def by_y(x: Tensor) -> Tensor:  # (q,)
        return jacobian(lambda y: kernel(x, y), b, create_graph=True)  # type: ignore[no-any-return]

    first = jacobian(by_y, a)  # (q, i)
    second = jacobian(lambda x: jacobian(by_y, x, create_graph=True), a)  # (q, i, j)
    cells = torch.tensor([[length], [rho]], dtype=torch.float64)
    straight, bent = field._at(a, b[None], (wide, bend), cells[0], cells[1], (0.0,))
    found = straight + bent[0]
    torch.testing.assert_close(found[:p], first.T)
    torch.testing.assert_close(found[p:], second.permute(1, 2, 0)[i, j])
    own, h = field._own(a, (wide, bend), cells[0], cells[1])[0], 1e-5

    def there(at: Tensor) -> Tensor:
        straight, bent = field._at(a, at[None], (wide, bend), cells[0], cells[1], (0.0,))
        return straight + bent[0]

    eye = torch.eye(p, dtype=torch.float64)
    moved = torch.stack([(there(a + h * e) - there(a - h * e)) / (2 * h) for e in eye], -1)
    torch.testing.assert_close(own[:, :p], there(a))
    torch.testing.assert_close(own[:, p:], moved[:, i, j], rtol=1e-6, atol=1e-6)


def test_covariances_of_averages_are_averages_of_covariances():
    """Each coordinate of a gradient over its own two points, on either side; gradients and Hessians at a point."""
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (3, 4))
    length, rho, nodes = torch.tensor([0.7, 2.0]), torch.tensor([1.3, 0.5]), (-0.2, 0.2)
    eye = torch.eye(2, dtype=torch.float64)

    def at(x: Tensor, y: Tensor) -> Tensor:  # (C, P, P), and with Hessians (C, Q, P)
        return field._at(x, y[None], (0.0, 0.0), length, rho, (0.0,))[1]

    found = field._bent(a, b, length, rho, nodes, nodes).reshape(2, 3, 2, 4, 2)
    both = field._at(a[0], b[:1], (0.0, 0.0), length, rho, nodes)[1]
    for q in range(2):
        for p in range(2):
            pairs = [at(a[0] + s * eye[p], b[0] + t * eye[q])[:, p, q] for s in nodes for t in nodes]
            torch.testing.assert_close(found[:, 0, p, 0, q], sum(pairs) / 4)
        alone = [at(a[0], b[0] + t * eye[q])[:, :, q] for t in nodes]
        torch.testing.assert_close(both[:, :, q], sum(alone) / 2)
    torch.testing.assert_close(
        found, field._bent(b, a, length, rho, nodes, nodes).reshape(2, 4, 2, 3, 2).permute(0, 3, 4, 1, 2)
    )


def test_without_noise_the_field_is_the_gradients_and_the_hessian_that_of_the_quadratic():
    us, gs, ses = climb(quadratic, [2.0, 1.5], noise=1e-5)
    found = field.field(torch.stack(us), torch.stack(gs), torch.stack(ses))
    grad, hessian = found.mean(us[7])
    torch.testing.assert_close(grad, gs[7], rtol=0, atol=1e-3)
    torch.testing.assert_close(found.mean(us[-1])[1], ROUND, rtol=0, atol=0.02)
    assert torch.equal(hessian, hessian.T)


# -- point and interval ------------------------------------------------------------------------------------------------


def test_a_point_and_its_interval_come_from_one_estimate():
    """The point lies in its interval and at the root, far from the mean of a path that ended elsewhere."""
    us, gs, ses = climb(quadratic, [2.0, 1.5], noise=0.02, steps=30, optimizer=Adam(lr=0.15))
    found = answer(us, gs, ses)
    assert found.kinds == ("interior", "interior") and found.method == "root"
    assert inside(found, found.u).all()
    assert ((found.u - ROOT).abs() < 4 * found.u_se).all() and (found.u_se < 0.1).all()


@pytest.mark.parametrize("draw", [normal, skewed])
def test_intervals_of_two_parameters_hold_the_root(draw):
    held = [inside(answer(*climb(quadratic, [2.0, 1.5], 0.05, seed=s, draw=draw)), ROOT) for s in range(30)]
    assert 52 <= int(torch.stack(held).sum()) <= 60


def coverage(
    slope: Callable[[Tensor], Tensor], start: list[float], root: Tensor, noise: float, draw: Noise, runs: int
) -> tuple[float, float]:
    """The share of intervals that hold the root, and of runs that have one."""
    found = [answer(*climb(slope, start, noise, seed=s, draw=draw)) for s in range(runs)]
    known = [inside(f, root)[torch.tensor([k == "interior" for k in f.kinds])] for f in found]
    held = torch.cat(known).double()
    return held.mean().item(), len(held) / (runs * len(root))


@pytest.mark.slow
@pytest.mark.parametrize("draw", [normal, skewed])
@pytest.mark.parametrize("noise", [0.1, 0.2])
@pytest.mark.parametrize("start", [[2.0], [-0.8], [0.0]])  # below -1.4 the field leads away
def test_coverage_of_a_curved_field(start, noise, draw):
    share, known = coverage(curved, start, torch.zeros(1, dtype=torch.float64), noise, draw, 200)
    assert 0.9 <= share <= 1.0
    assert known > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("draw", [normal, skewed])
@pytest.mark.parametrize("noise", [0.02, 0.05])
def test_coverage_of_two_parameters(noise, draw):
    share, known = coverage(quadratic, [2.0, 1.5], ROOT, noise, draw, 200)
    assert 0.9 <= share <= 1.0
    assert known > 0.8


def test_noise_that_the_standard_errors_hide_is_seen_in_the_residuals():
    us, gs, ses = climb(quadratic, [2.0, 1.5], noise=0.1, steps=40)
    honest, blind = answer(us, gs, ses), answer(us, gs, [se / 10 for se in ses])
    assert (blind.u_se > 0.5 * honest.u_se).all()
    unknown = answer(us, gs, [se * math.nan for se in ses])
    assert (unknown.u_se > 0.3 * honest.u_se).all() and unknown.kinds == ("interior", "interior")


# -- what must not matter ----------------------------------------------------------------------------------------------


def test_the_order_of_the_parameters_and_the_unit_of_the_reward_do_not_matter():
    us, gs, ses = climb(quadratic, [2.0, 1.5], noise=0.05)
    found = answer(us, gs, ses)
    swapped = answer(*([x.flip(0) for x in part] for part in (us, gs, ses)))
    torch.testing.assert_close(swapped.u.flip(0), found.u, rtol=0, atol=1e-6)
    torch.testing.assert_close(swapped.u_se.flip(0), found.u_se, rtol=0.15, atol=0)  # other draws
    scaled = answer(us, [1e4 * g for g in gs], [1e4 * se for se in ses])
    torch.testing.assert_close(scaled.u, found.u, rtol=0, atol=1e-6)
    torch.testing.assert_close(scaled.u_se, found.u_se, rtol=1e-4, atol=0)
    moved = answer([u + 3 for u in us], gs, ses)
    torch.testing.assert_close(moved.u - 3, found.u, rtol=0, atol=1e-6)


def test_a_parameter_counted_in_other_units_has_the_same_answer_in_its_own():
    us, gs, ses = climb(quadratic, [2.0, 1.5], noise=0.05)
    unit = torch.tensor([1.0, 2.0], dtype=torch.float64)
    found, other = answer(us, gs, ses), answer([u * unit for u in us], [g / unit for g in gs], [s / unit for s in ses])
    assert ((other.u / unit - found.u).abs() < 0.5 * found.u_se).all()
    torch.testing.assert_close(other.u_se / unit, found.u_se, rtol=0.5, atol=0)


# -- what is not determined --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [0.4, 0.8, 2.2])
def test_of_a_valley_only_the_combination_is_determined(angle):
    across = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    valley = torch.tensor([-across[1], across[0]], dtype=torch.float64)

    def slope(u: Tensor) -> Tensor:
        return -across * (across @ (u - ROOT))

    start, named = ROOT + 1.5 * across + 0.3 * valley, 0
    for seed in range(6):
        found = answer(*climb(slope, start.tolist(), noise=0.05, seed=seed, steps=25))
        if set(found.kinds) != {"undetermined"}:  # a path that follows noise along the valley: 1 in 15
            continue
        named += 1
        assert found.u_se.isnan().all()
        assert found.free is not None and found.free.shape == (2, 1)
        assert found.covariance is not None
        cosine = (found.free[:, 0] @ across).abs() / found.free.norm()
        assert cosine < 0.25
        along = torch.stack([-found.free[1, 0], found.free[0, 0]])
        se = (along @ found.covariance @ along).sqrt()
        assert (along @ (found.u - ROOT)).abs() < 5 * se + cosine * 2
    assert named >= 5


def test_a_parameter_that_nothing_depends_on_leaves_the_other_its_bar():
    def slope(u: Tensor) -> Tensor:
        return torch.stack([-(u[0] - 0.4), 0.0 * u[1]])

    found = answer(*climb(slope, [2.0, 0.0], noise=0.05, steps=25))
    assert found.kinds == ("interior", "undetermined")
    assert abs(found.u[0].item() - 0.4) < 4 * found.u_se[0].item() and found.u_se[1].isnan()


def test_pure_noise_has_no_error_bar():
    found = [answer(*climb(lambda u: 0 * u, [0.5], noise=0.1, seed=s)) for s in range(20)]
    assert sum(f.kinds != ("interior",) for f in found) >= 13
    few = answer([ROOT, ROOT + 1], [ROOT, -ROOT], [ROOT * 0 + 0.1] * 2)
    assert few.u_se.isnan().all() and few.method == "mean"


# -- bounds ------------------------------------------------------------------------------------------------------------


def domain_of(us: list[Tensor], low: float = 0.0, high: float = 10.0) -> Domain:
    share = torch.stack(us).sigmoid()
    bounds = torch.tensor([[low, high]] * len(us[0]), dtype=torch.float64)
    return Domain(low + (high - low) * share, (high - low) * share * (1 - share), bounds)


@pytest.mark.parametrize(("way", "kind"), [(1.0, "upper_bound"), (-1.0, "lower_bound")])
@pytest.mark.parametrize("noise", [1e-3, 0.02])
def test_an_objective_that_only_rises_ends_at_its_bound(way, kind, noise):
    """F = +- phi: in u the link alone makes its gradient fall."""

    def slope(u: Tensor) -> Tensor:
        return way * 10 * u.sigmoid() * (1 - u.sigmoid())

    us, gs, ses = climb(slope, [-1.0 * way], noise, steps=30)
    found = answer(us, gs, ses, domain=domain_of(us))
    assert found.kinds == (kind,) and found.u_se.isnan().all()
    assert found.u.item() == us[-1].item()


@pytest.mark.parametrize("steps", [20, 40, 80])
def test_a_rise_that_slackens_before_the_bound_ends_there_too(steps):
    """F = log(1 + phi): it falls to a tenth on the way, and is not zero at the bound, nor beyond."""

    def slope(u: Tensor) -> Tensor:
        return 10 * u.sigmoid() * (1 - u.sigmoid()) / (1 + 10 * u.sigmoid())

    us, gs, ses = climb(slope, [-2.0], 1e-3, steps=steps)
    assert 0.9 < us[-1].sigmoid() < 1
    assert answer(us, gs, ses, domain=domain_of(us)).kinds == ("upper_bound",)


def test_an_optimum_beside_a_bound_is_an_optimum():
    """F = -(phi - 9.9)^2 / 2 within [0, 10]."""

    def slope(u: Tensor) -> Tensor:
        return -(10 * u.sigmoid() - 9.9) * 10 * u.sigmoid() * (1 - u.sigmoid())

    us, gs, ses = climb(slope, [0.0], 1e-3, steps=60)
    found = answer(us, gs, ses, domain=domain_of(us))
    assert found.kinds == ("interior",)
    assert 10 * found.u.sigmoid().item() == pytest.approx(9.9, abs=0.03)


def test_a_parameter_at_its_bound_leaves_the_other_its_bar():
    def slope(u: Tensor) -> Tensor:
        return torch.stack([10 * u[0].sigmoid() * (1 - u[0].sigmoid()), -(u[1] - 0.4)])

    us, gs, ses = climb(slope, [0.0, 1.5], 0.01, steps=40)
    found = answer(us, gs, ses, domain=domain_of(us))
    assert found.kinds == ("upper_bound", "interior")
    assert abs(found.u[1].item() - 0.4) < 4 * found.u_se[1].item() + 1e-3


@pytest.mark.parametrize("steps", [40, 100])
def test_a_parameter_that_moves_with_one_at_its_bound_has_no_bar(steps):
    """F = phi_0 - (u_1 - 0.4 - 0.5 u_0)^2 / 2: wherever the climb of the first ends, the second's optimum moves on."""

    def slope(u: Tensor) -> Tensor:
        off = u[1] - 0.4 - 0.5 * u[0]
        return torch.stack([10 * u[0].sigmoid() * (1 - u[0].sigmoid()) + 0.5 * off, -off])

    us, gs, ses = climb(slope, [0.0, 1.5], 0.01, steps=steps)
    found = answer(us, gs, ses, domain=domain_of(us))
    assert found.kinds[0] == "upper_bound" and found.kinds[1] in ("undetermined", "unsettled")
    assert found.u_se.isnan().all()
    assert found.coupled == (False, steps == 40)


def test_gradients_that_are_averages_are_fitted_as_averages():
    """F' = 1 - u - 2 u^2, whose root is 1/2. Over u +- h its mean is lower by 2 h^2 / 3, and zero elsewhere."""
    h = 0.4

    def averaged(u: Tensor) -> Tensor:
        return 1 - u - 2 * u**2 - 2 * h**2 / 3

    us, gs, ses = climb(averaged, [0.0], 1e-3, steps=40)
    off = (3**2 / 4**2 - h**2 / 3) ** 0.5 - 1 / 4  # the root of the average
    plain, found = answer(us, gs, ses), answer(us, gs, ses, width=h)
    assert plain.u.item() == pytest.approx(off, abs=0.005) and off < 0.47
    assert found.u.item() == pytest.approx(0.5, abs=0.008)
    assert found.kinds == ("interior",) and found.u_se > plain.u_se


def test_the_mean_over_two_nodes_is_that_of_a_difference():
    """(F(u + h) - F(u - h)) / 2h of a quartic, in two coordinates that hang together: equal to the rule's mean."""

    def f(u: Tensor) -> Tensor:
        return -(u[0] ** 4) / 4 - u[0] ** 2 * u[1] / 2 - u[1] ** 2 + u[0]

    h, points = 0.3, torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 2
    steps = h * torch.eye(2, dtype=torch.float64)
    gs = torch.stack([torch.stack([(f(u + s) - f(u - s)) / (2 * h) for s in steps]) for u in points])
    here = torch.tensor([0.2, -0.1], dtype=torch.float64, requires_grad=True)
    exact = torch.autograd.grad(f(here), here)[0]
    known, naive = (field.field(points, gs, torch.full_like(gs, 1e-4), width) for width in (h, 0.0))
    far, naively = ((x.mean(here.detach())[0] - exact).abs().max() for x in (known, naive))
    assert far < 0.004 and naively > 4 * far


# -- a path that has not settled ---------------------------------------------------------------------------------------


def hill(u: Tensor) -> Tensor:
    return -(u - 0.4)


def test_too_few_steps():
    found = answer(*climb(hill, [-4.0], 0.05, steps=8, planned=1000, optimizer=Adam(lr=0.1)))
    assert found.kinds == ("unsettled",) and found.causes == ("few_steps",) and found.u_se.isnan().all()


def test_steps_that_decayed_before_it_arrived():
    found = answer(*climb(hill, [-4.0], 0.05, steps=20, optimizer=Adam(lr=0.1, final=0.0)))
    assert found.kinds == ("unsettled",) and found.causes == ("decayed",)


def test_an_overshoot_that_the_last_steps_were_too_short_to_mend():
    """Far beyond the optimum when the steps become short: all last gradients point back."""
    us = [-2.0, -1.4, -0.8, -0.2, 0.4, 1.0, 1.6, 1.8, 1.85, 1.83, 1.8, 1.77]
    path = [torch.tensor([u], dtype=torch.float64) for u in us]
    generator = torch.Generator().manual_seed(0)
    gs = [hill(u) + 0.02 * normal(generator, 1) for u in path]
    found = answer(path, gs, [torch.full((1,), 0.02, dtype=torch.float64)] * len(us))
    assert found.kinds == ("unsettled",) and found.causes == ("overshoot",)


def test_constraints_have_the_spread_of_their_last_steps():
    us, gs, ses = climb(hill, [-1.0], 0.05)
    found = answer(us, gs, ses, constrained=True)
    end = torch.stack(us[-5:])
    torch.testing.assert_close(found.u, end.mean(0))
    torch.testing.assert_close(found.u_se, end.std(0))
