"""Memory that runs out: the same samples in smaller calls, and an end with a name where not even one fits."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch

from genbo.bilevel.estimators.reverse_mode import ReverseMode
from genbo.bilevel.estimators.zeroth_order import ZerothOrder
from genbo.bilevel.problem import Problem, SamplesAt
from genbo.bilevel.regularization.bank_sampler import Sampled
from genbo.bilevel.tunables.guidance import Guidance
from genbo.bilevel.verdict import draw
from genbo.cli.errors import OutOfMemory
from genbo.cli.stages.endings import named
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.process import process_of
from genbo.diffusion.room import NoRoom, Room
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Seed, batch_of
from genbo.rewards.quadratic import Quadratic

ASKED = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.60 GiB"
PROMPTS = list(Gaussian().known_prompts)


class Narrow:
    """A model that has room for so many rows at once, and the rows that were asked of it."""

    def __init__(self, model: Any, rows: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.model, self.rows, self.error = model, rows, error
        self.asked: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, x_t: torch.Tensor, time: torch.Tensor, condition: Any) -> torch.Tensor:
        self.asked.append(len(x_t))
        if len(x_t) > self.rows:
            raise self.error(ASKED)
        return self.model(x_t, time, condition)


def problem(rows: int | None, batch: int) -> Problem:
    """Guidance of an exact world, whose guided samples are two rows each."""
    model = Gaussian().open()
    narrow = model if rows is None else Narrow(model, rows)
    process = process_of(narrow, Ddim(steps=3), Plain(weight=2.0), batch=batch)
    return Problem(process, (Guidance(start=2.0),), ((1.0, Quadratic(target=0.3).open()),))


@pytest.mark.parametrize("size", [64, 36])
def test_halves_until_it_fits(size):
    """64 or 36, 32, 16, 8: powers of two after the first; and 8 from then on."""
    seen: list[int] = []

    def one(part: slice) -> list[int]:
        rows = part.stop - part.start
        seen.append(rows)
        if rows > 8:
            raise torch.OutOfMemoryError(ASKED)
        return list(range(part.start, part.stop))

    room = Room()
    assert list(chain(*room.over(100, size, 1, one))) == list(range(100))
    first = [64, 32, 16, 8] if size == 64 else [36, 32, 16, 8]
    assert seen == [*first, *[8] * 11, 4]
    seen.clear()
    assert list(chain(*room.over(10, size, 1, one))) == list(range(10))
    assert seen == [8, 2]


def test_scores_are_those_of_a_run_that_began_so_small():
    """Bit by bit, from the same noise."""
    batch, phi = batch_of(PROMPTS, 64, Seed(0)), torch.tensor([[2.0]], dtype=torch.float64)
    narrow, small = problem(16, 64), problem(None, 8)
    assert torch.equal(narrow.scores(phi, batch), small.scores(phi, batch))
    assert max(narrow.process.model.asked[-3:]) == 16 and narrow.process.room.images == 8
    torch.testing.assert_close(narrow.scores(phi, batch), problem(None, 64).scores(phi, batch), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", [ReverseMode(), ZerothOrder()], ids=lambda e: type(e).__name__)
def test_a_gradient_is_that_of_a_run_that_began_so_small(estimator):
    batch, u = batch_of(PROMPTS, 32, Seed(0)), torch.zeros(1, dtype=torch.float64)
    weights = torch.ones(1, dtype=torch.float64)
    found = [
        estimator(p, SamplesAt(u, batch, weights, Seed(1))).grad
        for p in (problem(16, 32), problem(None, 8), problem(None, 32))
    ]
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], found[2], rtol=1e-12, atol=1e-12)


def test_evaluation_and_banks_draw_in_smaller_parts_too():
    batch, phi = batch_of(PROMPTS, 20, Seed(0)), torch.tensor([2.0], dtype=torch.float64)
    drawn, wanted = (list(draw(p, phi, batch)) for p in (problem(8, 20), problem(None, 4)))
    for (seen, images), (known, pictures) in zip(drawn, wanted, strict=True):
        assert torch.equal(images, pictures) and torch.equal(seen[0], known[0])
    reward = ((1.0, Quadratic(target=0.3).open()),)
    banks = [
        Sampled(problem(n, b).process, PROMPTS, reward, reward, Seed(2)).draw(0, 10, None)
        for n, b in ((8, 20), (None, 4))
    ]
    torch.testing.assert_close(banks[0].r1, banks[1].r1, rtol=0, atol=0)


def test_where_not_one_fits_the_end_says_what_was_asked_for():
    with pytest.raises(OutOfMemory, match=r"one image.*allocate 2\.00 GiB.*smaller images") as ended, named():
        problem(1, 8).scores(torch.tensor([[2.0]], dtype=torch.float64), batch_of(PROMPTS, 8, Seed(0)))
    assert ended.value.exit_code == 5 and ended.value.resumable
    assert isinstance(ended.value.__cause__, NoRoom)


@pytest.mark.parametrize("error", [ValueError, RuntimeError])
def test_what_only_sounds_like_it_is_not_swallowed(error):
    base = problem(None, 8)
    model = Narrow(base.process.model, 2, error)

    def one(part: slice) -> None:
        raise error("out of memory? no: a shape is wrong")

    with pytest.raises(error, match="a shape is wrong"):
        list(replace(base.process, model=model).room.over(8, 8, 1, one))


def test_an_error_outside_a_batch_is_another():
    with pytest.raises(OutOfMemory, match="half of what it was"), named():
        raise torch.OutOfMemoryError("Allocation on device")
