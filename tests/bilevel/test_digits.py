"""Pictures, in small: a UNet2DModel on scikit-learn's digits, its schedule learned, and diffusers without genbo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from sklearn.datasets import load_digits
from torch import Tensor

from genbo.bilevel.lower.denoising import Denoising
from genbo.bilevel.optimizers.adam import Adam
from genbo.bilevel.training.network_trainer import NetworkContext, NetworkTrainer
from genbo.bilevel.tunables.noise_schedule import NoiseSchedule
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.indexed import indexed
from genbo.diffusion.process import process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.seed import Batch, Seed, batch_of
from genbo.schedules.cosine import Cosine
from genbo.schedules.schedule import schedule_of

STEPS = 5
CLASSES = tuple("0123456789")
BAD = NoiseSchedule(parameters=["end", "tau"], start={"end": 0.6}, normalised=False)


def network(classes: int | None = None) -> UNet2DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            mid_block_type=None,
            num_class_embeds=classes,
        )


def digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    order = torch.randperm(len(found.images), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(found.images).float()[order, None] / 8 - 1, torch.from_numpy(found.target)[order]


@pytest.fixture(scope="module")
def trained() -> NetworkTrainer:
    images, _ = digits()
    trainer = Denoising(batch=48, lr=3e-3, warmup=20, ema=0.97).begin(NetworkContext(network(), images[:1000]))
    trainer.train(schedule_of(Cosine()), 100, Seed(0))
    return trainer


def kernel_distance(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased squared MMD of pixels under (x.y / d + 1)^3."""
    x, y = x.flatten(1).double(), y.flatten(1).double()
    of_x, of_y, both = ((a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (of_x, of_y)]
    return within[0] + within[1] - 2 * both.mean()


def drawn(trainer: NetworkTrainer, tunable: NoiseSchedule, phi: Tensor, batch: Batch) -> Tensor:
    model = trainer.network(tunable.schedule(tunable.first(STEPS)))
    return sample(tunable.embed(process_of(model, Ddim(steps=STEPS), Plain(weight=1.0)), phi), batch)


def test_a_bad_schedule_is_brought_back_to_the_level_of_the_default(trained):
    """`end` 0.6 leaves a third of the power at the end of time. The network is the same one throughout."""
    images, _ = digits()
    validation, test = images[1000:1400], images[1400:]
    u, state = BAD.coordinates(BAD.first(STEPS)), {}
    for k in range(10):
        u = u.detach().requires_grad_()
        phi = BAD.value(u)
        upper = -kernel_distance(drawn(trained, BAD, phi, batch_of([""], 48, Seed(1).child(k))), validation)
        (grad,) = torch.autograd.grad(upper, u)
        u, state = Adam(lr=0.6).step(u.detach(), grad, state, k / 10)

    held_out = batch_of([""], 200, Seed(2))
    default = NoiseSchedule()
    with torch.no_grad():
        start, tuned, usual = (
            kernel_distance(drawn(trained, tunable, phi, held_out), test).item()
            for tunable, phi in (
                (BAD, BAD.first(STEPS)),
                (BAD, BAD.value(u)),
                (default, default.first(STEPS)),
            )
        )
    assert start > 0.1
    assert tuned < start / 5
    assert tuned < usual + 0.02


def test_diffusers_samples_the_same_pictures_without_genbo(trained, tmp_path: Path):
    """Saved with its schedule's betas, and told the index of a step in place of the log-SNR."""
    schedule = schedule_of(Cosine(tau=1.5))
    told = indexed(trained.average, schedule, train_steps=1000, within=trained.loss.within)
    scheduler = DDIMScheduler(
        trained_betas=schedule.trained_betas(1000),
        timestep_spacing="trailing",
        prediction_type="v_prediction",
        clip_sample=False,
    )
    DDIMPipeline(told, scheduler).save_pretrained(tmp_path, safe_serialization=True)
    pipeline = DDIMPipeline.from_pretrained(tmp_path, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(
        batch_size=4, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(3), output_type="np"
    ).images

    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    model = trained.network(schedule)
    process = process_of(model, Ddim(steps=STEPS), Plain(weight=1.0))
    with torch.no_grad():
        ours = model.decode(sample(process, Batch(("",) * 4, (0, 1, 2, 3)), start=noise))
    torch.testing.assert_close(ours.permute(0, 2, 3, 1), torch.from_numpy(pictures), atol=1e-3, rtol=1e-3)
    assert ours.std() > 0.1


def test_only_what_has_sinusoids_can_be_told_the_index():
    with pytest.raises(TypeError, match="positional"):
        indexed(torch.nn.Linear(1, 1), schedule_of(Cosine()), train_steps=10, within=(-10.0, 10.0))


def test_classes_are_told_and_left_out():
    """Ten digits and a label for none: guided samples are those of both halves together."""
    images, labels = digits()
    trainer = Denoising(batch=64, lr=3e-3, warmup=10, ema=0.9).begin(
        NetworkContext(network(classes=11), images[:600], labels[:600], CLASSES)
    )
    first = trainer.train(schedule_of(Cosine()), 10, Seed(0))
    assert trainer.train(schedule_of(Cosine()), 30, Seed(1)) < first
    assert trainer.draw(Seed(0)).labels.max() == 10  # type: ignore[union-attr]
    process = process_of(trainer.network(schedule_of(Cosine())), Ddim(steps=2), Plain(weight=2.0))
    with torch.no_grad():
        one, two = (sample(process, Batch((label,) * 2, (5, 6))) for label in "38")
        assert (one - two).abs().max() > 1e-3
    with pytest.raises(ValueError, match="there is no 'seven'"):
        sample(process, Batch(("seven",), (1,)))
