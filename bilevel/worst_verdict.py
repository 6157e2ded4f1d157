"""Start against tuned on the worst prompts: the objective itself, on held-out samples, with an interval.

The worst of several means that are known with noise is too low, and the more so the more prompts tie, which is what
tuning for the worst leads to. So no sample has a part in choosing the prompts that it is counted for: the samples of
each prompt are split into two halves, and each half judges the prompts that the other has chosen,

    T = 1/2 sum over halves f of sum_p w_p(other half) m_p(f)

which is no lower than the truth, where the plain estimate is no higher, and is right where the worst prompts are clear
or tie. Each side has its own worst prompts; both sides have the same samples. Given the other half, the difference

    D_f = sum_p mean of the half's samples i of w_p(tuned) y_i - w_p(start) x_i

is a plain mean, whose variance is that within prompts: for new seeds of these very prompts. Halves that choose the same
prompts are independent, so their mean has half of that variance; halves that choose differently have each drawn a
prompt, and the part in which they differ is not halved. The variance is that between prompts, by their influences on
the objective, where the worst share of fresh prompts holds `MANY` of them; fewer cannot say what the worst of other
prompts would be.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genbo.bilevel.interval import student_t
from genbo.bilevel.objective import Objective

MANY = 8.0  # prompts in the worst share, from which on the interval holds for prompts like these


@dataclass(frozen=True)
class Tails:
    """The objective at the start and tuned, the interval of the difference, and how many of what that counts."""

    start: float
    tuned: float
    interval: tuple[float, float]
    counted: int


def tails(
    start: Tensor, tuned: Tensor, of: Tensor, objective: Objective, *, fresh_prompts: bool, level: float = 0.95
) -> Tails:
    """Both sides on the same samples.

    Args:
        start: scores (N,) at the start.
        tuned: of the same prompts and seeds at the tuned values.
        of: the prompt of each sample, a number from 0 to C - 1.
        objective: over the prompts, which count the same.
        fresh_prompts: whether tuning never saw these prompts.
        level: of the interval.

    Raises:
        ValueError: where a prompt has a single sample.
    """
    x, y, size = start.double(), tuned.double(), torch.bincount(of).double()
    if size.min() < 2:
        raise ValueError("the worst prompts are chosen and judged on different samples: draw two or more of each")
    prompts, half = len(size), _turn(of) % 2
    ends, squares, parts, chosen = [], [], [], []
    for f in (0, 1):
        mine, other = half == f, half != f
        w_x, w_y = (objective.weights(_means(z[other], of[other], prompts)) for z in (x, y))
        m_x, m_y = (_means(z[mine], of[mine], prompts) for z in (x, y))
        ends.append(((w_x * m_x).sum(), (w_y * m_y).sum()))
        spread = _variance(w_y[of] * y - w_x[of] * x, of, size)  # (C,), of a sample
        squares.append(spread / torch.bincount(of[mine], minlength=prompts))
        chosen.append(torch.stack([w_x, w_y]))
        parts.append(_part(w_y, m_y) - _part(w_x, m_x))
    before, after = (torch.stack(side).mean().item() for side in zip(*ends, strict=True))
    if fresh_prompts and objective.share * prompts >= MANY:
        error, degrees = torch.stack(parts).mean(0).std().item() / prompts**0.5, objective.share * prompts - 1
        counted = prompts
    else:
        apart = 1 - torch.minimum(*chosen).sum(1).mean()  # in [0, 1]: how differently the halves choose
        variance = torch.stack(squares).mean(0) * (1 + apart) / 2
        degrees = (variance.sum() ** 2 / (variance**2 / (size - 1)).sum()).nan_to_num(1.0).item()
        error, counted = variance.sum().sqrt().item(), len(of)
    reach = student_t((1 + level) / 2, max(degrees, 1.0)) * error
    return Tails(before, after, (after - before - reach, after - before + reach), counted)


def _part(weights: Tensor, means: Tensor) -> Tensor:
    """(C,): what each prompt adds to the mean over prompts that the objective is, by its influence."""
    edge = means[weights > 0].max()
    return edge + len(means) * weights * (means - edge)


def _turn(of: Tensor) -> Tensor:
    """Which of its prompt's samples each is, (N,)."""
    order = of.argsort(stable=True)
    size = torch.bincount(of)
    turn = torch.empty_like(of)
    turn[order] = torch.arange(len(of)) - (size.cumsum(0) - size)[of[order]]
    return turn


def _means(x: Tensor, of: Tensor, prompts: int) -> Tensor:
    size = torch.bincount(of, minlength=prompts)
    return torch.zeros(prompts, dtype=x.dtype).index_add(0, of, x) / size


def _variance(x: Tensor, of: Tensor, size: Tensor) -> Tensor:
    """Of a sample of each prompt, (C,)."""
    away = x - _means(x, of, len(size))[of]
    return torch.zeros(len(size), dtype=x.dtype).index_add(0, of, away.square()) / (size - 1)
