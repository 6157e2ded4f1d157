"""Sampling that climbs a score: where it is exact, where it is a chain of linear maps, and what it never does."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genbo.diffusion.guidance.apg import Apg
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.models.mixture import Mixture
from genbo.diffusion.path_kl import sample_with_kl
from genbo.diffusion.process import Process, process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.samplers.euler import Euler
from genbo.diffusion.seed import Batch
from genbo.diffusion.steer import Climbed, Score
from genbo.diffusion.steering.tilt import Tilt
from genbo.rewards.compressibility import Compressibility
from genbo.rewards.linear import Linear
from genbo.rewards.quadratic import Quadratic
from tests.oracles import levels

LOG_SNR_MAX = 8.0
SAMPLERS = [Ddim(15), Ddim(15, 0.4), Ddim(15, 1.0), Euler(15), Dpmpp(15)]
BATCH = Batch(("a", "b", "a", "b"), (1, 2, 3, 4))
DIRECTION = [0.7, -1.2]


def gaussian(shift: tuple[float, float] = (0.0, 0.0), sampler=SAMPLERS[0], weight: float = 1.0) -> Process:
    means = {"a": [0.5, -0.3], "b": [-1.0, 1.0]}
    moved = {name: [m + s for m, s in zip(mean, shift, strict=True)] for name, mean in means.items()}
    return process_of(Gaussian(moved, std=0.8).open(), sampler, Plain(weight))


def mixed(sampler=SAMPLERS[0], rule=None, world=None) -> Process:
    world = world or Mixture([[-1.0, 0.5], [1.0, 0.0], [0.3, 1.5]], ["a", "b", "b"], [0.4, 0.3, 0.3], std=0.4)
    return process_of(world.open(), sampler, rule or Plain(2.0))


def climbing(process: Process, score: Score, most: float | None = None) -> Process:
    """Steered by one score at strength 1."""
    return process.steered([Climbed(1.0, score)], 1.0, Tilt(most))


def drawn(process: Process, batch: Batch = BATCH, **arguments) -> Tensor:
    with torch.no_grad():
        return sample(process, batch, **arguments)


def curved(images: Tensor, prompts) -> Tensor:
    """A score that is neither linear nor quadratic, and knows its prompt."""
    sign = torch.tensor([1.0 if prompt == "a" else -0.5 for prompt in prompts], dtype=images.dtype)
    return sign * torch.sin(images.flatten(1)).sum(1) + images.flatten(1).prod(1)


# -- where it is known -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_a_linear_score_on_a_gaussian_is_exactly_the_tilt(sampler):
    """p0 exp(b.x) is N(m + s^2 b, s^2), and so is every step towards it: the posterior's spread knows no x_t."""
    tilted = gaussian((0.64 * DIRECTION[0], 0.64 * DIRECTION[1]), sampler)
    steered = climbing(gaussian(sampler=sampler), Linear(DIRECTION).open())
    torch.testing.assert_close(drawn(steered), drawn(tilted), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_so_its_path_is_as_far_from_the_pretrained_one_as_the_tilts(eta):
    base = gaussian(sampler=Ddim(15, eta))
    steered, tilted = climbing(base, Linear(DIRECTION).open()), gaussian((0.448, -0.768), Ddim(15, eta))
    with torch.no_grad():
        x, kl = sample_with_kl(steered, base, BATCH)
        torch.testing.assert_close(kl, sample_with_kl(tilted, base, BATCH)[1], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(x, drawn(steered))


@pytest.mark.parametrize("weight", [1.0, 2.5])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_a_quadratic_score_on_a_guided_gaussian_is_a_chain_of_linear_maps(eta, weight):
    """-q |x - c|^2: mean and spread of what is drawn, a step at a time, in one coordinate."""
    steps, q, c, m, std, spread = 15, 0.8, 1.2, 0.5, 0.8, 1.2
    alpha, sigma = (x.tolist() for x in levels(LOG_SNR_MAX, steps))
    by, plus, variance = 1.0, 0.0, 0.0  # x = by z + plus + noise drawn on the way
    for i in range(steps):
        a, s, a_s, s_s = alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]
        cond, uncond = (a * v / (a**2 * v + s**2) for v in (std**2, spread**2))
        slope, offset = uncond + weight * (cond - uncond), weight * (m - cond * a * m)  # x_0 = slope x_t + offset
        pull = s**2 / a * 2 * q * slope
        slope, offset = slope * (1 - pull), offset * (1 - pull) + pull * c
        fresh = eta * s_s / s * math.sqrt(1 - (a / a_s) ** 2)
        kept = math.sqrt(s_s**2 - fresh**2) / s
        along, up = a_s * slope + kept * (1 - a * slope), (a_s - kept * a) * offset
        by, plus, variance = along * by, along * plus + up, along**2 * variance + fresh**2
    process = process_of(Gaussian({"a": [m]}, std, spread).open(), Ddim(steps, eta), Plain(weight))
    steered = climbing(process, Quadratic(c, q).open())
    n = 4000 if eta else 2
    batch = Batch(("a",) * n, tuple(range(n)))
    z = torch.zeros(n, 1, 1, 1, dtype=torch.float64)
    z[n // 2 :] = 1.0
    x = drawn(steered, batch, start=z).flatten()
    found, rest = x[: n // 2], x[n // 2 :]
    close = 1e-9 if eta == 0 else 4 * math.sqrt(variance / (n / 2))
    assert found.mean().item() == pytest.approx(plus, abs=close)
    assert rest.mean().item() - found.mean().item() == pytest.approx(by, abs=2 * close)
    if eta:
        assert found.var().item() == pytest.approx(variance, rel=0.15)


class Decoded:
    """A world whose samples are latents: images are a curved function of them."""

    def __init__(self, model) -> None:
        self.model = model

    def __getattr__(self, name):
        return getattr(self.model, name)

    def __call__(self, x_t, time, condition):
        return self.model(x_t, time, condition)

    def decode(self, x):
        return torch.tanh(2 * x) + x.flip(1)


def test_the_move_is_the_gradient_of_the_decoded_look_ahead():
    """One step down to no noise returns x_0 + (sigma^2 / alpha) g; g by differences of h(decode(x_0(x_t)))."""
    process = mixed(Ddim(1), world=Mixture([[-1.0, 0.5], [1.0, 0.0]], ["a", "b"], [0.5, 0.5], std=0.4, log_snr_max=0.5))
    process = replace(process, model=Decoded(process.model))
    z = torch.randn(4, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain, steered = (drawn(p, start=z) for p in (process, climbing(process, curved)))
    ratio = (process.grid.sigma_t**2 / process.grid.alpha_t).item()

    def score(z: Tensor) -> Tensor:
        return curved(process.model.decode(drawn(process, start=z)), BATCH.prompts)

    for k in range(2):
        e = torch.zeros_like(z)
        e[:, k] = 1e-5
        slope = (score(z + e) - score(z - e)) / 2e-5
        torch.testing.assert_close((steered - plain)[:, k].flatten(), ratio * slope, rtol=1e-6, atol=1e-8)


def test_steered_samples_score_higher_and_the_other_sign_lower():
    batch = Batch(("a", "b") * 50, tuple(range(100)))
    low, none, high = (
        Linear().open()(drawn(process, batch), []).mean().item()
        for process in (climbing(mixed(), Linear(-2.0).open()), mixed(), climbing(mixed(), Linear(2.0).open()))
    )
    assert low < none - 0.1 and none < high - 0.1


# -- what it never does ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [Plain(2.0), Apg(3.0)], ids=repr)
@pytest.mark.parametrize("sampler", SAMPLERS[1:], ids=repr)
def test_a_sample_does_not_know_its_neighbours(sampler, rule):
    """The released code averages over the batch, so that a sample is steered less the more there are."""
    process = climbing(mixed(sampler, rule), curved, 0.3)
    together = drawn(process)
    for i in range(len(BATCH)):
        alone = drawn(process, Batch(BATCH.prompts[i : i + 1], BATCH.seeds[i : i + 1]))
        torch.testing.assert_close(alone[0], together[i], atol=1e-9, rtol=1e-9)


def test_members_are_steered_each_by_themselves():
    process = climbing(mixed(), curved)
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)[:, None].expand(3, 15)
    together = drawn(process.with_option("weight", weights)).unflatten(0, (3, 4))
    for m in range(3):
        torch.testing.assert_close(drawn(process.with_option("weight", weights[m : m + 1])), together[m])


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_whoever_asks_for_no_gradient_gets_the_same_sample_and_no_graph(sampler):
    process = climbing(mixed(sampler, Apg(3.0)), curved)
    without, within = drawn(process), sample(process, BATCH)
    assert not without.requires_grad
    torch.testing.assert_close(without, within.detach(), rtol=0, atol=0)


def test_no_step_outlives_itself():
    """Without a gradient asked for, the graph behind a look-ahead is one step long, however many there were."""

    def depths(**how: bool) -> list[int]:
        seen: list[int] = []

        def looking(images: Tensor, prompts) -> Tensor:
            seen.append(depth(images))
            return Linear().open()(images, prompts)

        with torch.set_grad_enabled(how.get("grad", False)):
            sample(climbing(mixed(Ddim(10)), looking), BATCH)
        return seen

    assert len(set(depths())) == 1 and len(depths()) == 10
    assert depths(grad=True)[-1] > 5 * depths()[-1]


def depth(x: Tensor) -> int:
    """The longest way from x back through its graph."""
    here, found = {x.grad_fn}, 0
    while here := {node for last in here if last for node, _ in last.next_functions if node}:
        found += 1
    return found


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("sampler", [Ddim(6, 0.5), Dpmpp(6)], ids=repr)
def test_gradients_pass_through_a_steered_sample(sampler, checkpoint):
    """In the noise that it begins from, so through the gradient by which it is steered as well."""
    process = climbing(mixed(sampler), curved, 0.3)
    z = torch.randn(4, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    live, along = (
        z.clone().requires_grad_(),
        torch.randn(4, 2, 1, 1, generator=torch.Generator().manual_seed(1)).double(),
    )
    (grad,) = torch.autograd.grad(sample(process, BATCH, start=live, checkpoint=checkpoint).square().sum(), live)
    up, down = (drawn(process, start=z + h * along).square().sum() for h in (1e-5, -1e-5))
    assert (grad * along).sum().item() == pytest.approx(((up - down) / 2e-5).item(), rel=1e-5)


def test_it_costs_a_scored_image_a_step_and_no_more_network_calls():
    plain, steered = mixed(), climbing(mixed(), curved)
    drawn(plain)
    drawn(steered)
    assert plain.meter.reward_images == 0 and steered.meter.reward_images == 15 * 4
    assert steered.meter.image_backwards == 15 * 4 * 2, "the reward's gradient comes back through both halves"
    assert replace(steered.meter, reward_images=0, image_backwards=0) == plain.meter
    with_kl = replace(mixed(Ddim(15, 1.0)), meter=type(plain.meter)())
    with torch.no_grad():
        sample_with_kl(climbing(with_kl, curved), with_kl, BATCH)
    assert with_kl.meter == steered.meter, "the pretrained prediction is the one that was steered"


def test_no_move_is_longer_than_the_longest_that_is_allowed():
    """eps a step: in the same direction, each row by itself, and as it is where it is short."""
    process = mixed(Ddim(1), world=Mixture([[-1.0, 0.5], [1.0, 0.0]], ["a", "b"], [0.5, 0.5], std=0.4, log_snr_max=0.5))
    z = torch.randn(4, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = drawn(process, start=z)
    ratio = (process.grid.sigma_t / process.grid.alpha_t).item()  # of x_0's move to that of eps
    free = (drawn(climbing(process, curved), start=z) - plain) / ratio
    length = free.square().mean((1, 2, 3)).sqrt()
    most = length.median().item() * 1.01
    held = (drawn(climbing(process, curved, most), start=z) - plain) / ratio
    torch.testing.assert_close(held, free * (most / length).clamp(max=1)[:, None, None, None])
    assert (length > most).sum() == 2
    still = drawn(climbing(process, Linear(0.0).open(), most), start=z)
    torch.testing.assert_close(still, plain)


def test_where_there_is_no_signal_nothing_is_in_sight():
    process = mixed()
    alpha, sigma = process.grid.alpha_t.clone(), process.grid.sigma_t.clone()
    alpha[0, 0], sigma[0, 0] = 0.0, 1.0
    steered = climbing(process.with_grid(replace(process.grid, alpha_t=alpha, sigma_t=sigma)), curved)
    assert drawn(steered).isfinite().all()


def test_a_score_without_a_gradient_is_refused():
    def size(images: Tensor, prompts) -> Tensor:
        return Compressibility().open()(images.reshape(-1, 2, 1, 1).mean(1, keepdim=True), prompts)

    with pytest.raises(ValueError, match="no gradient; take a differentiable reward"):
        drawn(climbing(mixed(), size))


# -- a pipeline --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [Ddim(4), Ddim(4, 1.0), Dpmpp(4)], ids=repr)
def test_a_pipeline_is_steered_through_its_decoder(tiny_sd, sampler):
    process = process_of(Diffusers(pretrained=str(tiny_sd), device="cpu").open(), sampler, Plain(3.0))
    batch = Batch(("a red apple", "a dog"), (1, 2))
    reward = Linear([1.0, 0.0, -1.0]).open()  # red and not blue
    score: Score = lambda images, prompts: 3 * reward(images, prompts)  # noqa: E731
    scores = [reward(process.model.decode(drawn(p, batch)), []) for p in (process, climbing(process, score))]
    assert (scores[1] > scores[0] + 1e-3).all()
