"""`prompts`: what is drawn, as a list, a file with a prompt a line or a column of them, or a bundled list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import BaseModel

from genbo.cli.job import catalog
from genbo.cli.job.kind import FROZEN
from genbo.cli.job.prompt_files import rows_of
from genbo.cli.job.reader import Reader, reason
from genbo.cli.job.section import Entry, Level, Section
from genbo.cli.job.sections.data import DATA
from genbo.cli.job.sections.model import MODEL, is_prompted
from genbo.cli.job.validation import shown
from genbo.cli.job.yaml_nodes import Node

NO_PROMPT = ("",)  # of a model that takes none
MAX_PROMPTS_BYTES = 16_000_000
MAX_PROMPT = 2_000  # characters
WRITTEN = str | Annotated[list[str], MinLen(1)]


class Prompts(BaseModel):
    """Prompts, and the name of the bundled list where they are one."""

    model_config = FROZEN

    texts: tuple[str, ...]
    bundled: str | None = None

    def document(self) -> str | list[str]:
        """As a job writes them."""
        return self.bundled or list(self.texts)


class PromptsSection(Section[Prompts]):
    key = "prompts"
    field = "prompt_list"
    missing = "missing; give a list of prompts, a text file, or a bundled list"

    def is_required(self, reader: Reader) -> bool:
        """Of all models but a network of one's own, or one that takes no prompt."""
        return _implied(reader) is None and (MODEL.of(reader) is not None or is_prompted(reader))

    def read(self, reader: Reader) -> Prompts | None:
        node = reader.at("prompts")
        return read_prompts(reader, node) if node else _implied(reader)

    def described(self) -> Entry:
        return WRITTEN | None, None  # needed by all but a network of one's own

    def written(self, value: Prompts, level: Level) -> Any:
        return None if value.texts == NO_PROMPT else value.document()


def read_prompts(reader: Reader, node: Node) -> Prompts | None:
    """The prompts under a key, or None with their mistakes noted."""
    if isinstance(node.value, str):
        return _of_name(reader, node, node.value)
    if not isinstance(node.value, list):
        reader.note(node, f"must be a list of prompts, a text file, or a bundled list, not {shown(node)}")
        return None
    if not node.value:
        reader.note(node, "the list is empty; give at least one prompt")
        return None
    good = [_prompt(reader, item, item.value) for item in node.value]
    return Prompts(texts=tuple(map(str.strip, filter(None, good)))) if all(good) else None


def _implied(reader: Reader) -> Prompts | None:
    """The prompts of a network that takes none, or whose own data have its classes; None for any other."""
    model, data = MODEL.of(reader), DATA.of(reader)
    if model is not None and model.takes_no_prompt:
        return Prompts(texts=NO_PROMPT)
    if model is None or not model.learns:
        return None
    names = data.classes if data and model.traits.classes else ()
    return Prompts(texts=names or NO_PROMPT)


def _prompt(reader: Reader, node: Node, text: object, where: str = "") -> str | None:
    if not isinstance(text, str):
        seen = shown(node) if not where else f"{text!r:.40}"
        reader.note(node, f"{where}a prompt must be a text, not {seen}; put it in quotes")
    elif not text.strip():
        reader.note(node, f"{where}this prompt is empty; delete it, or write what the image should show")
    elif len(text) > MAX_PROMPT:
        reader.note(node, f"{where}a prompt of {len(text)} characters; use at most {MAX_PROMPT}")
    elif not set(text).isdisjoint(map(chr, range(9))):
        reader.note(node, f"{where}this prompt holds a control character; delete it")
    else:
        return text
    return None


def _of_name(reader: Reader, node: Node, name: str) -> Prompts | None:
    """The prompts of a bundled list, or of a file beside the job."""
    from genbo.diffusion import bundled

    listed = bundled.prompts_file(name)
    text = _text_of(reader, node, name, listed)
    if text is None:
        return None
    try:
        rows = rows_of(name, text)
    except ValueError as error:
        reader.note(node, str(error))
        return None
    if not rows:
        reader.note(node, f"{name} holds no prompts; write one a line")
        return None
    good = [_prompt(reader, node, row.text, f"{row.where}: ") for row in rows]
    texts = tuple(text.strip() for text in good if text is not None)
    return Prompts(texts=texts, bundled=name if listed else None) if len(texts) == len(rows) else None


def _text_of(reader: Reader, node: Node, name: str, listed: Path | None) -> str | None:
    from genbo.diffusion import bundled

    try:
        path = listed or reader.base / Path(name).expanduser()
        if not name or not path.is_file():
            known = catalog.nearest(name, bundled.prompt_lists())
            message = f"no file {name!r} beside the job and no bundled list of that name{known}; "
            reader.note(node, f"{message}one prompt is [{name or '...'}]")
            return None
        with path.open("rb") as file:
            data = file.read(MAX_PROMPTS_BYTES + 1)
        if len(data) > MAX_PROMPTS_BYTES:
            reader.note(node, f"{name} is larger than {MAX_PROMPTS_BYTES // 1_000_000} MB; use fewer prompts")
            return None
        return data.decode("utf-8-sig")
    except (OSError, ValueError, RuntimeError) as error:
        message = f"{name!r} cannot be read as text ({reason(error)}); give a file in UTF-8, a prompt a line"
        reader.note(node, message)
        return None


PROMPTS = PromptsSection()
