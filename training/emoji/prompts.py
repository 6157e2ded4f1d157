"""Choose prompts to tune on and prompts to test on: different concepts of every kind, with clear labels."""

import argparse
import hashlib
from pathlib import Path

from training.emoji import data

PEOPLE = {"person", "man", "woman", "men", "women", "boy", "girl", "family", "people", "adult"}
VAGUE_SUBGROUPS = {
    "family",
    "keycap",
    "alphanum",
    "zodiac",
    "religion",
    "arrow",
    "math",
    "punctuation",
    "av-symbol",
}
VAGUE_SUBGROUPS |= {"other-symbol", "transport-sign", "gender", "currency", "person-resting", "person-symbol"}
PART = {  # group -> its share of the prompts
    "smileys-emotion": 0.14,
    "people-body": 0.06,
    "animals-nature": 0.2,
    "food-drink": 0.18,
    "travel-places": 0.16,
    "activities": 0.08,
    "objects": 0.16,
    "symbols": 0.02,
}


def digest(text: str) -> str:
    """A fixed order that looks random."""
    return hashlib.sha256(text.encode()).hexdigest()


def clear(emoji: data.Emoji, i: int) -> bool:
    """A short label of plain words that settles its picture, drawn in all three styles, known to the CLIP."""
    words = emoji.labels[i].split()
    return (
        len(words) <= 3
        and all(word.isalpha() and len(word) > 2 for word in words)
        and not PEOPLE & set(words)
        and emoji.subgroups[i] not in VAGUE_SUBGROUPS
        and not emoji.held_out[i]
        and (emoji.concept == i).sum() == len(emoji.styles)
    )


def choose(emoji: data.Emoji, counts: list[int]) -> list[list[str]]:
    """Disjoint lists of prompts; half of the prompts name a style, in turn."""
    lists: list[list[str]] = [[] for _ in counts]
    for group, share in PART.items():
        found = [i for i, g in enumerate(emoji.groups) if g == group and clear(emoji, i)]
        found.sort(key=lambda i: digest("prompt " + emoji.labels[i]))
        for prompts, count in zip(lists, counts, strict=True):
            take = round(share * count)
            prompts += [emoji.labels[i] for i in found[:take]]
            found = found[take:]
    lists = [sorted(prompts, key=digest)[:count] for prompts, count in zip(lists, counts, strict=True)]
    names = [f"{style} " for style in emoji.styles]
    return [[(names[n // 2 % 3] if n % 2 else "") + p for n, p in enumerate(prompts)] for prompts in lists]


def main() -> None:
    """Write one prompt a line into two files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=data.PACKED)
    parser.add_argument("--tuning", type=Path, default=data.PROMPTS / "emoji-tuning.txt")
    parser.add_argument("--held-out", type=Path, default=data.PROMPTS / "emoji-held-out.txt")
    parser.add_argument("--counts", type=int, nargs=2, default=[64, 128])
    args = parser.parse_args()
    for path, prompts in zip((args.tuning, args.held_out), choose(data.load(args.data), args.counts), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(prompts) + "\n")
        print(f"{path}: {len(prompts)} prompts")


if __name__ == "__main__":
    main()
