"""The full-size benchmark: networks that are those published, and counts that are those planned; no times."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import full_size, full_size_one
from benchmarks.full_size_one import PARTS, SAMPLES, Bench
from benchmarks.overhead import bare_calls
from benchmarks.published import FULL, tiny
from genbo.diffusion.process import process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.seed import Seed, batch_of

ROOT = Path(__file__).parents[2]
WEIGHTS = {"sd15": 859_520_964, "sdxl": 2_567_463_684, "sd3": 2_028_328_000, "flux": 11_901_408_320}
DECODERS = {"sd15": 83_653_863, "sdxl": 83_653_863, "sd3": 83_819_683, "flux": 83_819_683}
PIXELS = {"sd15": 512, "sdxl": 1024, "sd3": 1024, "flux": 1024}
STEPS = 4  # of the small ones
NO_HURRY_S = 1e8  # nothing here may end for want of time
CPU = torch.device("cpu")


def numbers(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def bench(name: str, **parts: Any) -> Bench:
    return Bench(replace(tiny(name), enough_s=0.0, **parts), CPU)


@pytest.mark.parametrize("name", list(FULL))
def test_they_have_the_published_sizes(name):
    """As many weights as the published files, and a step and a decoding whose shapes fit, without memory for either."""
    published = FULL[name]
    model: Any = published.open("meta", torch.bfloat16)
    assert numbers(model.denoiser) == WEIGHTS[name]
    assert numbers(model.vae) == DECODERS[name]
    process = process_of(model, replace(published.sampler, steps=1), published.rule)  # type: ignore[type-var]
    images = model.decode(sample(process, batch_of(["a dog"], 1, Seed(0))))
    assert images.shape == (1, 3, PIXELS[name], PIXELS[name])


@pytest.mark.parametrize("name", list(FULL))
def test_the_bare_calls_are_those_of_the_sampler(name):
    """Rows, times and conditions, call by call."""
    published = tiny(name)
    process = process_of(published.open(CPU, torch.float32), published.sampler, published.rule)
    batch = batch_of(["a dog", "a cat"], 3, Seed(0))
    seen: list[tuple[torch.Tensor, ...]] = []
    model: Any = process.model
    call = model.call

    def heard(network: Any, x_t: torch.Tensor, time: torch.Tensor, told: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append((torch.tensor(x_t.shape), time, *(told[key] for key in sorted(told))))
        return call(network, x_t, time, told)

    model.call = heard
    with torch.no_grad():
        sample(process, batch)
        bare, rows = bare_calls(process, batch)
        for step in range(process.steps):
            bare(step)
    assert len(seen) == 2 * STEPS
    assert seen[0][0][0] == rows == (3 if name == "flux" else 6)
    for mine, theirs in zip(seen[:STEPS], seen[STEPS:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def counts(found: dict[str, Any], rows: int) -> None:
    """What the parts must have counted, with so many rows an image."""
    for figures in found.values():
        assert "error" not in figures, figures
    assert found["eager"]["calls"] == STEPS
    assert found["eager"]["rows"] == rows * found["eager"]["batch"]
    step = found["outer_step"]
    assert (step["samples"], step["parameters"], step["status"]) == (SAMPLES, 1, "ok")
    assert step["denoiser_calls"] == STEPS  # both sides of the difference go together
    assert step["image_forwards"] == 2 * SAMPLES * rows * STEPS
    assert step["reward_images"] == 2 * SAMPLES
    drawn = found["bank"]
    assert drawn["mistakes"] == []
    assert (drawn["denoiser_calls"], drawn["image_forwards"]) == (STEPS, SAMPLES * rows * STEPS)
    assert drawn["lambda_step_calls"] == 0
    assert found["largest_batch"]["images"] == found["largest_batch"]["asked"] == 4


def test_the_command(tmp_path):
    """In processes of their own, with what there was no time for: compiling wants ten minutes."""
    out = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.full_size", "--tiny", "--models", "flux", "--minutes", "9.9"]
    command += ["--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("flux: eager ratio")
    found = json.loads(out.read_text())["figures"]["flux"]
    assert found.pop("about")["torch"] == torch.__version__
    assert "were left" in found.pop("compiled")["skipped"]
    assert list(found) == [name for name in PARTS if name != "compiled"]
    counts(found, rows=1)


def test_a_guided_one(monkeypatch):
    one, written = bench("sdxl"), []
    monkeypatch.delitem(PARTS, "compiled")
    full_size_one.run(one, time.time() + NO_HURRY_S, lambda: written.append(list(one.found)))
    counts(one.found, rows=2)
    assert written[-1] == list(PARTS)
    assert [len(parts) for parts in written] == [1, 2, 3, 4, 5]


def test_of_some_parts_no_other_is_run():
    one = bench("flux")
    full_size_one.run(one, time.time() + NO_HURRY_S, lambda: None, ["largest_batch"])
    assert list(one.found) == ["built", "largest_batch"]


def test_the_largest_batch_is_halved_until_it_fits():
    """A guided image is two rows: six rows have room for two images, as halves go."""
    one = bench("sd15")
    one.found["built"] = full_size_one.built(one)
    call = one.model.call

    def narrow(network: Any, x_t: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(x_t) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return call(network, x_t, *rest)

    one.model.call = narrow
    found = full_size_one.largest_batch(one)
    assert (found["images"], found["asked"], found["tried"]) == (2, 4, [4, 2])


def test_what_fails_takes_nothing_with_it(monkeypatch):
    one = bench("sd15")

    def broken(bench: Bench) -> dict[str, Any]:
        raise RuntimeError("no kernel for this")

    monkeypatch.setitem(PARTS, "outer_step", (broken, lambda bench: 0.0))
    monkeypatch.setitem(PARTS, "compiled", (broken, lambda bench: 10 * NO_HURRY_S))
    full_size_one.run(one, time.time() + NO_HURRY_S, lambda: None)
    assert "no kernel for this" in one.found["outer_step"]["error"]
    assert one.found["bank"]["lambda_step_calls"] == 0
    assert "skipped" in one.found["compiled"]
    assert full_size.line("sd15", one.found).endswith("compiled left out")
    assert "outer_step failed" in full_size.line("sd15", one.found)


def test_what_hangs_is_ended(monkeypatch, tmp_path):
    hanging = tmp_path / "python"
    hanging.write_text("#!/bin/sh\nexec sleep 3600\n")
    hanging.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(hanging))
    found = full_size.measured(["flux"], ["--tiny"], share_s=0.5, left_s=10)
    assert found["flux"]["process"]["error"] == "ended after 1 s"


@pytest.mark.slow
def test_compiled():
    """About a minute: the same calls, by the blocks as the compiler has them."""
    one = bench("flux")
    full_size_one.built(one)
    found = full_size_one.compiled(one)
    assert (found["network"], found["calls"], found["rows"]) == ("compiled", STEPS, 1)
