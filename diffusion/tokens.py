"""What the text encoders of a pipeline read of a prompt: the first so many tokens, and nothing beyond.

CLIP's encoders read what their tokenizer's `model_max_length` says; T5 as many as the family's own call asks it for.
diffusers prints the ends that are cut off, of all prompts of a batch and with their padding; genbo counts them itself.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genbo.rewards._tokens import TokenReader, reader

# `max_sequence_length` of a pipeline's own call, by the tokenizer that it is for
ASKED = {
    "StableDiffusion3Pipeline": {"tokenizer_3": 256},
    "FluxPipeline": {"tokenizer_2": 512},
    "PixArtSigmaPipeline": {"tokenizer": 300},
    "PixArtAlphaPipeline": {"tokenizer": 120},
}
MOST = 100_000  # tokens: what transformers writes where there is no limit is larger
LIBRARIES = ("was truncated because", "Token indices sequence length is longer")  # as they say it


def readers_of(folder: Path) -> list[TokenReader]:
    """The text encoders of a pipeline's folder, by file names and JSON alone; those without a limit are left out."""
    index = _json(folder / "model_index.json")
    asked = ASKED.get(str(index.get("_class_name")), {})
    found = []
    for name, entry in index.items():
        if not name.startswith("tokenizer") or not isinstance(entry, list) or entry[:1] == [None]:
            continue
        encoder = name.replace("tokenizer", "text_encoder")
        limit = asked.get(name) or _limit(folder, name, encoder)
        if limit and (folder / name).is_dir():
            found.append(reader(encoder, limit, folder / name))
    return found


def _limit(folder: Path, tokenizer: str, encoder: str) -> int | None:
    own = _json(folder / tokenizer / "tokenizer_config.json").get("model_max_length")
    places = _json(folder / encoder / "config.json").get("max_position_embeddings")
    limits = [n for n in (own, places) if isinstance(n, (int, float)) and 0 < n < MOST]
    return int(limits[0]) if limits else None


def _json(file: Path) -> Mapping[str, object]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def loaded(pipeline: Any, read: Sequence[TokenReader]) -> list[TokenReader]:
    """The readers of an opened pipeline that `read` could not count for, with its own tokenizers."""
    here = {known.name for known in read if known.count is not None}
    found = []
    for known in readers_of(Path(pipeline.config._name_or_path)):
        own = pipeline.components.get(known.name.replace("text_encoder", "tokenizer"))
        if known.name not in here and callable(own):
            found.append(TokenReader(known.name, known.limit, _counted_by(own)))
    return found


def _counted_by(tokenizer: Any) -> Any:
    def count(texts: Sequence[str]) -> list[int]:
        with unsaid():
            return [len(ids) for ids in tokenizer(list(texts), truncation=False, padding=False).input_ids]

    return count


@contextmanager
def unsaid(pipeline: object = None) -> Iterator[None]:
    """Without what the libraries say about texts that are too long."""
    names = {base.__module__ for base in type(pipeline).__mro__}
    names |= {"transformers.tokenization_utils_base", "transformers.tokenization_utils_tokenizers"}
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(_is_other)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_other)


def _is_other(record: logging.LogRecord) -> bool:
    return not any(said in str(record.msg) for said in LIBRARIES)
