"""genbo sample: images with the tuned values of a run, or with any model folder.

Image k of a prompt depends on the seed, the prompt's place and k alone. File names are made of the prompt's
letters and digits; nothing else of it reaches the disk's names.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from genbo.cli.errors import UserMistake
from genbo.cli.run import is_run

if TYPE_CHECKING:
    from genbo.diffusion.tuned import Tuned

LONGEST = 48  # characters of a slug


def run(
    folder: str | Path,
    prompts: Sequence[str],
    *,
    samples: int = 4,
    seed: int = 0,
    output: str | Path | None = None,
) -> int:
    """The command: one PNG an image and a contact sheet, a row a prompt; prints their paths."""
    from genbo.cli.report import contact_sheet
    from genbo.cli.tune import named

    if not prompts:
        raise UserMistake("no prompt is given; add --prompt 'a red apple'")
    if samples < 1:
        raise UserMistake(f"--samples {samples}: draw at least one")
    target = Path(output) if output is not None else Path("samples")
    with named():
        images = opened(folder)(list(prompts), samples=samples, seed=seed)
    try:
        target.mkdir(parents=True, exist_ok=True)
        written = [target / f"{name}.png" for name in names(prompts, samples, seed)]
        for place, image in zip(written, images, strict=True):
            image.save(place)
        sheet = target / f"sheet-s{seed}.png"
        contact_sheet(images, columns=samples).save(sheet)
    except OSError as problem:
        raise UserMistake(f"the images cannot be written to {target}: {problem.strerror or problem}") from problem
    print("\n".join(str(place) for place in (*written, sheet)))
    return 0


def names(prompts: Sequence[str], samples: int, seed: int) -> list[str]:
    """`000-a-red-apple-s0-1`: the prompt's place keeps two prompts of one slug apart."""
    return [f"{p:03d}-{slug(text)}-s{seed}-{k}" for p, text in enumerate(prompts) for k in range(samples)]


def slug(text: str) -> str:
    """Letters a to z, digits and hyphens; accents fall away, and what has none of these is `prompt`."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:LONGEST].rstrip("-") or "prompt"


def opened(folder: str | Path) -> Tuned:
    """A run, its tuned/ folder, or a model's folder or bundled name; the last two at genbo's own defaults."""
    from genbo.diffusion.tuned import load

    place = Path(folder)
    for tuned in (place, place / "tuned"):
        if (tuned / "genbo.json").is_file():
            return load(_with_pipeline(tuned))
    if place.is_dir() and is_run(place):
        raise UserMistake(f"{place} has no tuned/ folder yet: the run has not come to its end")
    return _plain_model(str(folder))


def _with_pipeline(tuned: Path) -> Path:
    if not (tuned / "model_index.json").is_file():
        raise UserMistake(f"{tuned} is of an exact world, which has no images to draw")
    return tuned


def _plain_model(name: str) -> Tuned:
    from genbo.diffusion.models.diffusers import Diffusers
    from genbo.diffusion.process import process_of
    from genbo.diffusion.tuned import Tuned

    model = Diffusers(pretrained=name)
    mistakes = model.mistakes()
    if mistakes:
        raise UserMistake(f"{name} is neither a run nor a model: {mistakes[0].removeprefix('pretrained: ')}")
    return Tuned(process_of(model.open(), *model.usual()), {})
