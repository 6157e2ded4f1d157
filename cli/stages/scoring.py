"""Scores of images that lie in a folder: which can be read, what each reward says of them, and its error bar."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

from genbo.cli.errors import ArtifactRefused, UserMistake
from genbo.cli.job.captions import listed, spoken
from genbo.cli.job.gallery import images_of
from genbo.cli.job.job import Kind
from genbo.cli.report import number_format
from genbo.cli.run.json_files import Document
from genbo.diffusion.kinds import declared
from genbo.rewards._traits import Comparing, RewardOptions, RewardTraits

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genbo.diffusion.data import Data


@dataclass(frozen=True)
class Asked:
    """A reward of the command line; `name` is its kind, numbered where a kind stands twice."""

    name: str
    kind: Kind[RewardOptions]

    @property
    def traits(self) -> RewardTraits:
        """What the reward declares of itself."""
        return declared(RewardTraits, self.kind.options)

    @property
    def of_sets(self) -> bool:
        return self.traits.of_sets

    @property
    def needs_data(self) -> bool:
        return self.of_sets and self.traits.needs_data

    @property
    def reads_prompts(self) -> bool:
        return self.traits.reads_prompts


@dataclass(frozen=True)
class Picture:
    """An image file that can be read; `name` is its place in the folder, `size` its height and width."""

    name: str
    file: Path
    size: tuple[int, int]


def files_of(folder: Path, prompts: Path | None = None) -> tuple[list[Path], dict[str, str]]:
    """Every image below a folder in number order, and what is left out and why; UserMistake where there are none.

    What a table of prompts names is an image in any case.
    """
    from genbo.diffusion.images import SUFFIXES

    if not folder.is_dir():
        what = "a file; give the folder that it is in" if folder.is_file() else "not there; correct the path"
        raise UserMistake(f"{folder} is {what}")
    table = listed(prompts) if prompts is not None else ()
    files, left_out = images_of(folder, table if isinstance(table, dict) else ())
    if files:
        return files, left_out
    raise UserMistake(f"{folder} has no image ({', '.join(SUFFIXES)}); give a folder that has")


def readable(folder: Path, files: Sequence[Path] | None = None) -> list[Picture]:
    """Every image, decoded once to see that it can be; ArtifactRefused names all that cannot."""
    found, broken = [], []
    for file in files_of(folder)[0] if files is None else files:
        name = file.relative_to(folder).as_posix()
        try:
            _, height, width = decoded(file).shape
            found.append(Picture(name, file, (height, width)))
        except Exception as problem:  # Pillow's decoders raise whatever the bytes lead them to
            reason = str(problem).partition("\n")[0].replace(str(file), "the file") or type(problem).__name__
            broken.append(f"{plain(name)} ({plain(reason)})")
    if broken:
        number = number_format.plural(len(broken), "image")
        raise ArtifactRefused(
            f"{number} in {folder} cannot be read; replace or remove them:\n"
            + "\n".join(f"  {text}" for text in broken)
        )
    return found


def decoded(file: Path) -> Tensor:
    """(3, H, W) in bytes."""
    from genbo.diffusion.image_files import decode

    return decode(file.read_bytes(), "rgb").expand(3, -1, -1)


def batches(pictures: Sequence[Picture], size: int) -> Iterator[tuple[list[int], Tensor]]:
    """All of them, those of one size together: their numbers, and (B, 3, H, W) in [0, 1]."""
    import torch

    order = sorted(range(len(pictures)), key=lambda n: (pictures[n].size, n))
    for _, alike in groupby(order, key=lambda n: pictures[n].size):
        while numbers := list(islice(alike, size)):
            yield numbers, torch.stack([decoded(pictures[n].file) for n in numbers]).float() / 255


def scored(
    asked: Sequence[Asked],
    pictures: Sequence[Picture],
    prompts: Sequence[str],
    data: Data | None,
    batch: int,
    device: str,
) -> Document:
    """What `--json` prints, with a row for each image."""
    import torch

    from genbo.cli.stages.endings import named as as_ends

    with as_ends(), torch.no_grad():
        place, rows = place_of(device), {}
        for each in asked:
            score = of_set if each.of_sets else one_by_one
            rows[each.name] = score(each, pictures, prompts, data, batch, place).double().cpu()
            refuse_nan(each, pictures, rows[each.name])
    single = [each.name for each in asked if not each.of_sets]
    return {
        "images": len(pictures),
        "rewards": {each.name: summary(each, rows[each.name]) for each in asked},
        "each": [
            {"file": picture.name, "prompt": prompts[n] or None, "scores": {key: rows[key][n].item() for key in single}}
            for n, picture in enumerate(pictures)
        ],
    }


def one_by_one(
    each: Asked, pictures: Sequence[Picture], prompts: Sequence[str], data: Data | None, batch: int, place: torch.device
) -> Tensor:
    """(N,), each image by itself."""
    import torch

    reward, found = each.kind.options.open(place), torch.full((len(pictures),), math.nan, dtype=torch.float64)
    for numbers, images in batches(pictures, batch):
        found[numbers] = reward(images.to(place), [prompts[n] for n in numbers]).double().cpu()
    return found


def of_set(
    each: Asked, pictures: Sequence[Picture], prompts: Sequence[str], data: Data | None, batch: int, place: torch.device
) -> Tensor:
    """(N,), whose mean is the score of the whole set; the features are taken in parts."""
    import torch

    opened = each.kind.options.open(place)
    reward = opened.against(pixels_of(data)) if data is not None and isinstance(opened, Comparing) else opened
    parts: dict[int, Tensor] = {}
    for numbers, images in batches(pictures, batch):
        parts.update(zip(numbers, reward.features(images.to(place)), strict=True))
    if len({len(row) for row in parts.values()}) > 1:
        raise UserMistake(
            f"{each.name}: the images have several sizes; bring them to one, or take a network's features"
        )
    rows: Tensor = reward.rows(torch.stack([parts[n] for n in range(len(pictures))]))
    return rows


def place_of(device: str) -> torch.device:
    """A GPU if there is one, or the device that was asked for."""
    from genbo.diffusion.device import lacking, torch_device

    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
        raise UserMistake(
            f"--device must be auto, cpu, cuda or cuda:0, not {device!r}; auto takes a GPU if there is one"
        )
    place = torch_device(device)
    if reason := lacking(place):
        raise UserMistake(f"--device {device}: {reason}; leave it out")
    return place


def pixels_of(data: Data) -> Tensor:
    """(M, 3, H, W) in bytes: all of them, since nothing is tuned here."""
    return replace(data, color="rgb", validation=0.0, test=0.0).open().train.pixels


def refuse_nan(each: Asked, pictures: Sequence[Picture], rows: Tensor) -> None:
    bad = [plain(picture.name) for picture, fine in zip(pictures, rows.isfinite().tolist(), strict=True) if not fine]
    if bad:
        raise ArtifactRefused(f"{each.name} gives no finite number for {spoken(bad)}; leave them out, or look at them")


def summary(each: Asked, rows: Tensor) -> Document:
    n = len(rows)
    return {
        **each.kind.document("rewards"),
        "of": "set" if each.of_sets else "image",
        "mean": rows.mean().item(),
        "se": rows.std().item() / math.sqrt(n) if n > 1 else None,
        "images": n,
    }


def plain(words: str) -> str:
    """Without what moves a cursor or turns the direction of writing."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words)
