"""genbo score: how good the images of a folder are, by any rewards, with error bars.

    mean +- its standard error over the images; of a reward of sets, over sets of as many

Files are data: every one that cannot be read is named, all at once, before anything is scored. A cell of a table that
a spreadsheet would take for a formula is written as the text that it is.
"""

from __future__ import annotations

import csv
import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genbo.cli.errors import ArtifactRefused, OutOfMemory, UserMistake
from genbo.cli.job.captions import captions, listed, spoken
from genbo.cli.job.gallery import images_of
from genbo.cli.job.job import JobMistakes, Kind, Mistake
from genbo.cli.job.reader import Reader, named
from genbo.cli.job.sections.data import read_data
from genbo.cli.job.user_code import Allowed, allowed, announce
from genbo.cli.job.yaml_nodes import Node, Place, node_of_text
from genbo.cli.report import number_format
from genbo.cli.run.json_files import to_json
from genbo.rewards._tokens import sentences

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genbo.diffusion.data import Data

Document = dict[str, Any]
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet calculates where a cell begins with it


@dataclass(frozen=True)
class Asked:
    """A reward of the command line; `name` is its kind, numbered where a kind stands twice."""

    name: str
    kind: Kind

    @property
    def of_sets(self) -> bool:
        return bool(getattr(self.kind.options, "of_sets", False))

    @property
    def needs_data(self) -> bool:
        return self.of_sets and bool(getattr(self.kind.options, "needs_data", True))

    @property
    def reads_prompts(self) -> bool:
        return bool(getattr(self.kind.options, "reads_prompts", False))


@dataclass(frozen=True)
class Picture:
    """An image file that can be read; `name` is its place in the folder, `size` its height and width."""

    name: str
    file: Path
    size: tuple[int, int]


def run(
    folder: Path,
    rewards: Sequence[str],
    *,
    prompts: Path | None = None,
    prompt: str | None = None,
    data: str | None = None,
    each: bool = False,
    as_json: bool = False,
    as_csv: bool = False,
    batch: int = 16,
    device: str = "auto",
    allow_code: Sequence[Path] = (),
) -> int:
    """The command; returns its exit code, or raises a `GenboError` that carries one."""
    if as_json and as_csv:
        raise UserMistake("--json and --csv exclude each other; give one of them")
    code = allowed(allow_code)
    announce(code)
    asked, against = asked_for(rewards, data, code)
    images, left_out = files_of(folder, prompts)
    texts = captions(prompts, prompt, [image.relative_to(folder).as_posix() for image in images])
    if why := cannot(asked, texts, against):
        raise UserMistake("\n".join(why))
    readers = [
        reader for each in asked if hasattr(each.kind.options, "readers") for reader in each.kind.options.readers()
    ]
    for said in sentences(readers, texts or ()):
        print(said, file=sys.stderr)
    for name, reason in left_out.items():
        print(f"left out: {plain(name)} ({reason})", file=sys.stderr)
    with memory():
        pictures = readable(folder, images)
        document = scored(asked, pictures, texts or [""] * len(pictures), against, batch, device)
    document = {
        "folder": str(folder),
        **document,
        "left_out": left_out,
        "code": {path.name: digest for path, digest in code.items()},
    }
    shown = document if each else {**document, "each": None}
    (say_json if as_json else say_csv if as_csv else say)(shown)
    return 0


# -- what is asked ---------------------------------------------------------------------------------------------


def asked_for(rewards: Sequence[str], data: str | None, code: Allowed) -> tuple[list[Asked], Data | None]:
    """Rewards and data as a job writes them, by name or as a mapping; JobMistakes with all that is wrong."""
    mistakes: list[Mistake] = []
    reader = Reader(Path.cwd(), mistakes, code)
    nodes = [node for text in rewards if (node := node_of(text, "reward", mistakes))]
    kinds = [reader.kind(node, "rewards", "a reward") for node in nodes]
    against = read_data(reader, node_of(data, "data", mistakes)) if data is not None else None
    if not rewards:
        mistakes.append(Node(None, Place("--reward")).mistake("missing; add --reward '{kind: clip, pretrained: ...}'"))
    if mistakes:
        raise JobMistakes(mistakes)
    found = named([{"kind": kind.kind, "whole": kind} for kind in kinds if kind])
    return [Asked(each["name"], each["whole"]) for each in found], against


def node_of(text: str, option: str, mistakes: list[Mistake]) -> Node | None:
    try:
        return node_of_text(text, f"--{option}", option)
    except JobMistakes as wrong:
        mistakes += wrong.mistakes
        return None


def cannot(asked: Sequence[Asked], prompts: Sequence[str] | None, data: Data | None) -> list[str]:
    """Why these rewards cannot score these images, a sentence each."""
    found = []
    for each in asked:
        if each.reads_prompts and prompts is None:
            found.append(f"{each.name} reads prompts, and there are none; add --prompts file.csv, or --prompt for all")
        if each.needs_data and data is None:
            found.append(f"{each.name} compares a set with data, and there are none; add --data folder")
        if hasattr(each.kind.options, "lesson"):
            found.append(f"{each.name} knows a sample by its noise, which no file tells; take another reward")
    return found


# -- images ----------------------------------------------------------------------------------------------------


def files_of(folder: Path, prompts: Path | None = None) -> tuple[list[Path], dict[str, str]]:
    """Every image below a folder in number order, and what is left out and why; UserMistake where there are none.

    What a table of prompts names is an image in any case.
    """
    from genbo.diffusion.data import SUFFIXES

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
            said = str(problem).partition("\n")[0].replace(str(file), "the file") or type(problem).__name__
            broken.append(f"{plain(name)} ({plain(said)})")
    if broken:
        number = number_format.plural(len(broken), "image")
        raise ArtifactRefused(
            f"{number} in {folder} cannot be read; replace or remove them:\n"
            + "\n".join(f"  {text}" for text in broken)
        )
    return found


def decoded(file: Path) -> Tensor:
    """(3, H, W) in bytes."""
    from genbo.diffusion.data import decode

    return decode(file.read_bytes(), "rgb").expand(3, -1, -1)


def batches(pictures: Sequence[Picture], size: int) -> Iterator[tuple[list[int], Tensor]]:
    """All of them, those of one size together: their numbers, and (B, 3, H, W) in [0, 1]."""
    import torch

    order = sorted(range(len(pictures)), key=lambda n: (pictures[n].size, n))
    for _, alike in groupby(order, key=lambda n: pictures[n].size):
        while numbers := list(islice(alike, size)):
            yield numbers, torch.stack([decoded(pictures[n].file) for n in numbers]).float() / 255


# -- scores ----------------------------------------------------------------------------------------------------


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
    reward = opened.against(pixels_of(data)) if data is not None and hasattr(opened, "against") else opened
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
    if said := lacking(place):
        raise UserMistake(f"--device {device}: {said}; leave it out")
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


@contextmanager
def memory() -> Iterator[None]:
    """Memory that runs short, with the option that helps here."""
    try:
        yield
    except OutOfMemory as problem:
        said = str(problem).partition("; ")[0]
        raise OutOfMemory(f"{said}; score fewer images at once with a smaller --batch") from problem


# -- words -----------------------------------------------------------------------------------------------------


def say_json(document: Document) -> None:
    sys.stdout.write(to_json(document).decode())


def say_csv(document: Document) -> None:
    """A row for each image, or for each reward."""
    table = csv.writer(sys.stdout, lineterminator="\n")
    if document["each"] is None:
        table.writerow(("reward", "mean", "standard error", "images"))
        for name, found in document["rewards"].items():
            table.writerow((harmless(name), found["mean"], found["se"], found["images"]))
        return
    names = single(document)
    table.writerow(("file", "prompt", *map(harmless, names)))
    for row in document["each"]:
        words = (harmless(row["file"]), harmless(row["prompt"] or ""))
        table.writerow((*words, *(row["scores"][name] for name in names)))


def say(document: Document) -> None:
    """Tables for a person."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 140)
    if document["each"] is not None:
        names = single(document)
        table = Table("file", "prompt", box=None, pad_edge=False)
        for name in names:
            table.add_column(name, justify="right")
        for row in document["each"]:
            words = (harmless(row["file"]), harmless(row["prompt"] or ""))
            table.add_row(*map(text, words), *(number_format.number(row["scores"][name]) for name in names))
        console.print(table)
        console.print()
    table = Table("reward", "mean ± standard error", "of", box=None, pad_edge=False)
    for name, found in document["rewards"].items():
        images = number_format.plural(found["images"], "image")
        table.add_row(
            name,
            number_format.with_error(found["mean"], found["se"]),
            f"a set of {images}" if found["of"] == "set" else images,
        )
    console.print(table)


def single(document: Document) -> list[str]:
    """The rewards that score an image by itself."""
    return [name for name, found in document["rewards"].items() if found["of"] == "image"]


def text(cell: str) -> Any:
    """As it is, without rich's markup."""
    from rich.text import Text

    return Text(cell)


def harmless(cell: str) -> str:
    """A cell that no spreadsheet calculates and no terminal obeys."""
    return f"'{plain(cell)}" if cell.startswith(FORMULA) else plain(cell)


def plain(words: str) -> str:
    """Without what moves a cursor or turns the direction of writing."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words)
