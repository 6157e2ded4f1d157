"""Every setting of every scheduler that genbo samples by is followed as diffusers does, or refused in a sentence.

The reference is a plain pipeline whose scheduler was made with the setting; nothing of genbo's touches it.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import re
import warnings
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import diffusers
import pytest
import torch

from genbo.diffusion import scheduler_settings, scheduler_stops
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.process import process_of
from genbo.diffusion.refused import Refused
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.ddpm import Ddpm
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.samplers.euler import Euler
from genbo.diffusion.seed import Batch

BATCH = Batch(("a red apple",), (11,))
TOLERANCE = 1e-4
STEPS = 5
BASE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SCHEDULERS: dict[str, tuple[str, Any, dict[str, Any]]] = {  # class -> family, sampler, what stands beside
    "DDIMScheduler": ("stable_diffusion_xl", Ddim(steps=STEPS), {**BASE, "clip_sample": False}),
    "DDPMScheduler": ("ddpm", Ddpm(steps=STEPS), {}),
    "EulerDiscreteScheduler": ("stable_diffusion", Euler(steps=STEPS), BASE),
    "DPMSolverMultistepScheduler": ("stable_diffusion", Dpmpp(steps=STEPS), BASE),
    "FlowMatchEulerDiscreteScheduler": ("stable_diffusion_3", Euler(steps=STEPS), {}),
}
BETAS = torch.linspace(0.001, 0.03, 200).tolist()
VALUES: dict[str, list[Any]] = {  # where the signature does not list them
    "num_train_timesteps": [400],
    "beta_start": [0.002],
    "beta_end": [0.03],
    "beta_schedule": ["linear", "squaredcos_cap_v2", "sigmoid", "laplace"],
    "trained_betas": [BETAS],
    "prediction_type": ["v_prediction", "sample", "flow_prediction", "original_sample"],
    "clip_sample_range": [0.4],
    "dynamic_thresholding_ratio": [0.8],
    "sample_max_value": [1.5],
    "steps_offset": [0, 3],
    "solver_order": [1, 3, 4],
    "flow_shift": [3.0],
    "lambda_min_clipped": [-3.0],
    "interpolation_type": ["log_linear"],
    "sigma_min": [0.1],
    "sigma_max": [9.0],
    "shift": [3.0],
    "base_shift": [0.3, None],
    "max_shift": [1.4, None],
    "base_image_seq_len": [4],
    "max_image_seq_len": [64],
    "shift_terminal": [0.1],
}
TRAILING = {"timestep_spacing": "trailing"}
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
BESIDE: dict[str, list[dict[str, Any]]] = {  # what a setting needs to do anything, tried as well
    "trained_betas": [{}, {"num_train_timesteps": len(BETAS)}],
    "clip_sample_range": [{"clip_sample": True}],
    "solver_type": [{}, {"solver_order": 2, **SIGMA_MIN}],
    "lower_order_final": [{}, SIGMA_MIN, {**SIGMA_MIN, "solver_order": 3}],
    "euler_at_final": [{}, SIGMA_MIN],
    "final_sigmas_type": [{}, {"solver_order": 3, "lower_order_final": False}],
    "algorithm_type": [SIGMA_MIN],
    "sigma_min": [{"use_karras_sigmas": True}],
    "sigma_max": [{"use_exponential_sigmas": True}],
    "rescale_betas_zero_snr": [{}, {"prediction_type": "v_prediction", **TRAILING}, TRAILING],
    "timestep_type": [{}, {"prediction_type": "v_prediction", "use_karras_sigmas": True}],
    "base_shift": [{}, {"use_dynamic_shifting": True}],
    "max_shift": [{}, {"use_dynamic_shifting": True}],
    "base_image_seq_len": [{"use_dynamic_shifting": True}],
    "max_image_seq_len": [{"use_dynamic_shifting": True}],
    "time_shift_type": [{}, {"use_dynamic_shifting": True}],
    "steps_offset": [{"timestep_spacing": "leading"}],
    "timestep_spacing": [{}, {"variance_type": "fixed_large"}],
}


def parameters(name: str) -> dict[str, inspect.Parameter]:
    found = inspect.signature(getattr(diffusers, name).__init__, eval_str=True).parameters
    return {n: p for n, p in found.items() if n != "self"}


def values(name: str, parameter: inspect.Parameter) -> list[Any]:
    """Other values than diffusers' default."""
    if name in VALUES:
        return [value for value in VALUES[name] if value != parameter.default]
    if isinstance(parameter.default, bool):
        return [not parameter.default]
    listed = [x for arg in (parameter.annotation, *get_args(parameter.annotation)) for x in get_args(arg)]
    texts = [x for x in listed if isinstance(x, str)]
    assert texts, f"{name}: a new setting of diffusers; give it a value here, and a place in scheduler_settings"
    return [x for x in texts if x != parameter.default]


def cases() -> Iterator[Any]:
    for name in SCHEDULERS:
        known = parameters(name)
        for setting, parameter in known.items():
            for value in values(setting, parameter):
                for beside in BESIDE.get(setting, [{}]):
                    found = {**{k: v for k, v in beside.items() if k in known}, setting: value}
                    told = "list" if isinstance(value, list) else value
                    more = "-".join(f"{k}={v}" for k, v in found.items() if k != setting)
                    yield pytest.param(name, setting, found, id=f"{name}-{setting}={told}-{more}".strip("-"))


@cache
def opened(folder: Path) -> Any:
    return Diffusers(pretrained=str(folder), device="cpu").open()


def with_scheduler(model: Any, scheduler: Any) -> Any:
    """The model of a pipeline that was made with this scheduler, as `from_pretrained` makes one."""
    found, parts = copy.copy(model), {**model.pipeline.components, "scheduler": scheduler}
    options = {} if "text_encoder" not in parts else {"requires_safety_checker": False}
    taken = inspect.signature(type(model.pipeline).__init__).parameters
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found.pipeline = type(model.pipeline)(**parts, **{n: v for n, v in options.items() if n in taken})
    found.pipeline.set_progress_bar_config(disable=True)
    found.prediction = str(scheduler.config.get("prediction_type", "flow_prediction"))
    return found


def drawn(pipeline: Any, sampler: Any) -> torch.Tensor:
    """What the pipeline's own call draws: latents, or pixels where there are none."""
    taken = inspect.signature(pipeline.__call__).parameters
    latent = hasattr(pipeline, "vae")
    given = {
        "prompt": list(BATCH.prompts),
        "batch_size": 1,
        "num_inference_steps": sampler.steps,
        "generator": [torch.Generator().manual_seed(seed) for seed in BATCH.seeds],
        "guidance_scale": 1.0,
        "output_type": "latent" if latent else "np",
        "height": 16,
        "width": 16,
    }
    found = pipeline(**{name: value for name, value in given.items() if name in taken}).images
    return found if latent else torch.from_numpy(found).permute(0, 3, 1, 2)


def sampled(model: Any, sampler: Any) -> torch.Tensor:
    with torch.no_grad():
        found = sample(process_of(model, sampler, Plain(1.0)), BATCH)
        return found if model.vae is not None else model.decode(found)


def made(name: str, settings: dict[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers, name)(**settings)


@pytest.mark.parametrize(("name", "setting", "settings"), cases())
def test_a_setting_is_followed_or_refused(family_folder, name, setting, settings):
    family, sampler, base = SCHEDULERS[name]
    base = {k: v for k, v in base.items() if k in parameters(name)}
    try:
        scheduler = made(name, {**base, **settings})
    except (ValueError, NotImplementedError):
        return  # diffusers itself makes none: a folder that says so does not load
    model = with_scheduler(opened(family_folder(family)), scheduler)
    said = scheduler_settings.mistakes(json.loads(scheduler.to_json_string()), sampler)
    try:
        found = sampled(model, sampler)
    except Refused as refused:
        sentence = str(refused)
        assert sentence.count(";") >= 1 and len(sentence) > 40
        if said:
            assert f"{setting}: " in said[0] and said[0] in sentence
        return
    assert not said
    expected = drawn(model.pipeline, sampler)
    assert expected.isfinite().all() and expected.std() > 0.02
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize(
    "settings",
    [{"solver_type": "heun"}, SIGMA_MIN, {**SIGMA_MIN, "solver_order": 3}, {"solver_order": 3, "euler_at_final": True}],
    ids=str,
)
def test_an_order_is_lowered_at_the_end_of_few_steps_alone(family_folder, settings):
    """From 15 steps on diffusers keeps it; the walk above has 5."""
    model = with_scheduler(
        opened(family_folder("stable_diffusion")), made("DPMSolverMultistepScheduler", BASE | settings)
    )
    orders = {steps: model.grid(Dpmpp(steps=steps)).orders for steps in (1, 2, 14, 15)}
    most, to_zero = settings.get("solver_order", 2), settings.get("final_sigmas_type") != "sigma_min"
    assert orders[1] == (1,) and orders[2] == (1, 1) and orders[14][-2:] == (2, 1)
    assert orders[15][-2:] == (most, 1 if to_zero else most)
    for steps in (14, 15):
        expected = drawn(model.pipeline, Dpmpp(steps=steps))
        torch.testing.assert_close(sampled(model, Dpmpp(steps=steps)), expected, rtol=0, atol=TOLERANCE)


def test_a_walk_over_settings_both_follows_and_refuses(family_folder):
    """The settings that public reports were about, each by its own fate."""
    known = [(case.values[0], case.values[1], case.values[2][case.values[1]]) for case in cases()]
    refused = {
        ("DPMSolverMultistepScheduler", "algorithm_type", "sde-dpmsolver++"),
        ("DPMSolverMultistepScheduler", "use_flow_sigmas", True),
        ("DDIMScheduler", "thresholding", True),
        ("DDPMScheduler", "variance_type", "learned_range"),
        ("FlowMatchEulerDiscreteScheduler", "stochastic_sampling", True),
    }
    followed = {
        ("DPMSolverMultistepScheduler", "solver_type", "heun"),
        ("DPMSolverMultistepScheduler", "solver_order", 3),
        ("DPMSolverMultistepScheduler", "lower_order_final", False),
        ("EulerDiscreteScheduler", "final_sigmas_type", "sigma_min"),
        ("DDPMScheduler", "variance_type", "fixed_large"),
    }
    assert refused | followed <= {k for k in known if not isinstance(k[2], list)}
    for name, setting, value in refused | followed:
        _, sampler, base = SCHEDULERS[name]
        config = {**base, "_class_name": name, setting: value}
        assert bool(scheduler_settings.mistakes(config, sampler)) == ((name, setting, value) in refused), setting


@pytest.mark.parametrize("name", SCHEDULERS)
def test_no_setting_of_diffusers_is_missing_from_the_table(name):
    assert scheduler_settings.UNDERSTOOD[name].strangers(iter(parameters(name))) == []


def test_a_setting_of_a_newer_diffusers_is_refused_where_it_is_in_use(family_folder, monkeypatch):
    model = opened(family_folder("stable_diffusion"))
    known = scheduler_settings.UNDERSTOOD["DDIMScheduler"]
    less = scheduler_settings.Understood(known.followed - {"set_alpha_to_one"}, known.only, known.idle)
    monkeypatch.setattr(scheduler_settings, "UNDERSTOOD", {**scheduler_settings.UNDERSTOOD, "DDIMScheduler": less})
    with pytest.raises(Refused, match="set_alpha_to_one: False, which genbo does not know"):
        with_scheduler(model, made("DDIMScheduler", {**BASE, "set_alpha_to_one": False})).grid(Ddim(steps=3))
    with_scheduler(model, made("DDIMScheduler", {**BASE, "set_alpha_to_one": True})).grid(Ddim(steps=3))


# -- schedulers of other classes ---------------------------------------------------------------------------------------

OTHERS = ("PNDMScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler", "LCMScheduler", "HeunDiscreteScheduler")
OTHERS += ("EulerAncestralDiscreteScheduler", "DPMSolverSinglestepScheduler", "KDPM2DiscreteScheduler", "TCDScheduler")


@pytest.mark.parametrize("sampler", [Ddim(steps=4), Euler(steps=4), Dpmpp(steps=4)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("family", ["stable_diffusion", "stable_diffusion_xl"])
def test_a_scheduler_that_is_replaced_is_diffusers_own_swap(family_folder, family, sampler):
    """`Other.from_config(pipeline.scheduler.config)`, loaded with the pipeline, as a tuned folder is."""
    kind = type(sampler).__name__.lower()
    for n, other in enumerate(OTHERS):
        least = {name: value for name, value in BASE.items() if name in parameters(other) and name != "steps_offset"}
        model = with_scheduler(opened(family_folder(family)), made(other, least))
        said = scheduler_settings.replaced(json.loads(model.pipeline.scheduler.to_json_string()), sampler)
        assert said is not None and other in said and kind in said
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            own = dict(model.pipeline.scheduler.config)
            fresh = {"clip_sample": False, **{k: v for k, v in own.items() if k != "_use_default_values"}}
            used = [k for k in own["_use_default_values"] if own[k] == parameters(other)[k].default]
            swapped = getattr(diffusers, scheduler_settings.CLASSES[kind]).from_config(
                {**fresh, "_use_default_values": used}
            )
        plain = with_scheduler(model, swapped)
        grid, wanted = model.grid(sampler), copy.deepcopy(plain.pipeline.scheduler)
        wanted.set_timesteps(sampler.steps)
        assert grid.time[0].tolist() == torch.as_tensor(wanted.timesteps).double().tolist(), other
        if n == 0:
            torch.testing.assert_close(sampled(model, sampler), drawn(plain.pipeline, sampler), rtol=0, atol=TOLERANCE)


def test_levels_that_are_made_otherwise_are_refused(family_folder):
    """CogVideoX shifts the levels of its betas, which no scheduler of genbo's kinds does."""
    betas = {name: BASE[name] for name in ("beta_start", "beta_end", "beta_schedule")}
    shifted = made("CogVideoXDDIMScheduler", betas)
    model = with_scheduler(opened(family_folder("stable_diffusion_xl")), shifted)
    for sampler in (Ddim(steps=3), Euler(steps=3), Dpmpp(steps=3)):
        with pytest.raises(Refused, match="CogVideoXDDIMScheduler has levels that no sampler"):
            model.grid(sampler)
    left_out = with_scheduler(model, made("LCMScheduler", {}))  # whose own betas are not DDIM's
    bar = left_out.pipeline.scheduler.alphas_cumprod.double()
    grid = left_out.grid(Ddim(steps=3))
    torch.testing.assert_close(grid.alpha_t[0] ** 2, bar[grid.time[0].long()], rtol=1e-5, atol=0)
    still = made("CogVideoXDDIMScheduler", {**betas, "snr_shift_scale": 1.0})
    assert with_scheduler(model, still).grid(Ddim(steps=3)).steps == 3


def test_schedulers_of_its_own_kinds_are_not_called_replaced():
    for name in scheduler_settings.CLASSES.values():
        assert scheduler_settings.replaced({"_class_name": name, "beta_schedule": "linear"}, Ddim()) is None
    assert scheduler_settings.replaced({"_class_name": scheduler_settings.FLOW}, Euler()) is None


@pytest.mark.parametrize(
    "given", [{}, {"steps_offset": 0}, {"clip_sample": True}, {"steps_offset": 0, "clip_sample": True}]
)
def test_settings_that_a_pipeline_corrects_are_the_corrected_ones(family_folder, given):
    """StableDiffusionPipeline sets steps_offset to 1 and clip_sample to False, whether a folder says them or not."""
    betas = {name: value for name, value in BASE.items() if name != "steps_offset"}
    model = with_scheduler(opened(family_folder("stable_diffusion")), made("DDIMScheduler", {**betas, **given}))
    expected = drawn(model.pipeline, Ddim(steps=STEPS))
    torch.testing.assert_close(sampled(model, Ddim(steps=STEPS)), expected, rtol=0, atol=TOLERANCE)
    config = model.scheduler(Ddim(steps=STEPS)).config
    corrected = scheduler_settings.SET_BY_PIPELINE[type(model.pipeline).__name__]
    assert {name: config[name] for name in corrected} == corrected


# -- numbers of steps --------------------------------------------------------------------------------------------------

SPACINGS = ("linspace", "leading", "trailing")
NUMBERS = [*range(1, 41), *range(43, 1000, 47), *range(495, 506), *range(990, 1004), 1500]


def reference(scheduler: Any, steps: int) -> list[float] | None:
    """diffusers' own times, or None where it has none or could not use them."""
    try:
        scheduler.set_timesteps(steps)
    except (ValueError, ZeroDivisionError):
        return None
    found = torch.as_tensor(scheduler.timesteps).double().tolist()
    last = scheduler.config.num_train_timesteps - 1
    if len(found) != steps or not all(a > b for a, b in pairwise(found)) or min(found) < 0:
        return None
    if not hasattr(scheduler, "sigmas"):
        return found if found[0] <= last else None
    if "Euler" not in type(scheduler).__name__ and not (scheduler.sigmas.diff() < 0).all():
        return None
    return found


@pytest.mark.parametrize("kind", scheduler_settings.CLASSES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_numbers_of_steps_are_diffusers_or_refused_by_check(kind, spacing):
    """Exactly: what works in diffusers is not refused, and what is named in the refusal works."""
    small = [(train, steps) for train in (37, 60) for steps in range(1, train + 4)]
    for train, steps in [*small, *((1000, steps) for steps in NUMBERS)]:
        for offset in (0, 1) if spacing == "leading" else (1,):
            config = {"num_train_timesteps": train, "timestep_spacing": spacing, "steps_offset": offset}
            wanted = reference(scheduler_of(kind, train, spacing, offset), steps)
            refused = scheduler_settings.steps_mistake(config, kind, steps)
            where = (train, steps, offset, refused)
            assert (wanted is None) == (refused is not None), where
            if wanted is not None:
                assert scheduler_stops.times(config, kind, steps) == pytest.approx(wanted, abs=1e-4), where
                continue
            most = int(re.search(r"; take (\d+),", refused)[1])
            assert reference(scheduler_of(kind, train, spacing, offset), most) is not None, where


@cache
def scheduler_of(kind: str, train: int, spacing: str, offset: int) -> Any:
    cls = getattr(diffusers, scheduler_settings.CLASSES[kind])
    return cls(num_train_timesteps=train, timestep_spacing=spacing, steps_offset=offset)


@pytest.mark.slow
@pytest.mark.parametrize("kind", scheduler_settings.CLASSES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_number_of_steps_is_diffusers_or_refused(kind, spacing):
    for steps in range(1, 1011):
        for offset in (0, 1):
            config = {"num_train_timesteps": 1000, "timestep_spacing": spacing, "steps_offset": offset}
            wanted = reference(scheduler_of(kind, 1000, spacing, offset), steps)
            assert (wanted is None) == (scheduler_settings.steps_mistake(config, kind, steps) is not None), (
                steps,
                offset,
            )
            assert wanted is None or scheduler_stops.times(config, kind, steps) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("sampler", [Ddim, Ddpm, Euler, Dpmpp])
@pytest.mark.parametrize("steps", [999, 1000, 1001])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_grid_of_many_steps_is_sound_or_refused(family_folder, sampler, steps, spacing):
    """Never an IndexError; with `set_alpha_to_one` or without."""
    for one in (True, False):
        settings = {**BASE, "clip_sample": False, "set_alpha_to_one": one, "timestep_spacing": spacing}
        model = with_scheduler(opened(family_folder("stable_diffusion")), made("DDIMScheduler", settings))
        try:
            grid = model.grid(sampler(steps=steps))
        except Refused as refused:
            assert "the largest number below that works" in str(refused)
            continue
        assert grid.steps == steps
        ratio = grid.sigma_t / grid.alpha_t
        assert all(table.isfinite().all() for table in (ratio, grid.alpha_s, grid.sigma_s, grid.time))
        assert math.isclose(float(grid.alpha_s[0, -1]), 1.0, abs_tol=1e-3)
