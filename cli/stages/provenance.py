"""On what a run stands: versions, device, and the hashes of everything that went in."""

from __future__ import annotations

import math
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from genbo.cli.errors import UserMistake
from genbo.cli.job.job import NO_PROMPT
from genbo.cli.run.folder import Run
from genbo.cli.run.json_files import Document
from genbo.cli.run.seals import sha256, sha256_of
from genbo.cli.run.versions import version
from genbo.diffusion.file_hashes import files_of
from genbo.diffusion.kinds import declared
from genbo.diffusion.traits import ModelTraits, Origin

if TYPE_CHECKING:
    from genbo.cli.stages.build import Assembled
    from genbo.cli.stages.progress import Quiet

PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "open-clip-torch", "numpy")
SPARE_BYTES = 50_000_000  # for checkpoints, evaluation and report


def on_what(run: Run, assembled: Assembled, screen: Quiet) -> tuple[str, ...]:
    """Writes `environment.json`; on a resumed run, says what has changed, and refuses other inputs."""
    environment = environment_of(assembled)
    changed = run.write_environment(environment)
    other = [text for text in changed if text.startswith("inputs.")]
    if other:
        raise UserMistake(f"{run.path} was begun with other inputs ({'; '.join(other)}); begin again with --overwrite")
    warn_of_space(run, assembled, screen)
    warn_of_length(assembled, screen)
    notes = [f"{text}." for text in declared(Origin, assembled.problem.process.model).notes]
    if changed:
        notes.append(f"Resumed in another environment ({'; '.join(changed)}): results need not be equal bit for bit.")
    for note in notes:
        screen.note(note)
    return tuple(notes)


def environment_of(assembled: Assembled) -> Document:
    """Versions, device and the hashes of everything that went in."""
    import platform
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    import torch

    packages = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            packages[name] = installed(name)
    model = assembled.problem.process.model
    device = torch.device(model.device)
    return {
        "genbo": version(),
        "python": platform.python_version(),
        "packages": packages,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "batch": assembled.problem.process.batch,
        "dtype": str(model.dtype).removeprefix("torch."),
        "inputs": inputs_of(assembled),
        **({"judges": judges} if (judges := judges_of(assembled)) else {}),
    }


def inputs_of(assembled: Assembled) -> Document:
    """sha256 of prompts, of the images of `data:` and of every file of the model and the rewards."""
    problem = assembled.problem
    lists = {"prompts": assembled.prompts, "held_out": assembled.held_out}
    hashes = {name: sha256("\n".join(texts).encode()) for name, texts in lists.items() if texts != NO_PROMPT}
    if data := assembled.data:
        shares = {"train": data.train, "validation": data.validation, "test": data.test}
        hashes |= {f"data.{name}": sha256(images.pixels.numpy().tobytes()) for name, images in shares.items()}
    parts: dict[str, object] = {"model": problem.process.model}
    parts |= dict(zip((*assembled.reward_names, *assembled.constraint_names), problem.scorers, strict=True))
    below = (reward for _, reward in assembled.lower_rewards)
    parts |= {f"lower.{name}": reward for name, reward in zip(assembled.lower_names, below, strict=True)}
    steer = problem.process.steer
    parts |= {f"steer.{k}": one.reward for k, one in enumerate(steer.rewards)} if steer else {}
    lora = declared(Origin, problem.process.model).lora_file
    merged = {"lora": {lora.name: sha256_of(lora)}} if lora else {}
    return {**hashes, **{name: files for name, part in parts.items() if (files := files_of(part))}, **merged}


def judges_of(assembled: Assembled) -> Document:
    """sha256 of the judges' files: not among the inputs, for no step of tuning depends on them."""
    judges = [*zip(assembled.judge_names, assembled.judge.judges, strict=True), *assembled.weight_judges]
    return {name: files for name, part in judges if (files := files_of(part))}


def warn_of_space(run: Run, assembled: Assembled, screen: Quiet) -> None:
    folder = declared(Origin, assembled.problem.process.model).folder
    sizes = (f.stat().st_size for f in Path(folder).rglob("*") if f.is_file()) if folder else ()
    wanted, free = sum(sizes) + SPARE_BYTES, shutil.disk_usage(run.path).free
    if free < wanted:
        has, needs = (f"{math.ceil(n / 1e6)} MB" for n in (free, wanted))
        screen.note(f"warning: {run.path} has {has} free, and the run may need {needs}")


def warn_of_length(assembled: Assembled, screen: Quiet) -> None:
    """Prompts that are too long for a text encoder whose tokenizer could not be read before it was loaded."""
    from genbo.diffusion.tokens import loaded
    from genbo.diffusion.tuned import pipeline_of
    from genbo.rewards._tokens import sentences

    if model := pipeline_of(assembled.problem.process.model):
        texts = (*assembled.prompts, *assembled.held_out)
        for text in sentences(loaded(model.pipeline, declared(ModelTraits, model.options).readers()), texts):
            screen.note(f"warning: {text}")
