"""From the path to the answer: where the gradient is zero, and how well that is known.

A climb ends near the optimum, not at it, and the mean of its last steps lags behind. But near the optimum the gradient
is a smooth field, of which every step has measured a value: `bilevel.field` says what is known of it. The answer is the
point where the expected field is zero, for all parameters jointly, and its interval comes from the same field: each
draw of the gradient g and the Hessian H there has a root of its own,

    u* = u - H^-1 g

and the interval of a parameter holds 95 % of these. A draw whose Hessian is not negative has no maximum and counts as
infinitely far on either side, so a curvature that is badly known makes a wide interval, and an unknown one none
(Fieller 1954). `u_se` is the interval's half width over 1.96: a standard error, widened where few steps tell it.

Where only some directions curve clearly downwards the root is taken along these, the path's end stands for the others,
and a parameter that has a part in one of the others has no interval. Where the last gradients still push to a bound
the answer is that bound; where they push elsewhere the path has not settled. Neither has an interval. A root inside the
path is the answer all the same: a climb that overshot has seen the gradient on both sides of it, and ends beside it.
Pushing is judged in phi, dF/dphi = g / (dphi/du): towards a bound the link alone makes gradients in u fall.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genbo.bilevel.field import Field, Local
from genbo.bilevel.field import field as field_of

TAIL = 1 / 4  # the part of the path whose mean stands for its end
LAST = 1 / 3  # the part whose gradients say whether it has settled
PUSH = 3.0  # standard errors from which the last gradients together push
LEVEL = 0.95
NORMAL = 1.959964  # standard errors of a normal interval at LEVEL
SURE = 1.75  # standard errors by which a curvature must be below 0
SURE_OF_SEVERAL = 2.8  # the same of each direction, where there are several parameters
DRAWS = 2000
NEAR = 0.01  # of the range: nearer than this a push is against the bound
BESIDE = 0.1  # of the range: and as near as this, where the gradient is not zero before the bound
REACH = 3.0  # times as near: steps that tell what the gradient is at the bound
FELL = 0.3  # of the largest gradient of the path: less than this is falling, where there are few such steps
FAR = 0.25  # of the path's spread: how far from its end a root may lie towards which it still moves
FAR_ALONE = 0.5  # the same of a single parameter, whose gradient was then seen on both sides of the root
OUTSIDE = 0.05  # of the path's range: how far out of it a root is believed
COUPLED = 0.3  # of one's own curvature, in spreads of the path: what a held parameter may contribute at most
CLEAR = 2.0  # standard deviations by which a coupling must stand clear of zero
POINTS = 7  # of the path, at which a coupling is looked for
PART = 0.1  # of an undetermined direction of length 1: a parameter with less has no part in it
SHRUNK = 0.5  # of the earlier steps' length
MOST = 1500  # gradients that are fitted: the last ones

Kind = Literal["interior", "lower_bound", "upper_bound", "undetermined", "unsettled"]
Cause = Literal["overshoot", "decayed", "few_steps"]


@dataclass(frozen=True)
class Answer:
    """`u` (P,), its standard error and interval (P, 2), NaN where there are none, and what each number is.

    `free` (P, F) spans what is not determined, in u, a unit column each in units of the path's spread; `covariance`
    (P, P) is that of the determined part. `causes` says why a parameter has not settled.
    """

    u: Tensor
    u_se: Tensor
    method: str  # root | mean
    kinds: tuple[Kind, ...] = ()
    interval: Tensor | None = None
    covariance: Tensor | None = None
    free: Tensor | None = None
    causes: tuple[Cause | None, ...] = ()
    coupled: tuple[bool, ...] = ()  # undetermined, because its best value moves with a parameter that is at a bound


@dataclass(frozen=True)
class Domain:
    """The path in phi: values and dphi/du (n, P) where a coordinate has one of its own, else NaN; bounds (P, 2)."""

    phi: Tensor
    slope: Tensor
    bounds: Tensor


def answer(
    u: Sequence[Tensor],
    grad: Sequence[Tensor],
    grad_se: Sequence[Tensor],
    *,
    constrained: bool = False,
    moving: bool = False,
    domain: Domain | None = None,
    width: float = 0.0,
) -> Answer:
    """From the usable steps of a run, in order: each (P,).

    With constraints the objective itself moves, as their multipliers do, and its gradients at different steps belong to
    different objectives: then the answer is the mean of the last steps, and its error bar their spread. An objective
    over the worst prompts is `moving` too, as the weights of the prompts do, and has no slope where prompts tie. The
    answer is the mean of the last steps then, without an error bar: the last gradients alone say whether it has settled
    or is at a bound.
    """
    us, gs, ses = (torch.stack(list(x)) for x in (u, grad, grad_se))
    end = us[-max(1, round(len(us) * TAIL)) :].mean(0)
    if constrained:
        return _spread(us)
    few = len(us) < 4 or not us.std(0).any()
    path = _Path(us, gs, ses, end, domain, width)
    at_bound = [path.bound(j) for j in range(us.shape[1])]
    found = None if few or moving else _root(path, torch.tensor([kind is None for kind in at_bound]))
    return _settled(path, at_bound, found, kinked=moving)


def _spread(us: Tensor) -> Answer:
    end = us[-max(2, round(len(us) * TAIL)) :]
    mean = end.mean(0)
    se = end.std(0) if len(end) > 1 else torch.full_like(mean, torch.nan)
    interval = torch.stack([mean - NORMAL * se, mean + NORMAL * se], -1)
    kind: Kind = "interior"
    return Answer(mean, se, "mean", (kind,) * us.shape[1], interval, causes=(None,) * us.shape[1])


# -- the path ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Path:
    """Steps (n, P) in u."""

    u: Tensor
    g: Tensor
    se: Tensor
    end: Tensor  # (P,), the mean of the last steps
    domain: Domain | None
    width: float  # half the stretch over which each gradient is an average

    @property
    def last(self) -> int:
        """How many steps its end is judged by."""
        return max(3, round(len(self.u) * LAST))

    def pushes(self, j: int) -> int:
        """The sign of the last gradients where all have it and together stand clear of their noise, else 0."""
        g, se = self.g[-self.last :, j], self.se[-self.last :, j].nan_to_num()
        if len(self.u) < 3 or not (g.sign() == g[0].sign()).all():
            return 0
        noise = se.square().mean().sqrt() / len(g) ** 0.5
        return int(g[0].sign()) if g.mean().abs() > PUSH * noise else 0

    def bound(self, j: int) -> Kind | None:
        """The bound that parameter j is pushed against, if any."""
        push = self.pushes(j)
        if self.domain is None or not push:
            return None
        low, high = self.domain.bounds[j].tolist()
        wall = high if push > 0 else low
        gap = abs(wall - self.domain.phi[-1, j].item()) / (high - low)
        if not (gap < NEAR or (gap < BESIDE and self._still_rises_at(wall, j, push))):
            return None
        return "upper_bound" if push > 0 else "lower_bound"

    def _still_rises_at(self, wall: float, j: int, push: int) -> bool:
        """Whether dF/dphi, on a line through those steps that were near the bound, stands clear of zero there."""
        assert self.domain is not None
        slope, (low, high) = self.domain.slope[:, j], self.domain.bounds[j].tolist()
        gap = (self.domain.phi[:, j] - wall).abs() / (high - low)
        near = (gap < REACH * BESIDE) & (slope != 0) & slope.isfinite()
        rising, se = self.g[near, j] / slope[near] * push, (self.se[near, j] / slope[near]).abs()
        if near.sum() < 4 or not (se > 0).all():
            return bool(near.any() and rising[-self.last :].mean() > FELL * rising.max())
        basis = torch.stack([torch.ones_like(se), gap[near]], -1) / se[:, None]
        covariance = torch.linalg.pinv(basis.T @ basis, hermitian=True)
        there = (covariance @ basis.T @ (rising / se))[0]
        return bool(there > PUSH * covariance[0, 0].sqrt())

    def ended_at(self, j: int) -> Kind | None:
        """The bound that parameter j lies at, where all gradients together push it there: noise hides the last ones."""
        if self.domain is None:
            return None
        low, high = self.domain.bounds[j].tolist()
        share = (self.domain.phi[-1, j].item() - low) / (high - low)
        push = self.g[:, j].sum() / self.se[:, j].nan_to_num().square().sum().sqrt()
        if share > 1 - NEAR and push > PUSH:
            return "upper_bound"
        return "lower_bound" if share < NEAR and push < -PUSH else None

    def cause(self, j: int) -> Cause:
        """Why it has not settled: it came back from the other side, its steps shrank, or they were too few."""
        g, se, push = self.g[:, j], self.se[:, j].nan_to_num(), self.pushes(j)
        before = g[: -self.last]
        if push and (before * push < -2 * se[: -self.last]).any() and self._passed(j, push):
            return "overshoot"
        if not push and len(g) >= 4:
            return "overshoot"
        length = self.u[:, j].diff().abs()
        early = length[: max(1, len(length) // 2)].mean()
        return "decayed" if length[-1:].sum() < SHRUNK * early else "few_steps"

    def _passed(self, j: int, push: int) -> bool:
        """Whether it once stood on the side that it is now pushed to, or came from there."""
        return bool(((self.u[: -self.last, j] - self.end[j]) * push > 0).any())

    def swings(self, j: int) -> bool:
        """Whether the last gradients stand clear of zero on both sides in turn."""
        g, se = self.g[-self.last :, j], self.se[-self.last :, j].nan_to_num()
        clear = g[g.abs() > PUSH * se]
        return len(clear) >= 3 and int((clear.sign().diff() != 0).sum()) >= 2


# -- the root ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Root:
    u: Tensor
    draws: Tensor  # (S, P), infinite where the draw has no maximum
    free: Tensor  # (P, F)
    inside: bool  # whether it lies where the path has been
    coupled: Tensor  # (P,), whether it moves with those that are held at a bound


def _root(path: _Path, tuned: Tensor) -> _Root:
    """Along the directions that curve downwards for sure; parameters at a bound stay there."""
    most = max(4, MOST // path.u.shape[1])
    known = field_of(path.u[-most:], path.g[-most:], path.se[-most:], path.width)
    start = path.end.where(tuned, path.u[-1])
    axes = torch.eye(len(tuned), dtype=path.u.dtype)[:, tuned]
    sure, u = axes, start
    for _ in range(2):  # the directions depend on where they are asked for, and the point on them
        sure = _sure(known.at(u, DRAWS), known.spread, axes)
        u = _zero(known, start, sure)
    draws = _draws(known.at(u, DRAWS), known.spread, u, sure)
    span = (path.u - u) / known.spread @ sure  # (n, D), 0 at the root
    room = OUTSIDE * (span.amax(0) - span.amin(0))
    inside = bool(((span.amin(0) <= room) & (span.amax(0) >= -room)).all())
    return _Root(u, draws, _rest(axes, sure), inside, _coupled(known, path, u, ~tuned))


def _coupled(known: Field, path: _Path, u: Tensor, held: Tensor) -> Tensor:
    """(P,): whether a spread of a held parameter changes a gradient, for sure, by a good part of what one's own does.

    It is asked at several points of the path, because towards a bound the link hides what is left of the coupling.
    """
    if not held.any():
        return held
    unit = known.spread[:, None] * known.spread
    points = path.u[torch.linspace(0, len(path.u) - 1, POINTS).round().long()]
    drawn = torch.stack([known.at(point, DRAWS).hessian * unit for point in points])  # (points, S, P, P)
    clear = drawn.mean(1).abs() - CLEAR * drawn.std(1)
    return clear[:, :, held].amax((0, 2)) > COUPLED * (known.mean(u)[1] * unit).diagonal().abs()


def _sure(local: Local, spread: Tensor, axes: Tensor) -> Tensor:
    """Orthonormal directions (P, D) of u / spread, in the span of `axes`, along which F curves downwards for sure.

    A climb that follows its own noise shows gradients that fall along its way where F is flat: the ratio of slope and
    error has the law of Dickey and Fuller (1979), whose 5 % and 1 % quantiles are -2.9 and -3.4, not that of Student.
    """
    least = SURE if len(spread) == 1 else SURE_OF_SEVERAL
    hessian = axes.T @ (local.hessian * spread[:, None] * spread) @ axes
    _, vectors = torch.linalg.eigh(hessian.mean(0))
    along = torch.einsum("pd,spq,qd->sd", vectors, hessian, vectors)
    order = (along.mean(0) / along.std(0)).argsort() if len(vectors) else along.new_zeros(0)  # the surest first
    kept: list[int] = []
    for d in order.tolist():
        v = vectors[:, [*kept, d]]
        top = torch.linalg.eigvalsh(v.T @ hessian @ v)[:, -1]
        if top.mean() + least * top.std() < 0:
            kept.append(d)
    found: Tensor = axes @ vectors[:, kept]
    return found


def _zero(known: Field, start: Tensor, sure: Tensor) -> Tensor:
    """Where the expected gradient has no part in the sure directions, by Newton's steps of at most half a spread."""
    u = start
    for _ in range(30 if sure.shape[1] else 0):
        g, hessian = known.mean(u)
        g, hessian = sure.T @ (g * known.spread), sure.T @ (hessian * known.spread[:, None] * known.spread) @ sure
        values, vectors = torch.linalg.eigh(hessian)
        step = -vectors @ ((vectors.T @ g) / values.clamp(max=-1e-3 * values.abs().max()))
        step = step * (0.5 / step.norm().clamp(min=0.5))
        u = u + known.spread * (sure @ step)
        if step.norm() < 1e-9:
            break
    return u


def _draws(local: Local, spread: Tensor, u: Tensor, sure: Tensor) -> Tensor:
    """Roots (S, P) of draws of the field at u, along the sure directions."""
    g = (local.grad * spread) @ sure
    hessian = sure.T @ (local.hessian * spread[:, None] * spread) @ sure
    fine = torch.linalg.eigvalsh(hessian)[:, -1] < 0 if sure.shape[1] else torch.ones(len(g), dtype=torch.bool)
    safe = hessian.where(fine[:, None, None], -torch.eye(sure.shape[1], dtype=u.dtype))
    step = -torch.linalg.solve(safe, g[..., None])[..., 0] @ sure.T * spread
    found: Tensor = (u + step).where(fine[:, None], torch.inf)
    return found


def _rest(axes: Tensor, sure: Tensor) -> Tensor:
    """An orthonormal basis (P, F) of what the axes span beside the sure directions."""
    beside = axes - sure @ (sure.T @ axes)
    u, s, _ = torch.linalg.svd(beside, full_matrices=False)
    found: Tensor = u[:, s > 0.5]
    return found


# -- the answer --------------------------------------------------------------------------------------------------------


def _settled(path: _Path, at_bound: Sequence[Kind | None], root: _Root | None, *, kinked: bool = False) -> Answer:
    """Each parameter's kind, and the point and the intervals that go with them.

    At a kink gradients are clear of zero on both sides in turn, however near the optimum is.
    """
    count = path.u.shape[1]
    spread = path.u.std(0).clamp(min=1e-12) if len(path.u) > 1 else torch.ones(count)
    away = torch.zeros(count) if root is None else (root.u - path.end).abs() / spread
    far = FAR if count > 1 else FAR_ALONE
    kinds: list[Kind] = []
    for j in range(count):
        believed = root is not None and root.inside and away[j] <= far
        part = root is None or root.free[j].norm() > PART
        if at_bound[j] is not None:
            kinds.append(at_bound[j])  # type: ignore[arg-type]
        elif (path.pushes(j) and (part or not believed)) or (part and not kinked and path.swings(j)):
            kinds.append("unsettled")
        elif part or not root.inside or root.coupled[j]:  # type: ignore[union-attr]
            kinds.append(path.ended_at(j) or "undetermined")
        else:
            kinds.append("interior")
    if "unsettled" in kinds:  # one root for all: none is known where the path is still under way
        kinds = ["undetermined" if kind == "interior" else kind for kind in kinds]
    causes = tuple(path.cause(j) if kind == "unsettled" else None for j, kind in enumerate(kinds))
    pushed = torch.tensor([kind.endswith("bound") for kind in kinds])
    known = root is not None and root.inside
    point = root.u if root is not None and known else path.end
    point = path.u[-1].where(pushed, point)
    interval, covariance = _intervals(root, kinds)
    return Answer(
        point,
        (interval[:, 1] - interval[:, 0]) / (2 * NORMAL),
        "root" if known else "mean",
        tuple(kinds),
        interval,
        covariance,
        None if root is None else root.free * spread[:, None],
        causes,
        () if root is None else tuple(k == "undetermined" and bool(root.coupled[j]) for j, k in enumerate(kinds)),
    )


def _intervals(root: _Root | None, kinds: Sequence[Kind]) -> tuple[Tensor, Tensor | None]:
    """(P, 2), NaN but for interior ones; and the covariance of those draws that lie within five spreads of the root."""
    interval = torch.full((len(kinds), 2), torch.nan, dtype=torch.float64)
    if root is None:
        return interval, None
    fine = root.draws.isfinite().all(1)
    lost = 1 - fine.double().mean().item()
    draws, tail = root.draws[fine], max((1 - LEVEL - lost) / (1 - lost), 0.01) / 2
    levels = torch.tensor([tail, 1 - tail], dtype=draws.dtype)
    for j, kind in enumerate(kinds):
        if kind == "interior":
            interval[j] = draws[:, j].quantile(levels)
    near = (draws - root.u).abs() <= 5 * (draws.quantile(0.84, 0) - draws.quantile(0.16, 0)).clamp(min=1e-300) / 2
    return interval, draws[near.all(1)].T.cov().reshape(len(kinds), -1)
