"""Stops at times of one's own equal diffusers' at the same times, and survive a folder."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from genbo.bilevel.tunables.timesteps import Timesteps
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.process import Process, Timed, process_of
from genbo.diffusion.refused import Refused
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.samplers.euler import Euler
from genbo.diffusion.seed import Batch
from genbo.diffusion.tuned import export, load, settings
from tests.diffusion.test_pipelines import PROMPTS, SEEDS, TOLERANCE, diffusers_images

TIMES = [999, 871, 640, 402, 133, 9]
LEVELS = ("time", "alpha_t", "sigma_t", "alpha_s", "sigma_s")


@pytest.fixture(scope="module")
def model(tiny_sd):
    return Diffusers(pretrained=str(tiny_sd), device="cpu").open()


@pytest.fixture
def configured(model):
    """The model under other scheduler settings."""
    own = model.pipeline.scheduler

    def configure(**settings):
        model.pipeline.scheduler = type(own).from_config({**own.config, **settings})
        model.prediction = str(model.pipeline.scheduler.config.prediction_type)
        return model

    yield configure
    model.pipeline.scheduler, model.prediction = own, str(own.config.prediction_type)


def stopping(model, sampler, times) -> Process:
    process = process_of(model, sampler, Plain(weight=3.0))
    return process.with_grid(model.grid_at(sampler, torch.tensor([times], dtype=torch.float64)))


def images(process: Process) -> torch.Tensor:
    with torch.no_grad():
        return process.model.decode(sample(process, Batch(PROMPTS, SEEDS)))


SETTINGS = [
    {},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "linspace"},
    {"set_alpha_to_one": True},
    {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
]


@pytest.mark.parametrize("sampler", [Ddim(steps=5), Ddim(steps=10), Euler(steps=6), Dpmpp(steps=6)], ids=repr)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_at_the_models_own_times_it_is_the_models_own_grid(configured, sampler, settings):
    """Where DDIM's own steps join, as trailing ones do that divide 1,000; in float32, as diffusers keeps levels."""
    model = configured(**settings)
    assert isinstance(model, Timed)
    own = model.grid(sampler)
    again = model.grid_at(sampler, own.time)
    joined = torch.equal(own.alpha_s[:, :-1], own.alpha_t[:, 1:])
    assert joined or isinstance(sampler, Ddim)
    for name in LEVELS if joined else LEVELS[:3]:
        torch.testing.assert_close(getattr(again, name), getattr(own, name), rtol=0, atol=1e-6)
    assert again.noise_scale == pytest.approx(own.noise_scale, abs=1e-6)
    if settings.get("timestep_spacing") == "trailing" and isinstance(sampler, Ddim):
        assert joined


@pytest.mark.parametrize("sampler", [Euler(steps=6), Dpmpp(steps=6)], ids=repr)
@pytest.mark.parametrize("settings", SETTINGS[:3] + SETTINGS[4:], ids=str)
def test_images_are_diffusers_own_at_the_same_timesteps(configured, sampler, settings):
    model = configured(**settings)
    process = stopping(model, sampler, TIMES)
    assert model.arguments(sampler, process.grid) == {"timesteps": TIMES}
    expected = diffusers_images(model, sampler, guidance_scale=3.0, timesteps=TIMES)
    assert expected.std() > 0.02
    torch.testing.assert_close(images(process), expected, rtol=0, atol=TOLERANCE)


def test_between_training_steps_diffusers_takes_sigmas(model):
    sampler, times = Euler(steps=4), [999.0, 700.25, 300.5, 40.75]
    process = stopping(model, sampler, times)
    found = model.arguments(sampler, process.grid)
    assert list(found) == ["sigmas"] and len(found["sigmas"]) == 5 and found["sigmas"][-1] == 0
    expected = diffusers_images(model, sampler, guidance_scale=3.0, sigmas=found["sigmas"])
    torch.testing.assert_close(images(process), expected, rtol=0, atol=TOLERANCE)


def test_of_ddim_at_times_that_its_scheduler_does_not_take_they_are_eulers(configured):
    """The same step in other units: from the same noise, to the image itself, at the same times."""
    model = configured(set_alpha_to_one=True)  # and leading steps, where both begin with noise of variance 1
    process = stopping(model, Ddim(steps=6), TIMES)
    assert model.arguments(Ddim(steps=6), process.grid) is None
    expected = diffusers_images(model, Euler(steps=6), guidance_scale=3.0, timesteps=TIMES)
    torch.testing.assert_close(images(process), expected, rtol=0, atol=TOLERANCE)


def test_karras_is_diffusers_own(model, configured):
    """As its Euler has them, from its linspace, whose ends are the model's."""
    process = process_of(model, Euler(steps=7), Plain(weight=3.0))
    stops = Timesteps("karras").of(process)
    ours = stops.embed(process, stops.first(7)[None]).grid
    theirs = configured(use_karras_sigmas=True, timestep_spacing="linspace").scheduler(Euler(steps=7))
    theirs.set_timesteps(7)
    torch.testing.assert_close((ours.sigma_t / ours.alpha_t)[0], theirs.sigmas[:-1].double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.time[0], theirs.timesteps.double(), rtol=0, atol=0.05)


def test_a_pipeline_that_makes_its_own_sigmas_is_given_none(configured):
    model = configured(use_karras_sigmas=True)
    assert model.arguments(Dpmpp(steps=6), stopping(model, Dpmpp(steps=6), TIMES).grid) is None


def test_ays_is_the_list_in_training_steps(model):
    from diffusers.schedulers import AysSchedules

    stops = Timesteps("ays").of(process_of(model, Dpmpp(steps=10), Plain(weight=3.0)))
    listed = torch.tensor(AysSchedules["StableDiffusionTimesteps"], dtype=torch.float64)
    assert (torch.tensor(stops.start) - listed).abs().max() < 1


@pytest.mark.parametrize("sampler", [Ddim(steps=6), Euler(steps=6), Dpmpp(steps=6)], ids=repr)
def test_gradients_reach_every_time(model, sampler):
    process = process_of(model, sampler, Plain(weight=3.0))
    stops = Timesteps("trailing").of(process)
    phi = stops.first(6).requires_grad_()
    x = sample(stops.embed(process, phi[None]), Batch(PROMPTS[:1], SEEDS[:1]))
    (grad,) = torch.autograd.grad(x.square().sum(), phi)
    assert grad.isfinite().all() and (grad != 0).all()


def test_a_gradient_is_a_difference(model):
    """In the middle of a training step's line, at float32's own precision."""
    process = process_of(model, Dpmpp(steps=3), Plain(weight=3.0))
    stops = Timesteps([999.0, 600.5, 200.5]).of(process)

    def mean(phi: torch.Tensor) -> torch.Tensor:
        return sample(stops.embed(process, phi[None]), Batch(PROMPTS, SEEDS)).square().mean()

    phi = stops.first(3).requires_grad_()
    (grad,) = torch.autograd.grad(mean(phi), phi)
    with torch.no_grad():
        moves = 0.4 * torch.eye(2, dtype=torch.float64)
        fine = torch.stack([(mean(phi + h) - mean(phi - h)) / 0.8 for h in moves])
    torch.testing.assert_close(grad, fine.double(), rtol=0.05, atol=2e-6)


@pytest.mark.parametrize("sampler", [Ddim(steps=6), Dpmpp(steps=6)], ids=repr)
def test_a_tuned_folder_stops_where_it_was_tuned_to(model, sampler, tmp_path):
    process = stopping(model, sampler, TIMES)
    assert "timesteps" not in settings(process_of(model, sampler, Plain(weight=3.0)))
    export(process, tmp_path / "tuned", {})
    document = json.loads((tmp_path / "tuned" / "genbo.json").read_text())
    assert document["timesteps"] == TIMES
    assert document["diffusers"] == (None if isinstance(sampler, Ddim) else {"timesteps": TIMES})
    tuned = load(tmp_path / "tuned", device="cpu")
    for name in LEVELS:
        assert torch.equal(getattr(tuned.process.grid, name), getattr(process.grid, name))
    torch.testing.assert_close(images(tuned.process), images(process), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (TIMES[:3], "list of 6 numbers"),
        ("often", "list of 6 numbers"),
        ([*TIMES[:5], "0"], "list of 6 numbers"),
        ([1500, *TIMES[1:]], "do not lead from noise to image"),
        (TIMES[::-1], "do not lead from noise to image"),
    ],
)
def test_times_of_a_damaged_folder_are_refused(model, times, said, tmp_path):
    export(stopping(model, Dpmpp(steps=6), TIMES), tmp_path / "tuned", {})
    place = tmp_path / "tuned" / "genbo.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "timesteps": times}))
    with pytest.raises(Refused, match=said):
        load(tmp_path / "tuned", device="cpu")


def test_times_are_told_as_they_are_in_half_precision_too(tiny_sd):
    model = Diffusers(pretrained=str(tiny_sd), device="cpu", dtype="bf16").open()
    told = []
    handle = model.unet.time_proj.register_forward_pre_hook(
        lambda module, given: told.append(given[0].unique().tolist())
    )
    images(stopping(model, Dpmpp(steps=6), TIMES))
    handle.remove()
    assert told == [[time] for time in TIMES]


def test_the_range_is_known_before_anything_is_loaded(tiny_sd, tmp_path):
    options = Diffusers(pretrained=str(tiny_sd), device="cpu")
    assert options.time_range == (999.0, 0.0)
    assert replace(options, pretrained=str(tmp_path)).time_range is None
    assert replace(options, pretrained="org/elsewhere").time_range is None
