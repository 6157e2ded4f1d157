"""How well the judge knows drawings that it never saw, and how far it agrees with `emoji-clip` about them."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from training.emoji import data
from training.emoji.evaluate import Tokenize, load_clip, retrieval
from training.emoji.prompts import digest

KNOWN = 200


def known_names(emoji: data.Emoji, count: int = KNOWN) -> np.ndarray:
    """Concepts whose names were trained on, as many as are held out; their drawings in the model's styles were not."""
    seen = sorted(np.flatnonzero(~emoji.held_out), key=lambda i: digest(f"known {emoji.labels[i]}"))
    return np.array(sorted(seen[:count]))


@torch.no_grad()
def similarities(
    model: torch.nn.Module, tokenize: Tokenize, emoji: data.Emoji, concepts: np.ndarray
) -> list[np.ndarray]:
    """Of each style, cosines of every name (rows) with every drawing (columns), its own on the diagonal."""
    device = next(model.parameters()).device
    found = []
    for style in range(len(emoji.styles)):
        row = {c: i for i, c in enumerate(emoji.concept) if emoji.style[i] == style}
        own = [c for c in concepts if c in row]
        text = F.normalize(model.encode_text(tokenize([emoji.labels[c] for c in own]).to(device)).float(), dim=1)
        x = data.pixels(emoji.images[[row[c] for c in own]]).to(device)
        found.append((text @ F.normalize(model.encode_image(x).float(), dim=1).T).cpu().numpy())
    return found


def agreement(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> dict[str, float]:
    """Of two models on the same real pairs, means over the styles.

    `all_pairs` and `own_pairs` are Spearman's rank correlations of their cosines, of all names with all drawings and of
    names with their own drawings alone; `both`, `only_first`, `only_second` and `neither` are the parts of the names
    whose own drawing is the nearest.
    """
    rows = []
    for a, b in zip(one, other, strict=True):
        first, second = (s.argmax(1) == np.arange(len(s)) for s in (a, b))
        rows.append(
            {
                "all_pairs": spearmanr(a.ravel(), b.ravel()).statistic,
                "own_pairs": spearmanr(np.diag(a), np.diag(b)).statistic,
                "both": (first & second).mean(),
                "only_first": (first & ~second).mean(),
                "only_second": (~first & second).mean(),
                "neither": (~first & ~second).mean(),
            }
        )
    return {key: round(float(np.mean([row[key] for row in rows])), 4) for key in rows[0]}


def main() -> None:
    """Write judge.json into the folder of the evaluation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=data.PACKED, help="the styles of the model that is judged")
    parser.add_argument("--own", type=Path, default=data.JUDGE_PACKED, help="the judge's own styles")
    parser.add_argument("--judge", type=Path, default=data.JUDGE)
    parser.add_argument("--clip", type=Path, default=data.CLIP)
    parser.add_argument("--out", type=Path, default=data.EVALUATION)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    emoji, own = data.load(args.data), data.load(args.own)
    clip, judge = (load_clip(folder, device) for folder in (args.clip, args.judge))
    drawn = set(own.concept.tolist())
    result: dict = {"images": len(own.images), "drawn": len(drawn), "own": retrieval(*judge, own)}
    result["hidden"] = sum(own.held_out[i] for i in drawn).item()
    for name, concepts in (("unseen", np.flatnonzero(emoji.held_out)), ("known", known_names(emoji))):
        result[name] = retrieval(*judge, emoji, concepts)
        result[f"{name}_agreement"] = agreement(*(similarities(*m, emoji, concepts) for m in (clip, judge)))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "judge.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
