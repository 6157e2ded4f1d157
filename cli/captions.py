"""The prompts of image files: one for all, a text file with one a line in the order of their names, or a table.

    prompts.txt     one prompt a line, for the images in the order of their names
    prompts.csv     two columns, file and prompt; a first line of just these two words is left out
    prompts.json    {"a.png": "a red apple", "below/b.png": "a dog"}

Names are as they stand in the folder, with / between folders. What a file says is data: it is bounded and checked.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from genbo.cli.errors import UserMistake
from genbo.cli.reading import MAX_PROMPT, MAX_PROMPTS_BYTES

NAMED = 5  # that one sentence names
HEADS = ("file", "prompt")


def captions(file: Path | None, prompt: str | None, names: Sequence[str]) -> list[str] | None:
    """The prompt of each name, or None where none is given; UserMistake says what is wrong."""
    if file is not None and prompt is not None:
        raise UserMistake("--prompt and --prompts exclude each other; give one of them")
    if file is None:
        return None if prompt is None else _checked([prompt] * len(names), ["--prompt"] * len(names))
    text = _text(file)
    if file.suffix.lower() not in (".csv", ".json"):
        return _lines(file, text, names)
    table = _table(file, text) if file.suffix.lower() == ".csv" else _mapping(file, text)
    if missing := [name for name in names if name not in table]:
        raise UserMistake(f"{file} has no prompt for {spoken(missing)}; add a row for each, by its name in the folder")
    return _checked([table[name] for name in names], [f"{file}, {name}" for name in names])


def spoken(names: Sequence[str]) -> str:
    """The first of them, and how many more."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _text(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_PROMPTS_BYTES + 1)
        if len(data) > MAX_PROMPTS_BYTES:
            raise UserMistake(f"{file} is larger than {MAX_PROMPTS_BYTES // 1_000_000} MB; use fewer prompts")
        return data.decode("utf-8-sig")
    except OSError as problem:
        raise UserMistake(f"{file} cannot be read ({problem.strerror}); correct the path") from problem
    except UnicodeDecodeError as problem:
        raise UserMistake(f"{file} is not UTF-8; save it as UTF-8") from problem


def _lines(file: Path, text: str, names: Sequence[str]) -> list[str]:
    lines = text.rstrip().splitlines()
    if len(lines) != len(names):
        raise UserMistake(
            f"{file} has {len(lines)} lines for {len(names)} images; write one prompt a line in the order of their "
            "names, or a .csv or .json file that names them"
        )
    return _checked(lines, [f"line {n} of {file}" for n in range(1, len(lines) + 1)])


def _table(file: Path, text: str) -> dict[str, str]:
    try:
        rows = [(n, row) for n, row in enumerate(csv.reader(io.StringIO(text), strict=True), 1) if row]
    except csv.Error as problem:
        raise UserMistake(f"{file} is no table ({problem}); write two columns, file and prompt") from problem
    if rows and tuple(cell.strip().lower() for cell in rows[0][1]) == HEADS:
        rows = rows[1:]
    for n, row in rows:
        if len(row) != len(HEADS):
            raise UserMistake(f"row {n} of {file} has {len(row)} columns; write file and prompt, and quote commas")
    found = {row[0].strip(): row[1] for _, row in rows}
    if len(found) < len(rows):
        names = [row[0].strip() for _, row in rows]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserMistake(f"{file} names {twice} twice; delete one of the rows")
    return found


def _mapping(file: Path, text: str) -> dict[str, str]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise UserMistake(f'{file} is not JSON ({problem}); write {{"a.png": "a red apple"}}') from problem
    if not isinstance(found, dict) or not all(isinstance(prompt, str) for prompt in found.values()):
        raise UserMistake(f'{file} must map names to texts; write {{"a.png": "a red apple"}}')
    return found


def _checked(prompts: Sequence[str], where: Sequence[str]) -> list[str]:
    for prompt, place in zip(prompts, where, strict=True):
        if not prompt.strip():
            raise UserMistake(f"{place}: this prompt is empty; write what the image should show")
        if len(prompt) > MAX_PROMPT:
            raise UserMistake(f"{place}: a prompt of {len(prompt)} characters; use at most {MAX_PROMPT}")
    return [prompt.strip() for prompt in prompts]
