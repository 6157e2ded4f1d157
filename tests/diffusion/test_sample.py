"""What the sampler begins from: its own noise, or noise that is given."""

from __future__ import annotations

import pytest
import torch

from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.process import process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.seed import Batch, Noise

BATCH = Batch(("right", "left", "right"), (1, 2, 3))


def test_given_noise_stands_in_for_the_batchs_own():
    for sampler in (Dpmpp(steps=12), Ddim(steps=12, eta=1.0)):
        process = process_of(Gaussian().open(), sampler, Plain(weight=1.0))
        own = Noise(BATCH.seeds, process.model.shape).draw()
        torch.testing.assert_close(sample(process, BATCH, start=own), sample(process, BATCH), rtol=0, atol=0)


def test_gradients_reach_the_given_noise():
    """The unguided chain of a Gaussian is linear in its noise, so the gradient is the factor of any two differences."""
    process = process_of(Gaussian().open(), Dpmpp(steps=12), Plain(weight=1.0))
    z = Noise(BATCH.seeds, process.model.shape).draw().double().requires_grad_()
    for checkpoint in (False, True):
        (grad,) = torch.autograd.grad(sample(process, BATCH, start=z, checkpoint=checkpoint).sum(), z)
        moved = sample(process, BATCH, start=z + 1) - sample(process, BATCH, start=z)
        torch.testing.assert_close(grad, moved)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 1), (7, 1, 1), (3, 5, 1), (1, 4, 4), (3, 5, 5)], ids=str)
@pytest.mark.parametrize("draws", [1, 2, 20])
def test_noise_is_each_seeds_own_draw_by_draw(shape, draws):
    """Several draws are made at once where they are small, and of the same numbers."""
    generators = [torch.Generator().manual_seed(seed) for seed in BATCH.seeds]
    noise = Noise(BATCH.seeds, shape, draws)
    for _ in range(draws):
        expected = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        torch.testing.assert_close(noise.draw(), expected, rtol=0, atol=0)
    with pytest.raises(IndexError, match=f"no more than {draws} draws"):
        noise.draw()
