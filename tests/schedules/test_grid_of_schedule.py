"""From a schedule to a sampler's levels: diffusers' own, and differentiable to the last step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.network import Network, log_snr_of_told
from genbo.diffusion.process import process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.seed import Batch
from genbo.schedules.cosine import Cosine
from genbo.schedules.linear import Linear
from genbo.schedules.piecewise import Piecewise
from genbo.schedules.schedule import Schedule, schedule_of
from genbo.schedules.sigmoid import Sigmoid

FAMILIES: list[Any] = [Cosine(), Cosine(end=0.7, normalised=False), Sigmoid(), Linear(), Piecewise([0.2, 0.3, 0.9])]
NOISE = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
BATCH = Batch(("",) * 9, tuple(range(9)))


class Wavy(torch.nn.Module):
    """Not linear in x_t, and not the same at any two times."""

    def forward(self, x_t: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        return (x_t + told[:, None] / 300).sin() + 0.3 * x_t


def drawn(schedule: Schedule, steps: int, sampler: Any = Ddim, **options: Any) -> torch.Tensor:
    network = Network(Wavy(), (1,), schedule, dtype=torch.float64, within=(-20.0, 20.0), **options)
    return sample(process_of(network, sampler(steps=steps), Plain(weight=1.0)), BATCH, start=NOISE)


@pytest.mark.parametrize("zero_terminal", [False, True])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample", "epsilon"])
@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_it_samples_as_diffusers_does(family, prediction, zero_terminal):
    """DDIM with the schedule's betas, trailing spacing and the clean last level, in float32."""
    schedule = schedule_of(family, zero_terminal=zero_terminal)
    if schedule.why_not(prediction):
        pytest.skip("there is nothing to compare")
    scheduler = DDIMScheduler(
        trained_betas=schedule.trained_betas(1000),
        timestep_spacing="trailing",
        clip_sample=False,
        prediction_type=prediction,
    )
    for steps in (1, 4, 10):
        scheduler.set_timesteps(steps)
        x, network = NOISE.clone(), Wavy()
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t.double().expand(9)), t, x).prev_sample.double()
        ours = drawn(schedule, steps, prediction=prediction, conditioning="index")
        torch.testing.assert_close(ours, x, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("sampler", [Ddim, Dpmpp])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample", "epsilon"])
@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_derivatives_pass_through_every_step(family, prediction, sampler):
    """Also through the last one, where a square root of zero would make them NaN; checked by differences."""
    names = list(family.links)
    first = [torch.tensor([family.starts()[name]], dtype=torch.float64) for name in names]
    u = [family.links[n].coordinates(v).requires_grad_() for n, v in zip(names, first, strict=True)]

    def samples(*u: torch.Tensor) -> torch.Tensor:
        values = {n: family.links[n].value(x) for n, x in zip(names, u, strict=True)}
        schedule = Schedule(family, values)
        return drawn(schedule, 3, sampler, prediction=prediction).mean() + drawn(schedule, 1).mean()

    assert torch.autograd.gradcheck(samples, u, eps=1e-6, atol=1e-5, rtol=1e-4)


def test_the_trap_is_there():
    """The last level as a function of the schedule, the way that diffusers computes it."""
    alphas_cumprod = torch.ones(1, dtype=torch.float64, requires_grad=True)
    x_0, eps = torch.tensor(0.3), torch.tensor(0.2)
    x_s = alphas_cumprod.sqrt() * x_0 + (1 - alphas_cumprod).sqrt() * eps * 0
    assert not torch.autograd.grad(x_s.sum(), alphas_cumprod)[0].isfinite().all()


def test_the_last_level_is_a_limit():
    """Samples and their derivatives at a very clean last level tend to those at the clean one."""
    tau = torch.tensor([[1.3]], dtype=torch.float64, requires_grad=True)

    def at(log_snr_max: float, clean: bool) -> tuple[torch.Tensor, torch.Tensor]:
        values = {**schedule_of(Cosine(log_snr_max=log_snr_max)).values, "tau": tau}
        schedule = Schedule(Cosine(), values)
        network = Network(Wavy(), (1,), schedule, dtype=torch.float64)
        process = process_of(network, Ddim(steps=4), Plain(weight=1.0))
        grid = schedule.grid(4, clean=clean)
        x = sample(process.with_grid(grid), BATCH, start=NOISE)
        return x.detach(), torch.autograd.grad(x.sum(), tau)[0]

    for found, limit in zip(at(15.9, clean=False), at(15.9, clean=True), strict=True):
        torch.testing.assert_close(found, limit, atol=3e-3, rtol=3e-3)


@pytest.mark.parametrize("clean", [False, True])
def test_a_grid_stands_on_the_schedule(clean):
    schedule = schedule_of(Cosine())
    grid = schedule.grid(5, clean=clean)
    t = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0], dtype=torch.float64)
    alpha, sigma = schedule.levels(t)
    assert grid.steps == 5 and grid.noise_scale == 1
    torch.testing.assert_close(grid.alpha_t, alpha[:, :5])
    torch.testing.assert_close(grid.sigma_t, sigma[:, :5])
    torch.testing.assert_close(grid.alpha_s[:, :4], alpha[:, 1:5])
    last = (1.0, 0.0) if clean else (alpha[0, 5].item(), sigma[0, 5].item())
    assert (grid.alpha_s[0, -1].item(), grid.sigma_s[0, -1].item()) == pytest.approx(last, abs=1e-15)
    torch.testing.assert_close(grid.time, schedule.log_snr(t[:5]))
    index = schedule.grid(5, clean=clean, told="index", train_steps=1000).time
    assert index[0].tolist() == pytest.approx([999, 799, 599, 399, 199])


def test_a_network_is_told_what_it_knows():
    """The log-SNR in diffusers' unit, held within the range of the training."""

    class Told(torch.nn.Module):
        def forward(self, x_t: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
            seen.append(told)
            return x_t

    seen: list[torch.Tensor] = []
    schedule = schedule_of(Cosine(), zero_terminal=True)
    network = Network(Told(), (1,), schedule, dtype=torch.float64, within=(-9.0, 9.0))
    sample(process_of(network, Ddim(steps=4), Plain(weight=1.0)), BATCH, start=NOISE)
    told = log_snr_of_told(torch.stack(seen)[:, 0])
    torch.testing.assert_close(told, schedule.grid(4).time[0].clamp(-9, 9))
    assert told[0] == -9 and ((torch.stack(seen) >= 0) & (torch.stack(seen) <= 1000)).all()


def test_members_share_a_batch():
    values = {**schedule_of(Cosine()).values, "tau": torch.tensor([[0.7], [1.0], [2.0]], dtype=torch.float64)}
    together = drawn(Schedule(Cosine(), values), 5)
    alone = [drawn(schedule_of(Cosine(tau=tau)), 5) for tau in (0.7, 1.0, 2.0)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)
