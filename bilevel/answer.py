"""From the path to the answer: where the gradient crosses zero, and how well that is known.

A climb ends near the optimum, not at it. Near it the gradient is a smooth function of u that falls through zero, so for
one parameter a parabola (a line, where there are few steps) is fitted to the gradients near the end and its falling
root is the answer: it does not lag behind as an average of the path does. The error bar is the root's own (delta
method),

    se(u*) = se(g at u*) / |slope at u*|

with the noise from the residuals, or from the standard errors where those are larger. With several parameters the
answer is the mean of the last steps, and the error bar of each is the same ratio along its own axis. Where no curvature
stands out from the noise there is no error bar to give: the objective is flat as far as can be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TAIL = 1 / 4  # the part of the path whose mean stands for its end
SIGNIFICANT = 2.0  # standard errors by which a slope must be below 0 to be believed
CLEAR = 4.0  # and by which it is known well enough not to look farther
WIDTHS = (0.1, 0.2, 0.4, 0.8)  # in u: how far from the end a gradient counts; the narrowest clear one is taken


@dataclass(frozen=True)
class Answer:
    """`u` (P,) and its standard error, NaN where the path shows no curvature to measure it by."""

    u: Tensor
    u_se: Tensor
    method: str  # root | mean


def answer(
    u: Sequence[Tensor], grad: Sequence[Tensor], grad_se: Sequence[Tensor], *, constrained: bool = False
) -> Answer:
    """From the usable steps of a run, in order: each (P,).

    With constraints the objective itself moves, as their multipliers do, and its gradients at different steps belong to
    different objectives: then the answer is the mean of the last steps, and its error bar their spread.
    """
    if constrained:
        end = torch.stack(list(u[-max(2, round(len(u) * TAIL)) :]))
        return Answer(end.mean(0), end.std(0), "mean")
    us, gs, ses = (torch.stack(list(x)) for x in (u, grad, grad_se))
    tail = us[-max(1, round(len(us) * TAIL)) :].mean(0)
    fits = [_fit(us[:, j], gs[:, j], ses[:, j], tail[j]) for j in range(us.shape[1])]
    u_se = torch.stack([fit.se if fit else torch.tensor(torch.nan) for fit in fits])
    if len(fits) == 1 and fits[0] and us.min() <= fits[0].root <= us.max():
        return Answer(fits[0].root[None], u_se, "root")
    return Answer(tail, u_se, "mean")


@dataclass(frozen=True)
class _Fit:
    root: Tensor
    se: Tensor
    clear: bool


def _fit(u: Tensor, g: Tensor, se: Tensor, near: Tensor) -> _Fit | None:
    """The falling root nearest the path's end: by few gradients close to it where they say enough, else by more.

    A wide window averages the noise, a narrow one keeps the line straight; None where no width shows a falling slope.
    """
    away = (u - near).abs()
    if len(u) < 4 or not away.any():
        return None
    found = None
    for width in (float(2 * away.median()), *WIDTHS):
        if found is not None and (found.clear or width < 2 * away.median()):
            continue
        found = _root(u, g, se, torch.exp(-((away / max(width, 1e-12)) ** 2) / 2), near) or found
    return found


def _root(u: Tensor, g: Tensor, se: Tensor, w: Tensor, near: Tensor) -> _Fit | None:
    """Of a least-squares parabola in a window w, or a line where there are few points.

    Gradients are not weighted by their own standard errors: of samples that jump now and then, those steps that happen
    to see no jump have both the smallest error and too small a gradient.
    """
    scale = (u - near).abs().max()
    enough = w.sum() ** 2 / (w**2).sum()  # how many points the weights amount to
    powers = torch.arange(3 if enough >= 6 else 2)
    x = ((u - near) / scale)[:, None] ** powers  # (n, 2 or 3)
    inverse = torch.linalg.pinv(x.T @ (w[:, None] * x), hermitian=True)
    beta = inverse @ (x.T @ (w * g))
    misfit = (w * (g - x @ beta) ** 2).sum() / w.sum() * enough / (enough - len(powers)).clamp(min=1)
    noise = torch.maximum(misfit, (w * se.nan_to_num() ** 2).sum() / w.sum())
    bread = inverse @ (x.T * w)
    covariance = noise * bread @ bread.T

    root = torch.zeros((), dtype=u.dtype)
    for _ in range(20):  # Newton, held inside twice the range of the points
        slope = (beta[1:] * powers[1:] * root ** (powers[1:] - 1)).sum()
        if slope >= 0:
            return None
        root = (root - (beta * root**powers).sum() / slope).clamp(-2, 2)
    row, slope_row = root**powers, powers * root ** (powers - 1).clamp(min=0)
    slope, slope_se = slope_row @ beta, (slope_row @ covariance @ slope_row).sqrt()
    if slope > -SIGNIFICANT * slope_se:
        return None
    root_se = scale * (row @ covariance @ row).sqrt() / -slope
    return _Fit(near + scale * root, root_se, bool(slope < -CLEAR * slope_se))
