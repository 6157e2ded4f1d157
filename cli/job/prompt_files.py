"""Prompts in files: a text with one a line, or a table whose text column is read.

    prompts.txt                      one prompt a line; empty lines, and lines that begin with "# ", say nothing
    prompts.csv, .tsv                a column called prompt, text or caption, or one column without a name
    prompts.jsonl                    an object a line with such a key, or a text a line
    prompts.json                     a list of these, or {"prompts": [...]}

What looks like a table is read as one whatever its name ends in, so that no line of JSON is ever drawn. Beside the
texts there may be the names of files (file, file_name, image, path), which `genbo score` pairs them by.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

TEXTS = ("prompt", "text", "caption", "prompts", "texts", "captions")  # the first that there is counts
NAMES = ("file", "file_name", "filename", "image", "image_path", "path")
TABLES = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
OTHERS = (".yaml", ".yml", ".xml", ".html", ".toml", ".parquet", ".arrow", ".xlsx", ".ods", ".gz", ".zip", ".zst")
NEEDED = "call the column of the prompts prompt, text or caption"


@dataclass(frozen=True)
class Row:
    """A prompt as the file has it, which need not be a text, where it stands there, and the file that it is of."""

    text: object
    where: str
    file: str | None = None


def rows_of(name: str, text: str, *, empty: bool = False) -> list[Row]:
    """The prompts in a file of this name; ValueError with a sentence where they cannot be told from the rest.

    With `empty` an empty line of a text is a row too, but for those at the end.
    """
    suffix = PurePath(name).suffix.lower()
    if suffix in OTHERS:
        raise ValueError(f"{name} is no file of prompts that is read here; write a prompt a line, a .csv or a .jsonl")
    text = text.removeprefix("\ufeff")
    if suffix in TABLES:
        return _table(name, text, TABLES[suffix])
    if suffix in (".jsonl", ".ndjson"):
        return _json_lines(name, text)
    if suffix == ".json" or _is_json(text):
        return _json(name, text)
    if _begins_with_an_object(text):
        return _json_lines(name, text)
    if delimiter := _delimiter_of(text):
        return _table(name, text, delimiter)
    return [
        Row(line, f"line {number} of {name}")
        for number, line in enumerate(lines_of(text.rstrip()), 1)
        if (line.strip() or empty) and not is_comment(line)
    ]


def lines_of(text: str) -> list[str]:
    """Lines as editors count them: `str.splitlines` also ends them at characters that may stand in a prompt."""
    return re.split("\r\n|\n|\r", text)


def is_comment(line: str) -> bool:
    return line.lstrip().startswith("# ") or line.strip() == "#"


def column(names: Sequence[object], known: Sequence[str]) -> int | None:
    """The first column whose name is known, whatever its case."""
    plain = [str(name).strip().lower() for name in names]
    return next((plain.index(name) for name in known if name in plain), None)


# -- tables ----------------------------------------------------------------------------------------------------


def _table(name: str, text: str, delimiter: str) -> list[Row]:
    delimiter = _delimiter_of(text) or delimiter
    found = cells_of(name, text, delimiter)
    if not found:
        return []
    head = found[0][1]
    at, of = column(head, TEXTS), column(head, NAMES)
    if at is None:
        if any(len(cells) > 1 for _, cells in found):
            shown = ", ".join(cell.strip()[:40] for cell in head[:5])
            raise ValueError(
                f"{name} has no column of prompts among its first line ({shown}); {NEEDED}, or quote commas"
            )
        return [Row(cells[0], f"row {number} of {name}") for number, cells in found]
    rows = []
    for number, cells in found[1:]:
        if len(cells) != len(head):
            raise ValueError(
                f"row {number} of {name} has {len(cells)} columns, and the first {len(head)}; quote texts with commas"
            )
        rows.append(Row(cells[at], f"row {number} of {name}", None if of is None else cells[of].strip()))
    return rows


def cells_of(name: str, text: str, delimiter: str = ",") -> list[tuple[int, list[str]]]:
    """The cells of every row that has any, with the row's number from 1."""
    try:
        rows = enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 1)
        return [(number, cells) for number, cells in rows if any(cell.strip() for cell in cells)]
    except csv.Error as problem:
        raise ValueError(f"{name} is no table ({problem}); close every quote, and double those inside a text") from None


def _delimiter_of(text: str) -> str | None:
    """What parts the cells, where the first line names a column of prompts among several."""
    first = next((line for line in lines_of(text) if line.strip()), "")
    for delimiter in ("\t", ",", ";"):
        cells = [cell.strip('"') for cell in first.split(delimiter)]
        plain = all(re.fullmatch(r"[\w .-]{0,40}", cell) and cell == cell.strip() for cell in cells)
        if len(cells) > 1 and plain and column(cells, TEXTS) is not None:
            return delimiter
    return None


# -- JSON ------------------------------------------------------------------------------------------------------


def _is_json(text: str) -> bool:
    """Whether the whole of it is a list or an object of JSON."""
    if not text.lstrip().startswith(("[", "{")):
        return False
    try:
        return isinstance(json.loads(text), (list, dict)) and not _is_one_line(text)
    except (ValueError, RecursionError):
        return False


def _is_one_line(text: str) -> bool:
    """A single object on a line of its own, which is JSON lines too."""
    return text.strip().startswith("{") and len(lines_of(text.strip())) == 1


def _begins_with_an_object(text: str) -> bool:
    first = next((line for line in lines_of(text) if line.strip()), "")
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _json_lines(name: str, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(lines_of(text), 1):
        if not line.strip():
            continue
        where = f"line {number} of {name}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError(f'{where} is not JSON; write {{"prompt": "a red apple"}}, an object a line') from None
        rows.append(_row(value, where))
    return rows


def _json(name: str, text: str) -> list[Row]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise ValueError(f'{name} is not JSON ({problem}); write ["a red apple", ...]') from None
    if isinstance(found, Mapping):
        at = column(list(found), TEXTS)
        inner = None if at is None else list(found.values())[at]
        if inner is None:
            raise ValueError(f'{name} has no prompts at its top; write ["a red apple", ...] or {{"prompts": [...]}}')
        found = inner if isinstance(inner, list) else [found]
    if not isinstance(found, list):
        raise ValueError(f'{name} holds no list; write ["a red apple", ...] or {{"prompts": [...]}}')
    return [_row(value, f"entry {number} of {name}") for number, value in enumerate(found, 1)]


def _row(value: object, where: str) -> Row:
    """A text, or an object with one."""
    if not isinstance(value, Mapping):
        return Row(value, where)
    keys = list(value)
    at, of = column(keys, TEXTS), column(keys, NAMES)
    if at is None:
        shown = ", ".join(str(key)[:40] for key in keys[:5]) or "none"
        raise ValueError(f"{where} has no prompt (its keys: {shown}); call it prompt, text or caption")
    file = None if of is None else value[keys[of]]
    return Row(value[keys[at]], where, file if isinstance(file, str) else None)
