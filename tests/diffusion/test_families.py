"""Every family draws what its pipeline's own `__call__` draws; docs/models.md lists what was compared.

With GENBO_WRITE_PAGE=1 the table of the page is written anew from the differences that are seen.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.process import Process, process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.ddpm import Ddpm
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.samplers.euler import Euler
from genbo.diffusion.seed import Batch

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
SEEDS = (11, 12, 13)
WORDS, CLASSES = ("a red apple", "a dog", "a blue house"), ("1", "999", "207")
TOLERANCE = 1e-4
SIZE = 16
OF_CLASSES = ("dit",)
UNTOLD = ("ddpm", "ddim")
SIZED = ("flux",)  # has no size of its own in its config


@dataclass(frozen=True)
class Case:
    """One comparison: a family under scheduler settings, by one sampler."""

    family: str
    sampler: Any
    settings: tuple[tuple[str, Any], ...] = ()
    guidance: float = 3.0
    options: tuple[tuple[str, Any], ...] = ()
    call: dict[str, Any] = field(default_factory=dict, hash=False, compare=False)

    @property
    def prediction(self) -> str:
        return str(dict(self.settings).get("prediction_type", "flow" if self.family in FLOWS else "epsilon"))

    @property
    def told(self) -> str:
        """The settings and options in a few words."""
        named = {**dict(self.settings), **dict(self.options)}
        return ", ".join(f"{name}: {value}" for name, value in named.items() if name != "prediction_type")

    @property
    def row(self) -> str:
        sampler = repr(self.sampler).lower().replace("'", "")
        return f"| {self.family} | `{sampler}` | {self.prediction} | {self.guidance:g} | {self.told} |"

    def __str__(self) -> str:
        return re.sub(r"[^\w.=-]+", "-", self.row).strip("-")


FLOWS = ("stable_diffusion_3", "flux")
SAMPLERS = (Ddim(steps=7), Ddim(steps=5, eta=0.6), Euler(steps=7), Dpmpp(steps=7))
V, X_0 = (("prediction_type", "v_prediction"),), (("prediction_type", "sample"),)
NO_SNR = (*V, ("rescale_betas_zero_snr", True), ("timestep_spacing", "trailing"))
KARRAS = (("use_karras_sigmas", True),)


def cases() -> Iterator[Case]:
    for family in ("stable_diffusion", "stable_diffusion_xl"):
        for sampler in SAMPLERS:
            yield from (Case(family, sampler, settings) for settings in ((), V))
        yield from (Case(family, sampler, X_0) for sampler in (SAMPLERS[0], SAMPLERS[3]))
        yield from (Case(family, sampler, KARRAS) for sampler in SAMPLERS[2:])
        yield Case(family, SAMPLERS[0], NO_SNR)
        yield Case(family, SAMPLERS[2], guidance=1.0)
    yield Case(
        "stable_diffusion_xl", SAMPLERS[2], options=(("negative_prompt", "a cat"), ("height", 24), ("width", 16))
    )
    for sampler in SAMPLERS:
        yield Case("pixart_sigma", sampler)
    yield Case("pixart_sigma", SAMPLERS[3], options=(("negative_prompt", "a cat"),))
    for sampler in (SAMPLERS[0], SAMPLERS[3]):  # with Euler, diffusers' DiTPipeline forgets to scale its noise
        yield from (Case("dit", sampler, settings) for settings in ((), V))
    for settings in ((), (("shift", 1.0),), (("use_dynamic_shifting", True),), KARRAS, (("shift_terminal", 0.1),)):
        yield Case("stable_diffusion_3", Euler(steps=6), settings)
    yield Case("stable_diffusion_3", Euler(steps=4), guidance=1.0, options=(("negative_prompt", "a cat"),))
    yield Case("flux", Euler(steps=6), guidance=1.0)
    yield Case("flux", Euler(steps=6), guidance=1.0, options=(("distilled_guidance", 2.0),))
    yield Case("flux", Euler(steps=6), guidance=3.0, options=(("negative_prompt", "a cat"),))
    yield Case("flux", Euler(steps=5), (("time_shift_type", "linear"),), guidance=1.0)
    yield Case("flux", Euler(steps=5), (("use_dynamic_shifting", False),), guidance=1.0)
    for sampler in (Ddpm(steps=6), Ddpm(steps=6, variance="large"), Ddim(steps=7), Dpmpp(steps=7)):
        yield from (Case("ddpm", sampler, settings, guidance=1.0) for settings in ((), V))
    for sampler in (Ddim(steps=7), Ddim(steps=5, eta=0.6)):
        yield from (Case("ddim", sampler, settings, guidance=1.0) for settings in ((), X_0))


CASES = list(cases())


def opened(folder: Path, family: str, **options: Any) -> Any:
    size = {"height": SIZE, "width": SIZE} if family in SIZED else {}
    return Diffusers(pretrained=str(folder), device="cpu", **{**size, **options}).open()


def configured(model: Any, settings: dict[str, Any]) -> Any:
    """The model under other scheduler settings."""
    own = model.pipeline.scheduler
    model.pipeline.scheduler = type(own).from_config({**own.config, **settings})
    model.prediction = settings.get("prediction_type", model.prediction)
    return model


def prompts_of(family: str) -> tuple[str, ...]:
    return CLASSES if family in OF_CLASSES else WORDS


def genbo_images(process: Process, prompts: tuple[str, ...]) -> torch.Tensor:
    with torch.no_grad():
        return process.model.decode(sample(process, Batch(prompts, SEEDS)))


def diffusers_images(model: Any, family: str, sampler: Any, guidance: float, **more: Any) -> torch.Tensor:
    """What the pipeline's own __call__ draws, told everything by its own names."""
    pipeline = model.pipeline
    taken = inspect.signature(pipeline.__call__).parameters
    height, width = model.pixels
    given = {
        "num_inference_steps": sampler.steps,
        "generator": [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS],
        "output_type": "pt",
        "prompt": list(WORDS),
        "class_labels": [int(name) for name in CLASSES],
        "batch_size": len(SEEDS),
        "height": height,
        "width": width,
        "guidance_scale": guidance,
        "eta": getattr(sampler, "eta", 0.0),
        "use_resolution_binning": False,
        "clean_caption": False,
    }
    if family == "flux":
        own = model.options.distilled_guidance
        given |= {"true_cfg_scale": guidance, "guidance_scale": 3.5 if own is None else own}
    if negative := model.negative_prompt:
        given["negative_prompt"] = negative if family == "pixart_sigma" else [negative] * len(SEEDS)
    own, pipeline.scheduler = pipeline.scheduler, model.scheduler(sampler)
    try:
        return pipeline(**{name: value for name, value in {**given, **more}.items() if name in taken}).images
    finally:
        pipeline.scheduler = own


@pytest.mark.parametrize("case", CASES, ids=str)
def test_images_are_diffusers_own(family_folder, case):
    model = configured(opened(family_folder(case.family), case.family, **dict(case.options)), dict(case.settings))
    expected = diffusers_images(model, case.family, case.sampler, case.guidance)
    assert expected.std() > 0.02  # a black image equals every black image
    assert (expected[0] - expected[1]).abs().max() > 0.02
    process = process_of(model, case.sampler, Plain(weight=case.guidance))
    difference = float((genbo_images(process, prompts_of(case.family)) - expected).abs().max())
    assert difference <= TOLERANCE
    SEEN[case.row] = difference


SEEN: dict[str, float] = {}
