"""The packed emoji as arrays, their captions, and a small tokenizer trained on captions."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

CACHE = Path(".cache/emoji")
PACKED = CACHE / "emoji.npz"
JUDGE_PACKED = CACHE / "judge.npz"
EVALUATION = CACHE / "evaluation"
PIPELINE = Path("diffusion/bundled/emoji")
CLIP = Path("rewards/bundled/emoji-clip")
JUDGE = Path("rewards/bundled/emoji-judge")
STYLE = Path("rewards/bundled/emoji-style")
PROMPTS = Path("diffusion/bundled/prompts")


@dataclass(frozen=True)
class Emoji:
    """N images of C concepts; `concept` and `style` index the rows of the other fields."""

    images: np.ndarray  # (N, 64, 64, 3) uint8, on white
    alphas: np.ndarray  # (N, 64, 64) uint8
    concept: np.ndarray  # (N,)
    style: np.ndarray  # (N,)
    styles: list[str]
    labels: list[str]  # (C,)
    keywords: list[list[str]]
    groups: list[str]
    subgroups: list[str]
    held_out: np.ndarray  # (C,) bool


def load(path: Path) -> Emoji:
    """Read what pack.py wrote."""
    with np.load(path, allow_pickle=False) as npz:
        words = {k: npz[k].tolist() for k in ("styles", "labels", "groups", "subgroups")}
        keywords = [row.split(",") if row else [] for row in npz["keywords"].tolist()]
        arrays = {k: npz[k] for k in ("images", "alphas", "held_out")}
        index = {k: npz[k].astype(np.int64) for k in ("concept", "style")}
    return Emoji(**words, **arrays, **index, keywords=keywords)


def caption(label: str, keywords: list[str], rng: random.Random) -> str:
    """The label, a few keywords, or both."""
    few = rng.sample(keywords, min(len(keywords), rng.randint(1, 3)))
    kind = rng.random()
    if kind < 0.6 or not few:
        return label
    return " ".join(few) if kind < 0.8 and len(few) > 1 else " ".join([label, *few])


def caption_table(
    emoji: Emoji, tokenizer: CLIPTokenizer, variants: int, seed: int = 0
) -> torch.Tensor:  # (C, styles, variants, length)
    """Token ids of several captions of each concept in each style, half of them naming the style first."""
    rng = random.Random(seed)
    texts = [
        f"{style} {text}" if v % 2 else text
        for label, keywords in zip(emoji.labels, emoji.keywords, strict=True)
        for style in emoji.styles
        for v, text in enumerate(caption(label, keywords, rng) for _ in range(variants))
    ]
    return token_ids(tokenizer, texts).view(len(emoji.labels), len(emoji.styles), variants, -1)


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Padded ids, (len(texts), model_max_length)."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> CLIPTokenizer:
    """A byte-level BPE in CLIP's format: every byte, every byte at a word's end, merges, start and end."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = [*alphabet, *(c + "</w>" for c in alphabet)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]][: vocab_size - len(symbols) - 2]
    tokens = dict.fromkeys([*symbols, *(a + b for a, b in merges), "<|startoftext|>", "<|endoftext|>"])
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)


def record(name: str, **facts: float | str) -> None:
    """Keep what a training was, for the card."""
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n")


def recorded(name: str) -> dict:
    """What `record` kept."""
    return json.loads((CACHE / f"{name}.json").read_text())


def device_name(device: torch.device) -> str:
    """As its maker calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def pixels(images: np.ndarray) -> torch.Tensor:  # (N, 3, 64, 64)
    """uint8 images, channels last, as floats in [-1, 1], channels first."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()
