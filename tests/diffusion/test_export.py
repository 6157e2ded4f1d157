"""The export is what was judged: plain diffusers, in a process of its own, draws the judged images from `tuned/` alone.

Every row of the table in docs/models.md is exported. What a plain call cannot be told is in genbo.json as
`beyond_diffusers`, and genbo.load draws it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from genbo.diffusion.adapt import Adapter, adapt
from genbo.diffusion.guidance.apg import Apg
from genbo.diffusion.guidance.interval import Interval
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.guidance.rescaled import Rescaled
from genbo.diffusion.models.unet import Unet
from genbo.diffusion.process import Process, process_of
from genbo.diffusion.refused import Refused
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.ddpm import Ddpm
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.samplers.euler import Euler
from genbo.diffusion.schedule_document import schedule_document, schedule_from
from genbo.diffusion.seed import Seed
from genbo.diffusion.tuned import beyond_diffusers, export, load
from genbo.schedules.cosine import Cosine
from genbo.schedules.piecewise import Piecewise
from genbo.schedules.schedule import Schedule, schedule_of
from tests.diffusion import test_families as table

ROOT = Path(__file__).parents[2]
TOLERANCE = table.TOLERANCE
Draw = Callable[[Path, dict[str, Any]], torch.Tensor]


@pytest.fixture(scope="module")
def plainly(tmp_path_factory) -> Iterator[Draw]:
    """Draws from a folder in a process that has never seen genbo; started once."""
    out = tmp_path_factory.mktemp("plain") / "images.safetensors"
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSTARTUP")}
    command = [sys.executable, str(ROOT / "tests" / "plain_diffusers.py")]
    environment = {**own, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=out.parent, env=environment, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None

        def draw(folder: Path, call: dict[str, Any]) -> torch.Tensor:
            job = {"folder": str(folder), "call": call, "seeds": list(table.SEEDS), "out": str(out)}
            print(json.dumps(job), file=process.stdin, flush=True)
            answers = iter(process.stdout.readline, "")
            assert "drawn\n" in answers, "plain diffusers failed; its traceback is on stderr"
            return load_file(out)["images"]

        yield draw
        process.stdin.close()


def call_of(model: Any, family: str, process: Process) -> dict[str, Any]:
    """What a user types, by diffusers' names."""
    height, width = model.pixels
    weight = float(process.options["weight"][0, 0])
    said: dict[str, Any] = {
        "num_inference_steps": process.steps,
        "prompt": list(table.WORDS),
        "class_labels": [int(name) for name in table.CLASSES],
        "batch_size": len(table.SEEDS),
        "height": height,
        "width": width,
        "guidance_scale": weight,
        "eta": getattr(process.sampler, "eta", 0.0),
        "use_resolution_binning": False,
        "clean_caption": False,
    }
    if family == "flux":
        said |= {"true_cfg_scale": weight, "guidance_scale": float(process.told["guidance"][0, 0])}
    if negative := model.negative_prompt:
        said["negative_prompt"] = negative if family == "pixart_sigma" else [negative] * len(table.SEEDS)
    return said


def exported(process: Process, folder: Path) -> dict[str, Any]:
    export(process, folder, {})
    document: dict[str, Any] = json.loads((folder / "genbo.json").read_text())
    return document


def writing(case: table.Case) -> Iterator[Any]:
    """What a folder is written from: the family, the kind of sampler, and every setting and option by itself."""
    kind = type(case.sampler), getattr(case.sampler, "eta", None), getattr(case.sampler, "variance", None)
    yield from (case.family, kind, case.guidance > 1, *case.settings)
    yield from (name for name, _ in case.options)


@pytest.mark.parametrize("case", table.quick_first(writing))
def test_plain_diffusers_draws_what_was_judged(plainly, family_folder, case, tmp_path):
    model = table.opened(family_folder(case.family), case.family, **dict(case.options))
    model = table.configured(model, dict(case.settings))
    process = process_of(model, case.sampler, Plain(weight=case.guidance))
    judged = table.genbo_images(process, table.prompts_of(case.family))
    assert exported(process, tmp_path / "tuned")["beyond_diffusers"] == []
    found = plainly(tmp_path / "tuned", call_of(model, case.family, process))
    torch.testing.assert_close(found, judged, rtol=0, atol=TOLERANCE)
    assert hashes(tmp_path / "tuned") == hashes(family_folder(case.family))


def hashes(folder: Path) -> dict[str, str]:
    """Of every file of weights."""
    files = sorted(folder.glob("*/*.safetensors"))
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("family", ["stable_diffusion_xl", "flux"])
def test_tuned_times_are_drawn_by_the_call_in_the_folder(plainly, family_folder, family, tmp_path):
    model = table.opened(family_folder(family), family)
    times = [1000.0, 901.5, 604.25, 200.0] if family == "flux" else [999.0, 700.0, 300.0, 20.0]
    process = process_of(model, Euler(steps=4), Plain(weight=1.0))
    process = process.with_grid(model.grid_at(process.sampler, torch.tensor([times], dtype=torch.float64)))
    document = exported(process, tmp_path / "tuned")
    assert document["beyond_diffusers"] == [] and document["timesteps"] == times
    call = {**call_of(model, family, process), "num_inference_steps": 4, **document["diffusers"]}
    judged = table.genbo_images(process, table.prompts_of(family))
    torch.testing.assert_close(plainly(tmp_path / "tuned", call), judged, rtol=0, atol=TOLERANCE)


def test_trained_weights_stand_in_the_folder(plainly, family_folder, tmp_path):
    process = table.usual(family_folder, "stable_diffusion_xl")
    model = adapt(process.model, Adapter(rank=2), Seed(0))
    with torch.no_grad():
        for n, weight in enumerate(model.weights.values()):
            weight.add_(0.1 * torch.randn(weight.shape, generator=Seed(n).generator()))
    trained = replace(process, model=model)
    judged = table.genbo_images(trained, table.WORDS)
    assert exported(trained, tmp_path / "tuned")["beyond_diffusers"] == []
    found = plainly(tmp_path / "tuned", call_of(model, "stable_diffusion_xl", trained))
    torch.testing.assert_close(found, judged, rtol=0, atol=TOLERANCE)


def test_guidance_rescale_is_a_plain_argument(plainly, family_folder, tmp_path):
    model = table.opened(family_folder("stable_diffusion_xl"), "stable_diffusion_xl")
    process = process_of(model, Ddim(steps=4), Rescaled(weight=4.0, rescale=0.6))
    assert exported(process, tmp_path / "tuned")["beyond_diffusers"] == []
    call = {**call_of(model, "stable_diffusion_xl", process), "guidance_rescale": 0.6}
    judged = table.genbo_images(process, table.WORDS)
    torch.testing.assert_close(plainly(tmp_path / "tuned", call), judged, rtol=0, atol=TOLERANCE)


BEYOND = [
    (Plain(weight=0.5), "at a guidance weight of 0.5 diffusers draws without guidance"),
    (Plain(weight=0.0), "at a guidance weight of 0 diffusers"),
    (Plain(weight=[2.0, 6.0, 3.0, 1.5]), "weight changes from step to step"),
    (Apg(weight=3.0), "no guidance of kind apg"),
    (Interval(weight=3.0, start=0.2, stop=0.7), "no guidance of kind interval"),
]


@pytest.mark.parametrize(("rule", "said"), BEYOND, ids=lambda x: type(x).__name__ if not isinstance(x, str) else "")
def test_what_diffusers_cannot_be_told_is_said_and_loaded(plainly, family_folder, rule, said, tmp_path):
    """genbo.load draws what was judged; the plain call does not, or this sentence would be wrong."""
    model = table.opened(family_folder("stable_diffusion"), "stable_diffusion")
    process = process_of(model, Ddim(steps=4), rule)
    judged = table.genbo_images(process, table.WORDS)
    (sentence,) = exported(process, tmp_path / "tuned")["beyond_diffusers"]
    assert said in sentence
    again = load(tmp_path / "tuned", device="cpu").process
    torch.testing.assert_close(table.genbo_images(again, table.WORDS), judged, rtol=0, atol=TOLERANCE)
    found = plainly(tmp_path / "tuned", call_of(model, "stable_diffusion", process))
    assert (found - judged).abs().max() > 10 * TOLERANCE


def test_a_pipeline_that_draws_otherwise_is_said_so(family_folder):
    """Schedulers that a class replaces, noise that it draws from no seed, eta that it hands to nobody."""
    for family, sampler, plain in (
        ("ddim", Ddim(steps=3, eta=0.5), True),
        ("ddim", Dpmpp(steps=3), False),
        ("ddpm", Ddpm(steps=3), True),
        ("ddpm", Ddim(steps=3, eta=0.5), False),
        ("ddpm", Euler(steps=3), False),
        ("ddim_classes", Ddim(steps=3), False),
        ("dit", Dpmpp(steps=3), True),
        ("dit", Ddim(steps=3, eta=0.5), False),
        ("dit", Ddpm(steps=3), False),
    ):
        process = process_of(table.opened(family_folder(family), family), sampler, Plain(weight=1.0))
        assert (beyond_diffusers(process) == []) is plain, (family, sampler)


# -- a network of one's own -------------------------------------------------------------------------------------------


def network(schedule: Schedule) -> Any:
    """An untrained U-Net of 8 x 8 grey pixels, told the log-SNR, that answers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Unet(device="cpu").open()
        for parameter in made.module.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return replace(made, schedule=schedule)


OWN = [Ddim(steps=5), Ddim(steps=5, eta=0.5), Euler(steps=5), Dpmpp(steps=5), Ddpm(steps=5), Ddpm(5, variance="large")]


@pytest.mark.parametrize("sampler", OWN, ids=repr)
def test_a_network_of_ones_own_is_drawn_as_it_was_judged(plainly, sampler, tmp_path):
    """Under a schedule that leaves signal at its end, which no other scheduler's first noise allows for."""
    schedule = schedule_of(Cosine(end=0.9, tau=1.5, log_snr_min=-4.0))
    process = process_of(network(schedule), sampler, Plain(weight=1.0))
    judged = table.genbo_images(process, ("",) * 3)
    document = exported(process, tmp_path / "tuned")
    assert document["noise_schedule"]["family"] == "cosine" and document["noise_schedule"]["parameters"]["tau"] == 1.5
    tuned = load(tmp_path / "tuned", device="cpu")
    torch.testing.assert_close(table.genbo_images(tuned.process, ("",) * 3), judged, rtol=0, atol=TOLERANCE)
    assert tuned.noise_schedule is not None
    torch.testing.assert_close(tuned.noise_schedule.alphas_cumprod(), schedule.alphas_cumprod())
    older = {name: value for name, value in document.items() if name != "noise_schedule"}
    (tmp_path / "tuned" / "genbo.json").write_text(json.dumps(older))
    again = load(tmp_path / "tuned", device="cpu")
    assert again.noise_schedule is None
    torch.testing.assert_close(table.genbo_images(again.process, ("",) * 3), judged, rtol=0, atol=TOLERANCE)
    assert (document["beyond_diffusers"] == []) is isinstance(sampler, Ddim)
    if isinstance(sampler, Ddim):
        call = {"batch_size": 3, "num_inference_steps": 5, "eta": sampler.eta}
        torch.testing.assert_close(plainly(tmp_path / "tuned", call), judged, rtol=0, atol=TOLERANCE)


# -- schedules ---------------------------------------------------------------------------------------------------------


def test_a_schedule_is_named_by_its_family_and_its_parameters():
    """And made again from that, to the bit; folders that name none have none."""
    assert schedule_from({}) is None
    for schedule in (
        schedule_of(Cosine(end=0.97, tau=2.5, normalised=False)),
        schedule_of(Piecewise([0.2, 0.5, 0.9], 9.0, -8.0), zero_terminal=True),
    ):
        said = json.loads(json.dumps(schedule_document(schedule)))
        again = schedule_from({"noise_schedule": said})
        assert again is not None
        assert torch.equal(again.alphas_cumprod(100), schedule.alphas_cumprod(100))
    assert said["family"] == "piecewise" and said["parameters"]["inner"] == [0.2, 0.5, 0.9] and said["zero_terminal"]
    named = schedule_document(schedule_of(Cosine(end=0.97, tau=2.5)))
    assert named["family"] == "cosine" and (named["parameters"]["end"], named["parameters"]["tau"]) == (0.97, 2.5)


@pytest.mark.parametrize(
    "said",
    [
        {"family": "clock", "parameters": {}},
        {"family": "../evil", "parameters": {}},
        {"family": "cosine", "parameters": {"speed": 1.0}},
        {"family": "cosine", "parameters": {"end": 7.0}},
        {"family": "cosine", "parameters": {"end": "far"}},
        {"family": "cosine"},
    ],
    ids=str,
)
def test_a_schedule_that_cannot_be_one_is_refused(said):
    with pytest.raises(Refused, match=r"genbo\.json: noise_schedule"):
        schedule_from({"noise_schedule": said})


def test_the_folder_of_an_exact_world_says_that_it_has_no_pipeline(tmp_path):
    from genbo.diffusion.models.gaussian import Gaussian

    export(process_of(Gaussian().open(), Ddim(steps=2), Plain(weight=2.0)), tmp_path / "tuned", {})
    with pytest.raises(Refused, match="holds no pipeline to load: what was tuned here is an exact world"):
        load(tmp_path / "tuned", device="cpu")
