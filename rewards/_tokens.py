"""How many tokens a text is for an encoder that reads only the first of them, told without torch.

A tokenizer is read from its own files: tokenizer.json, vocab.json with merges.txt (CLIP's), or vocab.txt (BERT's). What
lies in another form (a spiece.model alone) has no reader here.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CLIP = 77  # tokens that OpenAI's CLIP reads, the two at the ends among them
NAMED, LONGEST = 3, 60  # prompts that a sentence names, and characters of each
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
ENDS = ("<|startoftext|>", "<|endoftext|>")


@dataclass(frozen=True)
class TokenReader:
    """`name` reads the first `limit` tokens of a text, which stands in `template`; `count` tells how many it has.

    Where its files cannot be read here, `count` is None.
    """

    name: str
    limit: int
    count: Callable[[Sequence[str]], list[int]] | None
    template: str = "{}"

    def too_long(self, texts: Sequence[str]) -> list[str]:
        """Those whose ends are not read."""
        whole = [self.template.replace("{}", text) for text in texts]
        # no tokenizer here makes more tokens than bytes; lower case can make a byte or two more
        doubtful = [n for n, text in enumerate(whole) if 3 * len(text.encode()) // 2 + 2 > self.limit]
        if self.count is None or not doubtful:
            return []
        counts = self.count([whole[n] for n in doubtful])
        return [texts[n] for n, tokens in zip(doubtful, counts, strict=True) if tokens > self.limit]


def sentences(readers: Sequence[TokenReader], given: Sequence[str]) -> Iterator[str]:
    """What is ignored of these texts, a sentence for each set of them; readers that agree share it."""
    texts = list(dict.fromkeys(given))
    found: dict[tuple[int, tuple[str, ...]], list[str]] = {}
    for reader in readers:
        if cut := reader.too_long(texts):
            found.setdefault((reader.limit, tuple(cut)), []).append(reader.name)
    for (limit, long), names in found.items():
        are = f"{'prompt' if len(texts) == 1 else 'prompts'} {'is' if len(long) == 1 else 'are'}"
        end = "its end is" if len(long) == 1 else "their ends are"
        shown = ", ".join(f"'{_cut(text)}'" for text in long[:NAMED])
        more = f" and {len(long) - NAMED} more" if len(long) > NAMED else ""
        by = ", ".join(dict.fromkeys(names))
        yield f"{len(long)} of {len(texts)} {are} longer than {limit} tokens; {end} ignored: {shown}{more} (by {by})"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def reader(name: str, limit: int, folder: Path, template: str = "{}") -> TokenReader:
    """Of the tokenizer whose files lie in a folder."""
    return TokenReader(name, limit, _counter(lambda: _of_folder(folder)), template)


def reader_of_open_clip(name: str, limit: int, template: str = "{}") -> TokenReader:
    """Of the vocabulary that open_clip ships, OpenAI's."""
    return TokenReader(name, limit, _counter(_of_open_clip), template)


def _counter(load: Callable[[], Any]) -> Callable[[Sequence[str]], list[int]] | None:
    try:
        tokenizer = load()
    except Exception:  # its own exception types; what is wrong with the files is found where they are loaded
        return None
    if tokenizer is None:
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda texts: [len(found.ids) for found in tokenizer.encode_batch(list(texts))]


def _of_folder(folder: Path) -> Any:
    from tokenizers import BertWordPieceTokenizer, Tokenizer

    if (folder / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocabulary = json.loads((folder / "vocab.json").read_text("utf-8"))
        return _clip(vocabulary, (folder / "merges.txt").read_text("utf-8").splitlines())
    if (folder / "vocab.txt").is_file():
        return BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
    return None


def _clip(vocabulary: dict[str, int], lines: Sequence[str]) -> Any:
    """CLIP's way of splitting, as transformers' CLIPTokenizer has it."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    split = [line.split() for line in lines if not line.startswith("#version")]
    pairs = [(pair[0], pair[1]) for pair in split if len(pair) == 2]
    model = models.BPE(
        vocabulary, pairs, continuing_subword_prefix="", end_of_word_suffix="</w>", fuse_unk=False, unk_token=ENDS[1]
    )
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(list(ENDS))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    first, last = ((text, vocabulary[text]) for text in ENDS)
    tokenizer.post_processor = processors.RobertaProcessing(last, first, trim_offsets=False, add_prefix_space=False)
    return tokenizer


def _of_open_clip() -> Any:
    """bpe_simple_vocab_16e6.txt.gz: the vocabulary is the bytes, the bytes that end a word, and the merges."""
    from tokenizers import pre_tokenizers

    spec = find_spec("open_clip")
    (place,) = (spec.submodule_search_locations if spec else None) or (None,)
    if place is None:
        return None
    with gzip.open(Path(place) / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(line.split()) for line in lines), *ENDS]
    return _clip({word: number for number, word in enumerate(words)}, lines)
