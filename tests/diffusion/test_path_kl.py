"""The KL divergence of a sampler's path against joint Gaussians written out whole, and against laws that are skewed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.exponential import Exponential
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.path_kl import sample_with_kl
from genbo.diffusion.process import Markov, Process, process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.seed import Batch
from tests.oracles import levels
from tests.rooms.test_samplers import normal, step_at

LOG_SNR_MAX = 8.0


def gaussian(mean: float, std: float = 0.5, *, steps: int = 12, eta: float = 1.0) -> Process:
    return process_of(Gaussian({"a": [mean]}, std).open(), Ddim(steps, eta), Plain(1.0))


def exponential(mean: float, *, steps: int = 80, eta: float = 1.0) -> Process:
    return process_of(Exponential({"a": [mean]}).open(), Ddim(steps, eta), Plain(1.0))


def batch(n: int, first: int = 0) -> Batch:
    return Batch(("a",) * n, tuple(range(first, first + n)))


def kl_of(process: Process, base: Process, n: int = 1) -> Tensor:
    with torch.no_grad():
        return sample_with_kl(process, base, batch(n))[1]


# -- oracles -----------------------------------------------------------------------------------------------------------


def chain(mean: float, std: float, steps: int, eta: float) -> list[tuple[float, float, float]]:
    """x_s = by x_t + plus + scale n of every step of DDIM on N(mean, std^2); with eta = 1 in the form of DDPM."""
    alpha, sigma = (x.tolist() for x in levels(LOG_SNR_MAX, steps))
    found = []
    for i in range(steps):
        a, s, a_s, s_s = alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]
        gain = a * std**2 / (a**2 * std**2 + s**2)
        slope, offset = gain, mean - gain * a * mean  # x_0 = slope x_t + offset
        ahead = s**2 - (a / a_s) ** 2 * s_s**2  # the variance of x_t given x_s
        scale = eta * s_s / s * math.sqrt(ahead)
        if eta == 1:
            of_x, of_x_0 = a / a_s * s_s**2 / s**2, a_s * ahead / s**2
        else:
            of_x = math.sqrt(s_s**2 - scale**2) / s
            of_x_0 = a_s - of_x * a
        found.append((of_x + of_x_0 * slope, of_x_0 * offset, scale))
    return found


def joint(links: list[tuple[float, float, float]]) -> tuple[Tensor, Tensor]:
    """Mean and covariance of all states from x_T = noise to the last that noise is drawn for."""
    maps = torch.zeros(len(links), len(links), dtype=torch.float64)  # state k from the draws so far
    means = torch.zeros(len(links), dtype=torch.float64)
    maps[0, 0] = 1.0
    for k, (by, plus, scale) in enumerate(links[:-1], start=1):
        maps[k], means[k] = by * maps[k - 1], by * means[k - 1] + plus
        maps[k, k] = scale
    return means, maps @ maps.T


def gaussian_kl(p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor]) -> float:
    """KL(p || q) of normal laws."""
    (m_p, v_p), (m_q, v_q) = p, q
    inverse = torch.linalg.inv(v_q)
    quadratic = (m_q - m_p) @ inverse @ (m_q - m_p)
    return float((torch.trace(inverse @ v_p) - len(m_p) + quadratic + v_q.logdet() - v_p.logdet()) / 2)


def limit(apart: float, std: float, eta: float) -> float:
    """Of ever more steps between the same two levels: what the two noised laws gain on each other in between."""
    end, start = (1 / (1 + math.exp(-log_snr)) for log_snr in (LOG_SNR_MAX, -LOG_SNR_MAX))
    gained = sum(sign * a2 / (a2 * std**2 + 1 - a2) for sign, a2 in ((1, end), (-1, start)))
    return ((1 + eta**2) / (2 * eta)) ** 2 * apart**2 / 2 * gained


def exponential_kl(mean: float, base: float) -> float:
    return math.log(base / mean) + mean / base - 1


# -- the chain, exactly ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_the_path_of_a_shifted_gaussian_has_the_kl_of_its_joint_law(eta):
    """Networks that differ by a constant at every level: every path has the same sum."""
    expected = gaussian_kl(*(joint(chain(mean, 0.5, 12, eta)) for mean in (0.6, -0.2)))
    found = kl_of(gaussian(0.6, eta=eta), gaussian(-0.2, eta=eta), 5)
    assert found.dtype == torch.float64 and found.tolist() == pytest.approx([expected] * 5, rel=1e-9)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize(("ours", "theirs"), [((0.6, 0.4), (0.0, 0.7)), ((0.0, 0.7), (0.6, 0.4))])
def test_where_the_spread_differs_too_the_mean_over_paths_is_the_kl_that_way_round(ours, theirs, eta):
    law, base = (joint(chain(*which, 12, eta)) for which in (ours, theirs))
    forth, back = gaussian_kl(law, base), gaussian_kl(base, law)
    found = kl_of(gaussian(*ours, eta=eta), gaussian(*theirs, eta=eta), 2000)
    se = (found.std() / math.sqrt(len(found))).item()
    assert abs(found.mean().item() - forth) < 4 * se
    assert abs(found.mean().item() - back) > 10 * se


@pytest.mark.parametrize("eta", [0.2, 0.5, 1.0])
def test_with_many_steps_it_tends_to_the_kl_of_the_laws_times_what_eta_makes_of_it(eta):
    """From above, as 1 / steps; with eta = 1 the factor is 1."""
    steps = [128, 256, 512]
    error = [kl_of(gaussian(0.6, steps=n, eta=eta), gaussian(0.0, steps=n, eta=eta)).item() for n in steps]
    error = [found - limit(0.6, 0.5, eta) for found in error]
    rates = [math.log2(error[i] / error[i + 1]) for i in range(2)]
    assert all(rate == pytest.approx(1.0, abs=0.1) for rate in rates) and error[-1] > 0
    of_the_laws = 0.6**2 / (2 * 0.5**2)
    assert limit(0.6, 0.5, eta) == pytest.approx(((1 + eta**2) / (2 * eta)) ** 2 * of_the_laws, rel=2e-3)


def test_the_same_process_is_nowhere_from_itself():
    assert kl_of(gaussian(0.6), gaussian(0.6), 3).tolist() == [0.0] * 3


# -- laws that are not Gaussian ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "base"), [(0.8, 0.5), (0.3, 0.5)])
def test_exponential_laws_are_as_far_apart_as_on_paper_and_that_way_round(mean, base):
    """From above, and without the part that falls as 1 / steps just as far; the other way round would be far off."""
    coarse, fine = (kl_of(exponential(mean, steps=n), exponential(base, steps=n), 3000) for n in (40, 160))
    exact, swapped = exponential_kl(mean, base), exponential_kl(base, mean)
    se = [k.std().item() / math.sqrt(len(k)) for k in (coarse, fine)]
    assert coarse.mean().item() - exact > 6 * se[0]
    assert fine.mean().item() - exact > -2 * se[1]
    limit, limit_se = (4 * fine - coarse).mean().item() / 3, math.hypot(4 * se[1], se[0]) / 3
    assert abs(limit - exact) < 3 * limit_se + 0.003
    assert abs(limit - swapped) > 6 * limit_se


def test_a_smaller_eta_never_makes_it_smaller():
    found = [kl_of(exponential(0.8, eta=eta), exponential(0.5, eta=eta), 800).mean().item() for eta in (0.3, 0.6, 1.0)]
    assert found[0] > found[1] > found[2] > exponential_kl(0.8, 0.5)


# -- what is counted, and what is not ----------------------------------------------------------------------------------


class LastStepOnly:
    """A network that is another's, but for its last step."""

    def __init__(self, model, by: float) -> None:
        self.model, self.by = model, by

    def __getattr__(self, name):
        return getattr(self.model, name)

    def __call__(self, x_t, time, condition):
        return self.model(x_t, time, condition) + self.by * (time > LOG_SNR_MAX - 1e-6).to(x_t).reshape(-1, 1, 1, 1)


def test_a_last_step_without_noise_is_not_counted_and_one_with_noise_is():
    base = gaussian(0.0)
    moved = replace(base, model=LastStepOnly(base.model, 0.3))
    with torch.no_grad():
        x, kl = sample_with_kl(moved, base, batch(4))
        assert kl.abs().max() == 0
        torch.testing.assert_close(x, sample(base, batch(4)) + 0.3)
    early = replace(
        base.grid, alpha_s=base.grid.alpha_s.clone(), sigma_s=base.grid.sigma_s.clone()
    )  # ends in some noise, as `set_alpha_to_one: false` does
    early.alpha_s[0, -1], early.sigma_s[0, -1] = math.sqrt(1 - 1e-4), 1e-2
    noisy = [process.with_grid(early) for process in (moved, base)]
    assert (kl_of(*noisy, 4) > 1).all()


def test_the_samples_are_those_of_the_process_with_and_without_checkpoints():
    process, base = exponential(0.8, steps=9, eta=0.7), exponential(0.5, steps=9, eta=0.7)
    start = torch.randn(3, 1, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    for given in (None, start):
        for checkpoint in (False, True):
            x, _ = sample_with_kl(process, base, batch(3), start=given, checkpoint=checkpoint)
            torch.testing.assert_close(x, sample(process, batch(3), start=given), rtol=0, atol=0)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_its_gradient_is_that_of_a_difference(checkpoint):
    """In the noise that the path begins from: through samples, both networks and the scale."""
    process, base = exponential(0.8, steps=9), exponential(0.5, steps=9)

    def total(z: Tensor) -> Tensor:
        return sample_with_kl(process, base, batch(3), start=z, checkpoint=checkpoint)[1].sum()

    z = torch.randn(3, 1, 1, 1, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    (grad,) = torch.autograd.grad(total(z), z)
    h = 1e-5
    for i in range(3):
        e = torch.zeros_like(z)
        e[i] = h
        assert grad[i].item() == pytest.approx(((total(z + e) - total(z - e)) / (2 * h)).item(), rel=1e-6)


def test_a_sample_does_not_know_its_neighbours():
    process, base = exponential(0.8, steps=9), exponential(0.5, steps=9)
    with torch.no_grad():
        x, kl = sample_with_kl(process, base, batch(5))
        alone, kl_alone = sample_with_kl(process, base, batch(1, 3))
    torch.testing.assert_close(alone, x[3:4])
    torch.testing.assert_close(kl_alone, kl[3:4])


# -- samplers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.2, 0.6, 1.0])
def test_a_step_is_its_mean_and_its_scale_times_the_noise(eta):
    sampler, at = Ddim(eta=eta), step_at(1)
    x_t, x_0, eps, noise = (normal(i) for i in range(4))
    mean, scale = sampler.transition(at, x_t, x_0, eps)
    x_s, _ = sampler.step(at, x_t, x_0, eps, (), noise)
    torch.testing.assert_close(x_s, mean + scale * noise)
    assert isinstance(sampler, Markov) and not isinstance(Dpmpp(), Markov)


@pytest.mark.parametrize(
    ("process", "base", "said"),
    [
        (gaussian(0.6, eta=0.0), gaussian(0.0, eta=0.0), "draws fresh noise at every step; use sampler: "),
        (replace(gaussian(0.6), sampler=Dpmpp(12)), gaussian(0.0), "draws fresh noise at every step; use sampler: "),
        (gaussian(0.6), gaussian(0.0, eta=0.5), "the same sampler at the same levels"),
        (gaussian(0.6, steps=12), gaussian(0.0, steps=13), "the same sampler at the same levels"),
        (gaussian(0.6).with_option("weight", torch.ones(2, 12)), gaussian(0.0), "not of 2 against 1"),
    ],
)
def test_paths_that_cannot_be_compared_are_refused(process, base, said):
    with pytest.raises(ValueError, match=said):
        sample_with_kl(process, base, batch(1))
