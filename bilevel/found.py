"""The answer in phi: point, error bars and intervals carried through the links, and what of it is not determined.

    phi = L(u),    d phi = L'(u) du

An interval of a parameter with a link of its own goes through it end by end, so that it stays within the bounds; one
that hangs together with others, as times do, has the error that L' gives it, and 1.96 of it to either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genbo.bilevel.problem import Problem
from genbo.bilevel.root_estimate import NORMAL, Answer, Cause, Domain, Kind, answer

SEVERITY: tuple[Kind, ...] = ("interior", "undetermined", "lower_bound", "upper_bound", "unsettled")
POINTS = 41  # of a line that is drawn
ELLIPSE = 5.991465  # 95 % quantile of chi^2 with two degrees
REACH = 2.0  # spreads of the path: how far a valley is drawn to either side


@dataclass(frozen=True)
class Found:
    """The answer of a climb in phi.

    Attributes:
        phi: the best values, (P,).
        se: their standard errors, (P,), NaN where there is none.
        interval: low and high of a 95 % interval, (P, 2), NaN where there is none.
        method: "root" of the fitted gradient field, or "mean" of the last steps.
        kinds: what each number is, P of them: interior, at a bound, undetermined or unsettled.
        causes: why an unsettled number is, None elsewhere.
        free: (P, F), a column for each direction that is not determined, its largest entry 1.
        combination: for two parameters of which one direction is determined, that one: its coefficients (P,), its value
            and its standard error.
        valley: the line along the other direction, (n, 2), to draw.
        ellipse: the 95 % region of two determined parameters, (n, 2), to draw.
        coupled: which numbers are undetermined because they move with one that is at its bound.
    """

    phi: Tensor
    se: Tensor
    interval: Tensor
    method: str
    kinds: tuple[Kind, ...]
    causes: tuple[Cause | None, ...]
    free: Tensor
    combination: tuple[Tensor, float, float] | None = None
    valley: Tensor | None = None
    ellipse: Tensor | None = None
    coupled: tuple[bool, ...] = ()


def found(
    problem: Problem, u: Sequence[Tensor], grad: Sequence[Tensor], grad_se: Sequence[Tensor], *, width: float = 0.0
) -> Found:
    """The answer of a climb from its usable steps.

    Args:
        problem: whose links carry the answer from u to phi.
        u: where each step stood, (P,) in float64.
        grad: the gradient seen there, (P,).
        grad_se: its standard error, (P,); NaN or 0 where it is not known.
        width: half the stretch of u over which each gradient is an average (`Estimate.width`).
    """
    seen = domain(problem, torch.stack([*u]))
    kind = {"constrained": bool(problem.constraints), "moving": not problem.objective.is_mean}
    here = answer(u, grad, grad_se, **kind, domain=seen, width=width)
    return in_phi(problem, here)


def domain(problem: Problem, u: Tensor) -> Domain:
    """A path u (n, P) in phi, with dphi/du where a number has a coordinate of its own, else NaN."""
    slopes = [_slope(problem, row) for row in u]
    alone = torch.stack([_alone(s) for s in slopes]).all(0)
    slope = torch.stack([s.diagonal() for s in slopes])
    return Domain(problem.value(u), slope.where(alone, torch.nan), bounds(problem).where(alone[:, None], torch.nan))


def bounds(problem: Problem) -> Tensor:
    """(P, 2): low and high of each number, NaN where it has none."""
    rows: list[tuple[float, float]] = []
    for tunable in problem.tunables:
        rows += [pair or (torch.nan, torch.nan) for pair in tunable.bounds_of(problem.process.steps)]
    return torch.tensor(rows, dtype=torch.float64)


def _slope(problem: Problem, u: Tensor) -> Tensor:
    """dphi/du (P, P)."""
    return torch.autograd.functional.jacobian(problem.value, u)  # type: ignore[no-any-return]


def _alone(slope: Tensor) -> Tensor:
    """(P,): whether a number depends on its own coordinate only."""
    return (slope != 0).sum(1) <= 1


def in_phi(problem: Problem, here: Answer) -> Found:
    slope = _slope(problem, here.u)
    alone, phi, se = _alone(slope), problem.value(here.u), through_link(slope, here)
    interval = torch.stack([phi - NORMAL * se, phi + NORMAL * se], -1)
    if here.interval is not None:
        interval = _end_by_end(problem, here, interval, alone)
    kinds = tuple(_kind(here.kinds, row) for row in slope)
    causes = here.causes or (None,) * len(phi)
    free = phi.new_zeros(len(phi), 0) if here.free is None else _scaled(slope @ here.free)
    coupled = tuple(any(c and r for c, r in zip(here.coupled, row, strict=False)) for row in (slope != 0).tolist())
    shown = Found(phi, se, interval, here.method, kinds, causes, free, coupled=coupled)
    return _drawn(problem, here, slope, shown) if len(phi) == 2 and not problem.constraints else shown


def through_link(slope: Tensor, here: Answer) -> Tensor:
    """Standard errors (P,) in phi: those of the coordinates that a number depends on, NaN where one is not known."""
    variance = (slope * here.u_se).square().where(slope != 0, 0.0).sum(1)
    if here.covariance is not None and len(slope) > 1:
        joint = (slope @ here.covariance * slope).sum(1)
        variance = joint.where((slope != 0).sum(1) > 1, variance).where(variance.isfinite(), torch.nan)
    return variance.sqrt()


def _end_by_end(problem: Problem, here: Answer, interval: Tensor, alone: Tensor) -> Tensor:
    """Each coordinate put at the ends of its interval, the others where they are."""
    assert here.interval is not None
    ends = []
    for side in range(2):
        moved = here.u.repeat(len(here.u), 1)
        moved.diagonal().copy_(here.interval[:, side])
        known = here.interval[:, side].isfinite()
        ends.append(problem.value(moved.nan_to_num()).diagonal().where(known, torch.nan))
    return torch.stack(ends, -1).where(alone[:, None], interval)


def _kind(kinds: Sequence[Kind], row: Tensor) -> Kind:
    """The gravest of the coordinates that a number depends on."""
    mine = [kind for kind, s in zip(kinds, row.tolist(), strict=True) if s != 0]
    return max(mine or ["undetermined"], key=SEVERITY.index)


def _scaled(free: Tensor) -> Tensor:
    """Columns whose largest entry is 1."""
    if not free.numel():
        return free
    top = free.gather(0, free.abs().argmax(0, keepdim=True))
    return free / top.where(top != 0, 1.0)


def _drawn(problem: Problem, here: Answer, slope: Tensor, shown: Found) -> Found:
    """For two parameters: the combination that is determined with its valley, or the ellipse of both."""
    if here.free is None or here.covariance is None:
        return shown
    if here.free.shape[1] == 1 and not any(kind.endswith("bound") for kind in here.kinds):
        t = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)
        valley = problem.value(here.u + t[:, None] * here.free[:, 0])
        normal = torch.stack([-shown.free[1, 0], shown.free[0, 0]])
        normal = normal / normal[normal.abs().argmax()]
        covariance = slope @ here.covariance @ slope.T
        value, se = (normal @ shown.phi).item(), (normal @ covariance @ normal).clamp(min=0).sqrt().item()
        return Found(**{**vars(shown), "combination": (normal, value, se), "valley": valley})
    if here.free.shape[1] == 0 and set(here.kinds) == {"interior"}:
        angle = torch.linspace(0, 2 * torch.pi, POINTS, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(here.covariance)
        axes = vectors * (ELLIPSE * values.clamp(min=0)).sqrt()
        outline = problem.value(here.u + torch.stack([angle.cos(), angle.sin()], -1) @ axes.T)
        return Found(**{**vars(shown), "ellipse": outline})
    return shown
