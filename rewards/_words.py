"""Whether a tokenizer of transformers knows any word: of a folder that lacks its files it makes one that does not."""

from __future__ import annotations

from itertools import product
from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def knows_words(tokenizer: Any) -> bool:
    """Whether some letter by itself becomes a token that has it, and not one for what is unknown."""
    rows = tokenizer(list(LETTERS), add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    known = tokenizer.convert_ids_to_tokens([n for row in rows for n in row if n not in special])
    return any(letter in token.lower() for letter, token in product(LETTERS, known))
