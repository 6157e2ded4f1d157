"""Training on a GPU: recorded, compiled and both do what the plain step does. Skipped without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from genbo.bilevel.lower.denoising import Denoising
from genbo.bilevel.training.network_trainer import NetworkContext, NetworkTrainer
from genbo.diffusion.data import Data
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.unet import Unet
from genbo.diffusion.process import process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.seed import Seed, batch_of
from genbo.schedules.cosine import Cosine
from genbo.schedules.schedule import schedule_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

COSINE, OTHER = schedule_of(Cosine()), schedule_of(Cosine(tau=2.0))
WAYS = {
    "captured": {"capture": "on", "compile": "off"},
    "compiled": {"capture": "off", "compile": "on"},
    "both": {"capture": "on", "compile": "on"},
}


def trainer(**options: Any) -> NetworkTrainer:
    splits = Data("digits").open()
    network = Unet(channels=[16, 32], attention=True, classes=True, device="cuda").open(splits.train)
    told = {"bf16": "off", "batch": 32, "warmup": 4, **options}
    pixels = splits.train.to(network.device)
    return Denoising(**told).begin(NetworkContext(network.module, pixels.signed(), pixels.labels, network.classes))


def far(one: NetworkTrainer, other: NetworkTrainer) -> float:
    """The weights' distance, of the way that they have come."""
    start = trainer(capture="off", compile="off")
    begun = torch.cat([p.detach().flatten() for p in start.params])
    mine, theirs = (torch.cat([p.detach().flatten() for p in of.params]) for of in (one, other))
    return float((mine - theirs).norm() / (mine - begun).norm())


def test_small_networks_are_recorded_unasked():
    assert trainer().captures
    assert not trainer(capture="off").captures


@pytest.mark.parametrize("noise_levels", ["broad", "schedule"])
@pytest.mark.parametrize("way", WAYS)
def test_a_step_trains_the_same_however_it_is_launched(way, noise_levels):
    plain = trainer(capture="off", compile="off", noise_levels=noise_levels)
    fast = trainer(**WAYS[way], noise_levels=noise_levels)
    for one in (plain, fast):
        one.train(COSINE, 4, Seed(0))
        kept = one.state()
        one.train(OTHER, 3, Seed(1))
        one.load(kept)
        one.train(OTHER, 4, Seed(2))
    assert far(fast, plain) < 0.05
    other = trainer(capture="off", compile="off", noise_levels=noise_levels)
    other.train(OTHER, 8, Seed(3))
    assert far(other, plain) > 0.2  # of other minibatches


@pytest.mark.parametrize("way", ["captured", "both"])
def test_samples_are_drawn_from_the_average_as_it_stands(way):
    one = trainer(**WAYS[way])
    batch = batch_of(["3", "8"], 6, Seed(0))
    for _ in range(2):
        one.train(COSINE, 20, Seed(one.steps))
        recorded = process_of(one.network(COSINE), Ddim(steps=4), Plain(weight=2.0))
        plain = process_of(one.network(COSINE, one.average), Ddim(steps=4), Plain(weight=2.0))
        with torch.no_grad():
            torch.testing.assert_close(sample(recorded, batch), sample(plain, batch), atol=5e-3, rtol=0)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_a_sampler_that_remembers_is_not_shown_the_next_call(prediction):
    one = trainer(prediction=prediction)
    one.train(COSINE, 20, Seed(0))
    batch = batch_of(["3", "8"], 6, Seed(0))
    drawn = []
    for module in (None, one.average):
        process = process_of(one.network(COSINE, module), Dpmpp(steps=5), Plain(weight=1.0))
        with torch.no_grad():
            drawn.append(sample(process, batch))
    torch.testing.assert_close(*drawn, atol=5e-3, rtol=0)


def test_a_state_goes_on_in_a_new_recording():
    one, other = trainer(), trainer()
    one.train(COSINE, 4, Seed(0))
    other.load({name: x.cpu().contiguous() for name, x in one.state().items()})
    for of in (one, other):
        of.train(COSINE, 4, Seed(1))
    assert far(other, one) < 0.05
