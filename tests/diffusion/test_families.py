"""Every family draws what its pipeline's own `__call__` draws; docs/models.md lists what was compared.

With GENBO_WRITE_PAGE=1 and `-m ''`, which adds the slow tests, the table of the page is written anew from the
differences that are seen.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from genbo.bilevel.tunables.distilled_guidance import DistilledGuidance
from genbo.bilevel.tunables.timesteps import Timesteps
from genbo.diffusion import scheduler_settings
from genbo.diffusion.adapt import Adapter, adapt
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.process import Process, process_of
from genbo.diffusion.refused import Refused
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.ddpm import Ddpm
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.samplers.euler import Euler
from genbo.diffusion.seed import Batch, Seed
from genbo.diffusion.tuned import export, load

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
TO_SIGMA_MIN = (("final_sigmas_type", "sigma_min"),)
HEUN = (("solver_type", "heun"),)
THIRD = (("solver_order", 3), ("lower_order_final", False), *TO_SIGMA_MIN)


def cases() -> Iterator[Case]:
    for family in ("stable_diffusion", "stable_diffusion_xl"):
        for sampler in SAMPLERS:
            yield from (Case(family, sampler, settings) for settings in ((), V))
        yield from (Case(family, sampler, X_0) for sampler in (SAMPLERS[0], SAMPLERS[3]))
        yield from (Case(family, sampler, KARRAS) for sampler in SAMPLERS[2:])
        yield Case(family, SAMPLERS[0], NO_SNR)
        yield Case(family, SAMPLERS[2], guidance=1.0)
    for settings in (HEUN, THIRD, (("timestep_spacing", "trailing"), *TO_SIGMA_MIN), (("use_lu_lambdas", True),)):
        yield Case("stable_diffusion", SAMPLERS[3], settings, guidance=1.0)
    for settings in (TO_SIGMA_MIN, (("interpolation_type", "log_linear"),), (("timestep_spacing", "leading"),)):
        yield Case("stable_diffusion", SAMPLERS[2], settings, guidance=1.0)
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
    yield Case("ddpm", Ddpm(steps=6), (("variance_type", "fixed_large"),), guidance=1.0)
    for sampler in (Ddpm(steps=6), Ddpm(steps=6, variance="large"), Ddim(steps=7), Dpmpp(steps=7)):
        yield from (Case("ddpm", sampler, settings, guidance=1.0) for settings in ((), V))
    for sampler in (Ddim(steps=7), Ddim(steps=5, eta=0.6)):
        yield from (Case("ddim", sampler, settings, guidance=1.0) for settings in ((), X_0))


CASES = list(cases())


def quick_first(of: Callable[[Case], Iterable[Any]]) -> list[Any]:
    """Every case. One that shows nothing that an earlier one has not shown is a slow test."""
    shown: set[Any] = set()
    found = []
    for case in CASES:
        new = set(of(case)) - shown
        shown |= new
        found.append(pytest.param(case, id=str(case), marks=() if new else pytest.mark.slow))
    return found


def drawing(case: Case) -> Iterator[Any]:
    """A family's sampler of each kind, and each sampler's settings: its arithmetic is the same in every family."""
    yield case.family, type(case.sampler)
    yield repr(case.sampler), case.settings, case.options


@cache
def kept(options: Diffusers) -> tuple[Any, Any, str]:
    """A model, opened once, with what `configured` changes of it."""
    model: Any = options.open()
    return model, model.pipeline.scheduler, model.prediction


def opened(folder: Path, family: str, **options: Any) -> Any:
    """The model as it was loaded."""
    size = {"height": SIZE, "width": SIZE} if family in SIZED else {}
    model, scheduler, prediction = kept(Diffusers(pretrained=str(folder), device="cpu", **{**size, **options}))
    model.pipeline.scheduler, model.prediction = scheduler, prediction
    return model


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


@pytest.mark.parametrize("case", quick_first(drawing))
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


# -- what each family allows -------------------------------------------------------------------------------------------

FAMILIES = (
    "stable_diffusion",
    "stable_diffusion_xl",
    "stable_diffusion_3",
    "flux",
    "pixart_sigma",
    "dit",
    "ddpm",
    "ddim",
)
GUIDED = FAMILIES[:6]


def quick_for(*quick: str) -> list[Any]:
    """Every family; the others are slow tests."""
    return [family if family in quick else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES]


NEGATIVE = {"flux": "a cat"}  # true guidance of a distilled model is asked for by a negative prompt


def usual(family_folder: Any, family: str, steps: int = 4, weight: Any = 3.0) -> Process:
    """A process of the family's own kind of sampler."""
    model = opened(family_folder(family), family, negative_prompt=NEGATIVE.get(family, ""))
    sampler = Euler(steps=steps) if family in FLOWS else Ddim(steps=steps)
    return process_of(model, sampler, Plain(weight=weight if family in GUIDED else 1.0))


@pytest.mark.parametrize("family", GUIDED)
def test_a_gradient_in_guidance_is_a_difference(family_folder, family):
    process = usual(family_folder, family, steps=3)
    batch, steps = Batch(prompts_of(family)[:2], SEEDS[:2]), torch.arange(3) == 1

    def score(weight: torch.Tensor) -> torch.Tensor:
        at = process.with_option("weight", (3.0 + weight * steps)[None])
        return sample(at, batch).double().square().mean()

    weight = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(score(weight), weight)
    with torch.no_grad():
        fine = (score(weight + 0.05) - score(weight - 0.05)) / 0.1
    assert grad != 0
    torch.testing.assert_close(grad, fine, rtol=0.02, atol=1e-6)


@pytest.mark.parametrize("family", ["stable_diffusion_xl", "stable_diffusion_3"])
def test_guidance_a_step_is_diffusers_callback(family_folder, family):
    weights = [2.0, 6.0, 3.0, 1.5]
    process = usual(family_folder, family, weight=weights)

    def next_weight(pipeline: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipeline._guidance_scale = weights[min(i + 1, 3)]
        return {}

    given = {"callback_on_step_end": next_weight, "callback_on_step_end_tensor_inputs": ["latents"]}
    expected = diffusers_images(process.model, family, process.sampler, weights[0], **given)
    torch.testing.assert_close(genbo_images(process, WORDS), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("stable_diffusion_xl", {}),
        ("pixart_sigma", {}),
        ("stable_diffusion_3", {}),
        ("stable_diffusion_3", {"use_dynamic_shifting": True}),
        ("flux", {}),
        ("flux", {"time_shift_type": "linear"}),
        ("flux", {"use_dynamic_shifting": False}),
    ],
    ids=str,
)
def test_a_call_with_the_arguments_stops_at_the_times(family_folder, family, settings):
    """Of flow models these are sigmas before their shift: handed over as wanted they would be shifted twice."""
    flow = family in FLOWS
    model = configured(opened(family_folder(family), family), settings)
    sampler, times = Euler(steps=4), [1000.0, 901.5, 604.25, 200.0] if flow else [999.0, 700.0, 300.0, 20.0]
    grid = model.grid_at(sampler, torch.tensor([times], dtype=torch.float64))
    process = process_of(model, sampler, Plain(weight=1.0)).with_grid(grid)
    arguments = model.arguments(sampler, grid)
    assert list(arguments) == ["sigmas" if flow else "timesteps"]
    expected = diffusers_images(model, family, sampler, 1.0, **arguments)
    torch.testing.assert_close(genbo_images(process, WORDS), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("settings", [{"use_karras_sigmas": True}, {"shift_terminal": 0.1}], ids=str)
def test_a_flow_that_makes_its_own_sigmas_is_given_none(family_folder, settings):
    model = configured(opened(family_folder("stable_diffusion_3"), "stable_diffusion_3"), settings)
    times = torch.tensor([[1000.0, 901.5, 604.25, 200.0]], dtype=torch.float64)
    assert model.arguments(Euler(steps=4), model.grid_at(Euler(steps=4), times)) is None


@pytest.mark.parametrize("family", FLOWS)
@pytest.mark.parametrize("spacing", ["own", "uniform", "trailing"])
def test_stops_of_a_flow_can_be_tuned(family_folder, family, spacing):
    process = usual(family_folder, family, weight=1.0)
    stops = Timesteps(spacing).of(process)
    assert stops.start[0] == 1000.0
    if spacing == "own":
        own = process.model.grid(process.sampler)
        for name in ("time", "alpha_t", "sigma_t", "alpha_s", "sigma_s"):
            again = stops.embed(process, stops.first(4)[None]).grid
            torch.testing.assert_close(getattr(again, name), getattr(own, name), rtol=0, atol=1e-6)
    phi = stops.first(4).requires_grad_()
    x = sample(stops.embed(process, phi[None]), Batch(WORDS[:1], SEEDS[:1]))
    (grad,) = torch.autograd.grad(x.square().sum(), phi)
    assert grad.isfinite().all() and (grad != 0).all()
    assert torch.equal(stops.settled(phi), phi)


def test_clock_of_a_flow_is_its_own_inverse(family_folder):
    clock = usual(family_folder, "flux").model.clock
    times = torch.tensor([999.0, 500.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(clock.time(clock.log_snr(times)), times)
    ends = clock.log_snr(torch.tensor([1000.0, 999.0, 500.0], dtype=torch.float64)).tolist()
    assert ends == pytest.approx([-2 * math.log(999), -2 * math.log(999), 0.0])


def test_distilled_guidance_is_told_a_step_at_a_time(family_folder):
    """As in one call of the network by hand, and with a gradient that is a difference."""
    process = usual(family_folder, "flux", steps=2, weight=1.0)
    tunable = DistilledGuidance(shape="per_step")
    at = tunable.embed(process, torch.tensor([[1.5, 6.0]], dtype=torch.float64))
    told = []
    handle = process.model.denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: told.append(kwargs["guidance"].tolist()), with_kwargs=True
    )
    images = genbo_images(at, WORDS)
    handle.remove()
    assert told == [[1.5] * 3, [6.0] * 3] and process.told["guidance"].tolist() == [[3.5, 3.5]]
    assert (images - genbo_images(process, WORDS)).abs().max() > 1e-3
    members = tunable.embed(process, torch.tensor([[1.5, 6.0], [3.5, 3.5]], dtype=torch.float64))
    torch.testing.assert_close(genbo_images(members, WORDS)[:3], images, rtol=0, atol=1e-5)

    def score(phi: torch.Tensor) -> torch.Tensor:
        return sample(tunable.embed(process, phi[None]), Batch(WORDS[:1], SEEDS[:1])).double().square().mean()

    phi = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(score(phi), phi)
    with torch.no_grad():  # sinusoids of 1000 times the guidance: a step must be far below 1 / 1000
        fine = torch.stack([(score(phi + h) - score(phi - h)) / 1e-4 for h in 5e-5 * torch.eye(2).double()])
    assert (grad != 0).all()
    torch.testing.assert_close(grad, fine, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("family", quick_for("stable_diffusion_3", "flux", "dit", "ddpm"))
def test_a_tuned_folder_is_a_plain_pipeline(family_folder, family, tmp_path):
    """Plain diffusers draws the same images from it, and so does genbo."""
    process = usual(family_folder, family)
    export(process, tmp_path / "tuned", {})
    tuned = load(tmp_path / "tuned", device="cpu")
    assert tuned.process.rule == process.rule and tuned.process.told.keys() == process.told.keys()
    plain = copy.copy(process.model)
    plain.pipeline = DiffusionPipeline.from_pretrained(tmp_path / "tuned", use_safetensors=True)
    plain.pipeline.set_progress_bar_config(disable=True)
    expected = diffusers_images(plain, family, process.sampler, process.rule.weight)
    torch.testing.assert_close(genbo_images(tuned.process, prompts_of(family)), expected, rtol=0, atol=TOLERANCE)


def test_what_flux_was_told_is_told_again(family_folder, tmp_path):
    process = usual(family_folder, "flux").with_told("guidance", torch.tensor([[2.0, 3.0, 4.0, 5.0]]).double())
    export(process, tmp_path / "tuned", {})
    tuned = load(tmp_path / "tuned", device="cpu")
    assert torch.equal(tuned.process.told["guidance"], process.told["guidance"])
    torch.testing.assert_close(genbo_images(tuned.process, WORDS), genbo_images(process, WORDS), rtol=0, atol=1e-6)
    document = json.loads((tmp_path / "tuned" / "genbo.json").read_text())
    assert document["told"] == {"guidance": [2.0, 3.0, 4.0, 5.0]} and document["height"] == SIZE
    for told in ({}, {"guidance": [1.0]}, {"guidance": "often"}, {"guidance": 2.0, "more": 1.0}):
        (tmp_path / "tuned" / "genbo.json").write_text(json.dumps({**document, "told": told}))
        with pytest.raises(Refused, match="told"):
            load(tmp_path / "tuned", device="cpu")


@pytest.mark.parametrize("family", quick_for("stable_diffusion_xl", "flux", "pixart_sigma")[1:])
def test_lora_is_trained_merged_and_kept_by_itself(family_folder, family, tmp_path):
    process = usual(family_folder, family)
    adapted = adapt(process.model, Adapter(rank=2), Seed(0))
    with torch.no_grad():
        for n, weight in enumerate(adapted.weights.values()):
            weight.add_(0.1 * torch.randn(weight.shape, generator=Seed(n).generator()))
    trained = replace(process, model=adapted)
    images = genbo_images(trained, prompts_of(family))
    assert (images - genbo_images(process, prompts_of(family))).abs().max() > 1e-3
    export(trained, tmp_path / "tuned", {})
    tuned = load(tmp_path / "tuned", device="cpu").process
    torch.testing.assert_close(genbo_images(tuned, prompts_of(family)), images, rtol=0, atol=TOLERANCE)
    by_itself = (tmp_path / "tuned" / "lora" / "pytorch_lora_weights.safetensors").exists()
    assert by_itself == (family not in ("pixart_sigma", "dit", "ddpm", "ddim"))
    if by_itself:
        negative = NEGATIVE.get(family, "")
        lora = opened(family_folder(family), family, lora=str(tmp_path / "tuned" / "lora"), negative_prompt=negative)
        assert lora.fused == (process.model.part,)
        again = process_of(lora, process.sampler, process.rule)
        torch.testing.assert_close(genbo_images(again, prompts_of(family)), images, rtol=0, atol=TOLERANCE)


# -- the page ----------------------------------------------------------------------------------------------------------

EQUALITY_HEAD = (
    "| family | sampler | prediction | guidance | settings | largest difference |\n|---|---|---|---|---|---|"
)
FAMILIES_HEAD = "| family | pipeline | prompt | guidance | time steps | LoRA file |\n|---|---|---|---|---|---|"
TIMED = (Ddim(steps=4), Ddpm(steps=4), Euler(steps=4), Dpmpp(steps=4))


def between(name: str) -> re.Match[str]:
    found = re.search(rf"(<!-- {name} -->\n)(.*?)(<!-- end of {name} -->)", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found


def written(name: str, table: str) -> None:
    """Puts a table into the page, where that is asked for."""
    if os.environ.get("GENBO_WRITE_PAGE"):
        part = between(name)
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(page[: part.end(1)] + "\n" + table + "\n\n" + page[part.start(3) :], encoding="utf-8")


def test_the_page_lists_what_was_compared():
    """Every case and no other, with a difference within the bound."""
    if len(SEEN) == len(CASES):
        written("equality", "\n".join([EQUALITY_HEAD, *(f"{case.row} {SEEN[case.row]:.1e} |" for case in CASES)]))
    rows = re.findall(r"^(\| \w+ \| `.*\|) (\S+) \|$", between("equality")[2], re.MULTILINE)
    assert [row for row, _ in rows] == [case.row for case in CASES], "write the page anew: its first lines say how"
    assert all(float(difference) <= TOLERANCE for _, difference in rows)
    for row, difference in rows:
        assert SEEN.get(row, 0.0) <= max(10 * float(difference), 2e-5)


def test_the_page_lists_the_settings():
    rows = ["| scheduler | any value | only these values | ignored |", "|---|---|---|---|"]
    for name, understood in scheduler_settings.UNDERSTOOD.items():
        only = (f"`{key}`: {', '.join(map(str, values))}" for key, values in sorted(understood.only.items()))
        followed, idle = (
            ", ".join(f"`{key}`" for key in sorted(keys)) for keys in (understood.followed, understood.idle)
        )
        rows.append(f"| {name} | {followed} | {'; '.join(only)} | {idle} |")
    written("settings", "\n".join(rows))
    assert between("settings")[2].strip() == "\n".join(rows), "write the page anew"


def test_the_page_lists_what_each_family_allows(family_folder):
    rows = [FAMILIES_HEAD]
    for family in FAMILIES:
        model = opened(family_folder(family), family)
        stops = {repr(sampler)[: -len("(steps=4)")].split("(")[0].lower(): takes(model, sampler) for sampler in TIMED}
        prompt = {"dit": "a class", "ddpm": "none or a class", "ddim": "none or a class"}.get(family, "text")
        guidance = "if class-conditional" if family in UNTOLD else "true and distilled" if model_told(model) else "yes"
        lora = "yes" if hasattr(model.pipeline, "load_lora_weights") else "no"
        known = ", ".join(name for name, taken in stops.items() if taken) or "none"
        rows.append(f"| {family} | {type(model.pipeline).__name__} | {prompt} | {guidance} | {known} | {lora} |")
    written("families", "\n".join(rows))
    assert between("families")[2].strip() == "\n".join(rows)


def model_told(model: Any) -> bool:
    return bool(getattr(model, "told", {}))


def takes(model: Any, sampler: Any) -> bool:
    """Whether a plain diffusers call can be told to stop elsewhere."""
    times = torch.linspace(*model.options.time_range, 5, dtype=torch.float64)[None, :4].round()
    try:
        return (
            model.prompted(sampler) is not None and model.arguments(sampler, model.grid_at(sampler, times)) is not None
        )
    except Refused:
        return False


@pytest.mark.parametrize("family", quick_for("stable_diffusion", "flux", "dit", "ddim"))
def test_half_precision_draws_much_the_same(family_folder, family):
    process = usual(family_folder, family, steps=3)
    half = opened(family_folder(family), family, negative_prompt=NEGATIVE.get(family, ""), dtype="bf16")
    assert half.dtype == torch.bfloat16
    found = genbo_images(process_of(half, process.sampler, process.rule), prompts_of(family)).float()
    wanted = genbo_images(process, prompts_of(family))
    assert (found - wanted).abs().mean() < 0.02 < wanted.std()


def test_latents_are_clipped_only_where_the_pipeline_says_so(family_folder):
    """PixArt's own scheduler, DPM-Solver++, knows no clipping; DDIM made of its config would clip."""
    model = opened(family_folder("pixart_sigma"), "pixart_sigma")
    model.pipeline.scheduler = model.scheduler(Dpmpp(steps=4))
    assert "clip_sample" not in model.pipeline.scheduler.config or not model.pipeline.scheduler.config.clip_sample
    model.pipeline.scheduler = type(model.pipeline.scheduler)(prediction_type="epsilon")
    assert model.grid(Ddim(steps=4)).x_0_bound == model.grid(Dpmpp(steps=4)).x_0_bound == math.inf
    pixels = opened(family_folder("ddpm"), "ddpm")
    assert pixels.grid(Ddim(steps=4)).x_0_bound == pixels.grid(Ddpm(steps=4)).x_0_bound == 1.0
    assert pixels.grid(Dpmpp(steps=4)).x_0_bound == math.inf
    times = pixels.grid(Ddim(steps=4)).time
    assert pixels.grid_at(Ddim(steps=4), times).x_0_bound == 1.0
