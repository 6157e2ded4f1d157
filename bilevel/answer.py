"""From the path to the answer: where the gradient crosses zero, and how well that is known.

The last iterates of a stochastic climb stand around the optimum, so their mean is the answer, and near it the gradient
is a line, g(u) = -c (u - u*). For a single parameter the line is fitted to the late steps and its root is the answer:
it does not lag behind the way an average of the path does. The error bar is the standard error of that root (delta
method), or with several parameters the standard error of the late gradients over the fitted curvature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LATE = 0.6  # the part of the path that is used
SIGNIFICANT = 2.0  # standard errors by which a curvature must differ from 0


@dataclass(frozen=True)
class Answer:
    """`phi` (P,) and its standard error in the same units; NaN where the path shows no curvature to measure it by."""

    u: Tensor
    u_se: Tensor
    method: str  # root | mean


def answer(u: Sequence[Tensor], grad: Sequence[Tensor], grad_se: Sequence[Tensor]) -> Answer:
    """From the usable steps of a run, in order: each (P,)."""
    first = min(len(u) - 1, int(len(u) * (1 - LATE)))
    us, gs = torch.stack(list(u[first:])), torch.stack(list(grad[first:]))
    ses = torch.stack(list(grad_se[first:])).nan_to_num(nan=1.0)
    ses = ses.clamp(min=float(ses.max()) * 1e-6 + 1e-300)
    w = ses**-2
    mean_u, mean_g = (w * us).sum(0) / w.sum(0), (w * gs).sum(0) / w.sum(0)
    spread = (w * (us - mean_u) ** 2).sum(0)
    slope = (w * (us - mean_u) * (gs - mean_g)).sum(0) / spread
    noise = torch.maximum((w * (gs - mean_g - slope * (us - mean_u)) ** 2).sum(0) / max(len(us) - 2, 1), torch.ones(()))
    slope_se = (noise / spread).sqrt()
    curved = slope < -SIGNIFICANT * slope_se
    root = mean_u - mean_g / slope
    root_se = (noise * (1 / w.sum(0) + (root - mean_u) ** 2 / spread)).sqrt() / slope.abs()
    tail = us[-max(1, len(us) // 3) :].mean(0)
    lowest, highest = torch.stack(list(u)).min(0).values, torch.stack(list(u)).max(0).values
    use_root = curved & (root >= lowest) & (root <= highest) & torch.tensor(us.shape[1] == 1)
    result = torch.where(use_root, root, tail)
    result_se = torch.where(curved, root_se, torch.full_like(root_se, float("nan")))
    return Answer(result, result_se, "root" if bool(use_root.all()) else "mean")
