"""A tuned folder: a plain diffusers pipeline, and `genbo.json` beside it for what diffusers cannot store.

`export` writes it, `load` reads it and applies everything by itself.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genbo.diffusion.refused import Refused

if TYPE_CHECKING:
    from PIL.Image import Image

    from genbo.diffusion.process import Process

SCHEMA = 1
KEPT = (".json", ".txt", ".model", ".safetensors")  # what a pipeline is made of; never code, never pickles


def settings(process: Process) -> dict[str, Any]:
    """What the process does beyond its weights, as plain values: sampler, guidance rule and every number in it."""
    rule = {"kind": _kind(process.rule), **_fields(process.rule)}
    for name, value in process.options.items():
        numbers = value[0].tolist()
        rule[name] = numbers[0] if len(set(numbers)) == 1 else numbers
    return {"sampler": {"kind": _kind(process.sampler), **_fields(process.sampler)}, "guidance": rule}


def export(process: Process, folder: Path, about: Mapping[str, Any]) -> None:
    """Write the pipeline and `genbo.json` into `folder`, which must not exist; `about` is added to the latter.

    The weights are the pretrained ones, copied file by file; the scheduler is the one that the sampler's kind asks for.
    A model without a folder (an exact world) leaves `genbo.json` alone.
    """
    folder.mkdir(parents=True)
    model: Any = process.model
    document = {"schema": SCHEMA, **settings(process), **about}
    if hasattr(model, "pipeline"):
        _copy(model.folder, folder)
        scheduler = model.scheduler(process.sampler)
        scheduler.save_pretrained(folder / "scheduler")
        index = json.loads((folder / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", type(scheduler).__name__]
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        document["negative_prompt"] = model.negative_prompt
    (folder / "genbo.json").write_text(json.dumps(document, indent=2) + "\n")


def _copy(source: Path, target: Path) -> None:
    index = json.loads((source / "model_index.json").read_text())
    shutil.copyfile(source / "model_index.json", target / "model_index.json")
    for name in (n for n, entry in index.items() if isinstance(entry, list) and entry[0] is not None):
        (target / name).mkdir()
        for file in sorted((source / name).iterdir()):
            if file.suffix in KEPT and file.is_file():
                shutil.copyfile(file, target / name / file.name)


class Tuned:
    """A pipeline with its tuned values. `pipeline` is the plain diffusers pipeline inside, `process` what draws."""

    def __init__(self, process: Process, document: Mapping[str, Any]) -> None:
        self.process, self.document = process, dict(document)
        self.pipeline: Any = getattr(process.model, "pipeline", None)

    def __call__(self, prompts: str | Sequence[str], *, samples: int = 1, seed: int = 0) -> list[Image]:
        """`samples` images of each prompt, prompt by prompt; image k depends on (seed, the prompt's place, k)."""
        import torch
        from PIL import Image

        from genbo.diffusion.sample import sample
        from genbo.diffusion.seed import Batch, Seed

        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        names = [(p, k) for p in range(len(prompts)) for k in range(samples)]
        batch = Batch(
            tuple(prompts[p] for p, _ in names),
            tuple(Seed(seed).child("sample", p, k).value for p, k in names),
        )
        images: list[Image.Image] = []
        with torch.no_grad():
            for chunk in batch.chunks(self.process.batch):
                pixels = self.process.model.decode(sample(self.process, chunk)).float().mul(255).round().byte()
                images += [Image.fromarray(p) for p in pixels.permute(0, 2, 3, 1).cpu().numpy()]
        return images


def load(folder: str | Path, *, device: str = "auto", dtype: str = "auto") -> Tuned:
    """A tuned folder (`runs/x/tuned`, or `runs/x`) as a pipeline that applies every tuned value by itself.

    Raises `Refused` where the folder is not one, or was written by a newer genbo.
    """
    from genbo.diffusion.models.diffusers import Diffusers
    from genbo.diffusion.process import process_of

    folder = Path(folder)
    if not (folder / "genbo.json").exists() and (folder / "tuned" / "genbo.json").exists():
        folder = folder / "tuned"
    document = _read(folder)
    model = Diffusers(
        pretrained=str(folder.resolve()),
        device=device,
        dtype=dtype,  # type: ignore[arg-type]
        negative_prompt=document.get("negative_prompt", ""),
    ).open()
    rule = _make("guidance", document["guidance"])
    return Tuned(process_of(model, _make("samplers", document["sampler"]), rule), document)


def _read(folder: Path) -> dict[str, Any]:
    try:
        document = json.loads((folder / "genbo.json").read_text())
    except FileNotFoundError:
        raise Refused(f"{folder} has no genbo.json: give the tuned/ folder of a finished run") from None
    except ValueError as error:
        raise Refused(f"{folder / 'genbo.json'} cannot be read as JSON: {error}") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise Refused(f"{folder / 'genbo.json'} was not written by this version of genbo; update genbo")
    return document


def _fields(component: Any) -> dict[str, Any]:
    return asdict(component)


def _kind(component: object) -> str:
    return type(component).__module__.rsplit(".", 1)[1]


def _make(room: str, options: Mapping[str, Any]) -> Any:
    """The component that {kind, options} names: a file of the room, never a name from elsewhere."""
    kind = options.get("kind")
    known = sorted(file.stem for file in (Path(__file__).parent / room).glob("[!_]*.py"))
    if kind not in known:
        raise Refused(f"genbo.json: {room} has nothing called {kind!r}; it has {', '.join(known)}")
    module = importlib.import_module(f"genbo.diffusion.{room}.{kind}")
    made = getattr(module, str(kind).capitalize())
    return made(**{f.name: options[f.name] for f in fields(made) if f.name in options})
