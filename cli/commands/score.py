"""genbo score: how good the images of a folder are, by any rewards, with error bars.

    mean +- its standard error over the images; of a reward of sets, over sets of as many

Files are data: every one that cannot be read is named, all at once, before anything is scored. A cell of a table that
a spreadsheet would take for a formula is written as the text that it is.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genbo.cli.errors import OutOfMemory, UserMistake
from genbo.cli.job.captions import captions
from genbo.cli.job.job import JobMistakes, Mistake
from genbo.cli.job.reader import Reader, named
from genbo.cli.job.sections.data import read_data
from genbo.cli.job.user_code import Allowed, allowed, announce
from genbo.cli.job.yaml_nodes import Node, Place, node_of_text
from genbo.cli.report import number_format
from genbo.cli.run.json_files import to_json
from genbo.cli.stages.scoring import Asked, files_of, plain, readable, scored
from genbo.rewards._tokens import sentences

if TYPE_CHECKING:
    from rich.text import Text

    from genbo.diffusion.data import Data

Document = dict[str, Any]
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet calculates where a cell begins with it


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
    readers = [reader for each in asked for reader in each.traits.readers()]
    for warning in sentences(readers, texts or ()):
        print(warning, file=sys.stderr)
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
        if each.traits.lesson:
            found.append(f"{each.name} knows a sample by its noise, which no file tells; take another reward")
    return found


@contextmanager
def memory() -> Iterator[None]:
    """Memory that runs short, with the option that helps here."""
    try:
        yield
    except OutOfMemory as problem:
        shortage = str(problem).partition("; ")[0]
        raise OutOfMemory(f"{shortage}; score fewer images at once with a smaller --batch") from problem


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


def text(cell: str) -> Text:
    """As it is, without rich's markup."""
    from rich.text import Text

    return Text(cell)


def harmless(cell: str) -> str:
    """A cell that no spreadsheet calculates and no terminal obeys."""
    return f"'{plain(cell)}" if cell.startswith(FORMULA) else plain(cell)
