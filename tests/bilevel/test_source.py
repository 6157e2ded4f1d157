"""Banks from a sampler: every round, prompt and number has noise of its own, and a pilot's is that of no bank."""

from __future__ import annotations

import pytest
import torch

from genbo.bilevel.estimators.covariance import Covariance
from genbo.bilevel.lower.reweight import Reweight
from genbo.bilevel.regularization.bank import Bank
from genbo.bilevel.regularization.bank_sampler import Sampled
from genbo.bilevel.regularization.proposal import Shifts
from genbo.bilevel.regularization.search import SearchBudget, is_shifted, search
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.process import process_of
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.seed import Seed
from tests.bilevel.tilted import Direct, gaussian

PROMPTS = ("here", "there")


class Seen:
    """A reward, the first coordinate, that keeps what it was shown."""

    differentiable = True

    def __init__(self) -> None:
        self.samples: list[float] = []

    def __call__(self, images, prompts):
        self.samples += images.detach().flatten(1)[:, 0].tolist()
        return images.flatten(1)[:, 0]


def source(reward=None, *, gradients: bool = False, batch: int = 5) -> Sampled:
    """Standard normal samples around 0 and around 3."""
    world = Gaussian(means={"here": [0.0, 0.0], "there": [3.0, 0.0]}, std=1.0)
    reward = reward or Seen()
    process = process_of(world.open(), Dpmpp(steps=8), Plain(1.0), batch=batch)
    return Sampled(process, PROMPTS, [(2.0, reward)], [(1.0, reward)], Seed(0).child("search"), gradients=gradients)


def samples(bank: Bank) -> set[float]:
    return set(bank.r2.flatten().tolist())


def test_no_two_samples_of_any_rounds_are_the_same():
    drawn = [source().draw(number, 6, None) for number in range(3)]
    assert len(set().union(*map(samples, drawn))) == 3 * 2 * 6
    assert all((bank.r2[1] - bank.r2[0]).std() > 0.3 for bank in drawn), "nor is the noise of two prompts"


def test_a_sample_is_named_by_its_round_prompt_and_number_alone():
    """However many there are beside it, and however they were cut into calls of the network."""
    few, many = source(batch=5).draw(1, 4, None), source(batch=64).draw(1, 9, None)
    torch.testing.assert_close(few.r2, many.r2[:, :4])
    assert torch.equal(few.r1, 2 * few.r2) and few.r2.shape == (2, 4)
    assert (many.r2.mean(1) - torch.tensor([0.0, 3.0])).abs().max() < 1.5, "a row a prompt"
    assert not few.log_ratio.any()


@pytest.mark.parametrize("gradients", [False, True])
def test_the_pilot_looks_at_samples_that_are_in_no_bank(gradients):
    """They are thrown away: what chose the shifts would lean towards them."""
    pilot, kept = Seen(), Seen()
    source(pilot, gradients=gradients).shifts(1, 12, 1.0)
    for number in range(3):
        source(kept).draw(number, 12, None)
    first = {round(x, 5) for x in pilot.samples[: 2 * 4]}  # of three rounds the first is not shifted
    assert len(first) == 8 and not first & {round(x, 5) for x in kept.samples}


def test_every_round_has_a_pilot_of_its_own():
    first, second, again = (source().shifts(number, 12, 1.0) for number in (1, 2, 1))
    assert torch.equal(first.means, again.means) and not torch.equal(first.means[:, 1:], second.means[:, 1:])


def test_shifted_noise_is_plain_noise_and_the_shift_with_its_ratio_by_hand():
    """All of it along the first axis by 1.5: log p0 / q = -(1.5 z - 1.5^2 / 2), z where the noise has come to."""
    means = torch.zeros(2, 1, 2, dtype=torch.float64)
    means[..., 0] = 1.5
    shifts = Shifts(means, torch.ones(1, dtype=torch.float64))
    plain, moved = source().draw(0, 200, None), source().draw(0, 200, shifts)
    along = moved.r2 - plain.r2
    torch.testing.assert_close(along, along.mean().expand_as(along), atol=2e-3, rtol=0)
    assert along.mean().item() == pytest.approx(1.5, abs=0.05), "the sampler of a normal law is nearly the identity"
    z = (moved.r2 - torch.tensor([[0.0], [3.0]])) * 1.5 / along.mean()
    torch.testing.assert_close(moved.log_ratio, -(1.5 * z - 1.125), atol=0.15, rtol=0)
    assert moved.log_ratio.exp().mean().item() == pytest.approx(1, abs=0.35)


# -- what a search asks of it ------------------------------------------------------------------------------------------


class Noted(Direct):
    """Keeps the round of every pilot as well."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.pilots: list[tuple[int, int]] = []

    def shifts(self, round: int, samples: int, lam: float) -> Shifts:
        self.pilots.append((round, samples))
        return super().shifts(round, samples, lam)


def rounds_of(source: Direct, budget: SearchBudget, bounds=(0.05, 20.0)) -> list:
    return list(search(source, Reweight(), Covariance(), bounds, budget))


@pytest.mark.parametrize("shift", [True, False])
def test_every_round_of_a_search_draws_under_a_number_of_its_own(shift):
    here = Noted(gaussian(4.0, 4), 4, shift=shift)
    found = rounds_of(here, SearchBudget(128, rounds=3, precision=1e-3))
    assert len(found) == 3
    assert [number for number, _, _ in here.drawn] == [0, 1, 2]
    assert [number for number, _ in here.pilots] == [number for number, _, shifted in here.drawn if shifted]
    assert all(few < many for (_, few), (_, many, _) in zip(here.pilots, here.drawn[1:], strict=False))


def first_round(c: float, budget: SearchBudget, **options) -> tuple:
    found = rounds_of(Direct(gaussian(c, 2), 2, **options), budget, (0.3, 20.0))
    return found[0], found[-1]


def test_an_optimum_is_believed_only_on_fresh_samples_drawn_near_it():
    """However reliable and precise plain samples look: a bank that happens to miss the tail looks better than it is."""
    budget = SearchBudget(8192, rounds=3, precision=0.2)
    first, end = first_round(1.0, budget)
    best = first.optimum
    assert (best.kind, best.verdict) == ("interior", "reliable") and best.log_se < budget.precision
    assert first.after == "bridge" and first.target == pytest.approx(best.lam)
    assert end.after == "done" and is_shifted(end.banks[-1]) and not is_shifted(end.banks[0])


def test_where_none_can_be_drawn_near_it_plain_samples_must_do():
    first, end = first_round(1.0, SearchBudget(8192, rounds=3, precision=0.2), shift=False)
    assert first is end and first.after == "done" and first.optimum.verdict == "reliable"


def test_an_optimum_that_is_not_as_precise_as_asked_is_not_settled():
    first, end = first_round(1.0, SearchBudget(8192, rounds=2, precision=1e-4), shift=False)
    assert (first.optimum.kind, first.optimum.verdict) == ("interior", "reliable")
    assert first.after == "more" and end.after == "spent"


def test_an_optimum_on_doubtful_samples_is_not_settled_however_narrow_its_interval():
    first, _ = first_round(1.0, SearchBudget(2048, rounds=2, precision=10.0), shift=False)
    assert (first.optimum.kind, first.optimum.verdict) == ("interior", "doubtful")
    assert first.optimum.log_se < 10 and first.after == "more"
