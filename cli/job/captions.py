"""The prompts of image files: one for all, a file with one a line in the order of their names, or a table of both.

    prompts.txt     one prompt a line, for the images in number order: 2.png before 10.png
    prompts.csv     two columns, file and prompt, or more with these two among the names in the first line
    prompts.json    {"a.png": "a red apple", "below/b.png": "a dog"}
    metadata.jsonl  {"file_name": "a.png", "text": "a red apple"} a line

Names are as they stand in the folder, with / between folders. A table that names no files is read in the order of its
rows, as a text is. What a file says is data: it is bounded and checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from genbo.cli.errors import UserMistake
from genbo.cli.job.gallery import uncertain
from genbo.cli.job.prompt_files import NAMES, TEXTS, Row, cells_of, column, rows_of
from genbo.cli.job.sections.prompts import MAX_PROMPT, MAX_PROMPTS_BYTES

NAMED = 5  # that one sentence names
HEADS = ("file", "prompt")


def captions(file: Path | None, prompt: str | None, names: Sequence[str]) -> list[str] | None:
    """The prompt of each name, or None where none is given; UserMistake says what is wrong.

    `names` are in number order.
    """
    if file is not None and prompt is not None:
        raise UserMistake("--prompt and --prompts exclude each other; give one of them")
    if file is None:
        return None if prompt is None else _checked([prompt] * len(names), ["--prompt"] * len(names))
    table = listed(file)
    if isinstance(table, list):
        return _in_order(file, table, names)
    if missing := [name for name in names if name not in table]:
        raise UserMistake(f"{file} has no prompt for {spoken(missing)}; add a row for each, by its name in the folder")
    return _checked([table[name] for name in names], [f"{file}, {name}" for name in names])


def listed(file: Path) -> dict[str, str] | list[Row]:
    """The prompts of a file by the names of images, or in their order where it has no names."""
    text, suffix = _text(file), file.suffix.lower()
    if suffix == ".json":
        return _mapping(file, text)
    if suffix == ".csv" and not _has_heads(str(file), text):
        return _table(file, text)
    try:
        rows = rows_of(str(file), text, empty=True)
    except ValueError as problem:
        raise UserMistake(str(problem)) from problem
    return rows if not rows or any(row.file is None for row in rows) else _by_name(file, rows)


def _has_heads(name: str, text: str) -> bool:
    """Whether the first row of a table names a column of prompts, and it is not just the two of a table of files."""
    try:
        rows = cells_of(name, text)
    except ValueError as problem:
        raise UserMistake(f"{problem}; write two columns, file and prompt") from problem
    head = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    return column(head, TEXTS) is not None and tuple(head) != HEADS


def _by_name(file: Path, rows: Sequence[Row]) -> dict[str, str]:
    found: dict[str, str] = {}
    for row in rows:
        assert row.file is not None
        if row.file in found:
            raise UserMistake(f"{file} names {row.file} twice; delete one of the rows")
        if not isinstance(row.text, str):
            raise UserMistake(f"{row.where}: a prompt must be a text; put it in quotes")
        found[row.file] = row.text
    return found


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


def _in_order(file: Path, rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    if len(rows) != len(names):
        raise UserMistake(
            f"{file} has {len(rows)} lines for {len(names)} images; write one prompt a line in the order of their "
            "names, or a .csv or .json file that names them"
        )
    if pair := uncertain(names):
        raise UserMistake(
            f"{file} gives each image its prompt by the order of their names, and nothing says whether {pair[0]} or "
            f"{pair[1]} comes first; name the images in a .csv or .json file"
        )
    return _checked([row.text for row in rows], [row.where for row in rows])


def _table(file: Path, text: str) -> dict[str, str]:
    rows = cells_of(str(file), text)
    if rows and tuple(cell.strip().lower() for cell in rows[0][1]) == HEADS:
        rows = rows[1:]
    for n, row in rows:
        if len(row) != len(HEADS):
            raise UserMistake(f"row {n} of {file} has {len(row)} columns; write file and prompt, and quote commas")
    return _by_name(file, [Row(row[1], f"row {n} of {file}", row[0].strip()) for n, row in rows])


def _mapping(file: Path, text: str) -> dict[str, str] | list[Row]:
    """Names to texts, or a list of objects that have both."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise UserMistake(f'{file} is not JSON ({problem}); write {{"a.png": "a red apple"}}') from problem
    if isinstance(found, Mapping) and all(isinstance(prompt, str) for prompt in found.values()):
        return dict(found)
    if isinstance(found, list) and found and all(_has_both(entry) for entry in found):
        return _by_name(file, rows_of(str(file), text))
    raise UserMistake(f'{file} must map names to texts; write {{"a.png": "a red apple"}}')


def _has_both(entry: object) -> bool:
    keys = list(entry) if isinstance(entry, Mapping) else []
    return column(keys, TEXTS) is not None and column(keys, NAMES) is not None


def _checked(prompts: Sequence[object], where: Sequence[str]) -> list[str]:
    found = []
    for prompt, place in zip(prompts, where, strict=True):
        if not isinstance(prompt, str):
            raise UserMistake(f"{place}: a prompt must be a text; put it in quotes")
        if not prompt.strip():
            raise UserMistake(f"{place}: this prompt is empty; write what the image should show")
        if len(prompt) > MAX_PROMPT:
            raise UserMistake(f"{place}: a prompt of {len(prompt)} characters; use at most {MAX_PROMPT}")
        found.append(prompt.strip())
    return found
