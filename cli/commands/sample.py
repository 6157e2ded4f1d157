"""genbo sample: images with the tuned values of a run, or with any model folder.

Image k of a prompt depends on the seed, the prompt's place and k alone. File names are made of the prompt's
letters and digits; nothing else of it reaches the disk's names.
"""

from __future__ import annotations

import re
import shlex
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genbo.cli.errors import UserMistake
from genbo.cli.job.gallery import MARK
from genbo.cli.job.job import NO_PROMPT
from genbo.cli.run.folder import is_run
from genbo.diffusion import pipeline_folder
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.tokens import loaded, readers_of
from genbo.rewards._tokens import sentences

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

    from genbo.diffusion.tuned import TunedPipeline

LONGEST = 48  # characters of a slug


def run(
    folder: str | Path,
    prompts: Sequence[str] = (),
    *,
    samples: int = 4,
    seed: int = 0,
    output: str | Path | None = None,
    allow_code: Sequence[str | Path] = (),
) -> int:
    """The command: one PNG an image and a contact sheet, a row a prompt; prints their paths.

    `allow_code` are files of Python that a reward which steers the samples may run.
    """
    from genbo.cli.report.html import contact_sheet
    from genbo.cli.stages.endings import named

    if samples < 1:
        raise UserMistake(f"--samples {samples}: draw at least one")
    target = Path(output) if output is not None else Path("samples")
    place = pipeline_of(folder)
    prompts = told(place, prompts) if place else prompts
    with named():
        tuned = opened(folder, allow_code)
        if not place:
            model: Any = tuned.process.model
            prompts = told(model.folder, prompts)
        for text in cut_off(tuned, place, prompts):
            print(text, file=sys.stderr)
        images = tuned(list(prompts), samples=samples, seed=seed)
    try:
        target.mkdir(parents=True, exist_ok=True)
        written = [target / f"{name}.png" for name in names(prompts, samples, seed)]
        for place, image in zip(written, images, strict=True):
            image.save(place)
        sheet = target / f"sheet-s{seed}.png"
        contact_sheet(images, columns=samples).save(sheet, pnginfo=_marked())
    except OSError as problem:
        raise UserMistake(f"the images cannot be written to {target}: {problem.strerror or problem}") from problem
    print("\n".join(str(place) for place in (*written, sheet)))
    return 0


def told(pipeline: Path, prompts: Sequence[str]) -> Sequence[str]:
    """The prompts as the model takes them: of a model that takes none, the one that says nothing."""
    if pipeline_folder.is_unconditional(pipeline):
        if prompts:
            raise UserMistake("this model is told nothing, so no prompt changes what it draws; leave --prompt out")
        return NO_PROMPT
    if not prompts:
        known = pipeline_folder.known_prompts(pipeline) or ["a red apple"]
        raise UserMistake(f"no prompt is given; add --prompt {shlex.quote(known[0])}")
    return prompts


def cut_off(tuned: TunedPipeline, place: Path | None, prompts: Sequence[str]) -> Iterator[str]:
    """What the text encoders do not read of these prompts."""
    pipeline = tuned.pipeline
    known = readers_of(place) if place else []
    return sentences([*known, *(loaded(pipeline, known) if pipeline is not None else [])], prompts)


def _marked() -> PngInfo:
    """What tells `genbo score`, whatever the file is called by then, that it is no image to score."""
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text(*MARK)
    return text


def names(prompts: Sequence[str], samples: int, seed: int) -> list[str]:
    """`000-a-red-apple-s0-1`: the prompt's place keeps two prompts of one slug apart."""
    slugs = [slug(text) if text else "image" for text in prompts]
    return [f"{p:03d}-{name}-s{seed}-{k}" for p, name in enumerate(slugs) for k in range(samples)]


def slug(text: str) -> str:
    """Letters a to z, digits and hyphens; accents fall away, and what has none of these is `prompt`."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:LONGEST].rstrip("-") or "prompt"


def opened(folder: str | Path, allow_code: Sequence[str | Path] = ()) -> TunedPipeline:
    """A run, its tuned/ folder, or a model's folder or bundled name; the last two at genbo's own defaults."""
    from genbo.diffusion.tuned import load

    if tuned := _tuned_of(folder):
        return load(_with_pipeline(tuned), allow_code=allow_code)
    place = Path(folder)
    if place.is_dir() and is_run(place):
        raise UserMistake(f"{place} has no tuned/ folder yet: the run has not come to its end")
    return _plain_model(str(folder))


def _tuned_of(folder: str | Path) -> Path | None:
    """The folder with a genbo.json: a run's, or this one itself."""
    places = (Path(folder), Path(folder) / "tuned")
    return next((place for place in places if (place / "genbo.json").is_file()), None)


def pipeline_of(folder: str | Path) -> Path | None:
    """The folder of the pipeline, where it is here already; a hub id has none before it is opened."""
    return _tuned_of(folder) or Diffusers(pretrained=str(folder)).folder


def _with_pipeline(tuned: Path) -> Path:
    if not (tuned / "model_index.json").is_file():
        raise UserMistake(f"{tuned} is of an exact world, which has no images to draw")
    return tuned


def _plain_model(name: str) -> TunedPipeline:
    from genbo.diffusion.process import process_of
    from genbo.diffusion.tuned import TunedPipeline

    model = Diffusers(pretrained=name)
    mistakes = model.mistakes()
    if mistakes:
        raise UserMistake(f"{name} is neither a run nor a model: {mistakes[0].removeprefix('pretrained: ')}")
    return TunedPipeline(process_of(model.open(), *model.usual()), {})
