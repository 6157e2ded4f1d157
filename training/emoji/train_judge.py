"""Train "emoji-judge", a second CLIP of the emoji world, as little like "emoji-clip" as the material allows.

    s_ij = e^tau <text_i, image_j>,    cross-entropy both ways against  (1 - a) [i = j] + a word overlap_ij

|            | emoji-clip                           | emoji-judge                              |
| ---        | ---                                  | ---                                      |
| drawings   | noto, flat, 3d, as the model draws   | blob, one, fox, plain: none of those     |
| words      | emojibase                            | Unicode, EmojiOne, emojilib              |
| images     | a residual network                   | a ConvNeXt                               |
| texts      | width 128, 4,096 tokens              | width 160, 2,048 tokens                  |
| loss       | + subgroups, + clean before spoiled  | + two drawings of a concept              |

The 200 concepts that emoji-clip never saw are held out here too. A style's name before a caption means nothing to it:
a third of the captions have one at random.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor

from training.emoji import data
from training.emoji.evaluate import retrieval
from training.emoji.loop import Step, Trained, Wrap, bf16, prepare, run
from training.emoji.train_clip import DIRECTIONAL, RANDOMS, augment, save, word_overlap

CONTEXT, VOCAB = 24, 2048
CAPTION_VARIANTS = 96
STYLE_NAMES = ("noto", "flat", "3d")  # of the model that is judged: read, and without a meaning
TOWERS = {
    "transformer": {"patch_size": 8, "width": 192, "layers": 9, "head_width": 32},
    "convnext": {"timm_model_name": "convnext_atto", "timm_model_pretrained": False, "timm_proj": "linear"},
}


def model_config(args: argparse.Namespace, vocab_size: int) -> dict:
    """open_clip's `model_cfg`."""
    return {
        "embed_dim": args.embed,
        "vision_cfg": {"image_size": 64, **TOWERS[args.tower]},
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": vocab_size,
            "hf_tokenizer_name": "emoji-judge",  # open_clip reads it from the model's own folder
            "width": args.text_width,
            "heads": 5,
            "layers": args.text_layers,
        },
    }


def load_names(path: Path) -> list[list[str]]:
    """Each concept's names, its label first."""
    with np.load(path, allow_pickle=False) as npz:
        return [row.split(",") for row in npz["names"].tolist()]


def caption(names: list[str], keywords: list[str], rng: random.Random) -> str:
    """A name, or one with keywords, or keywords alone; the label as often as all other names together."""
    name = names[0] if rng.random() < 0.5 else rng.choice(names)
    few = rng.sample(keywords, min(len(keywords), rng.randint(1, 4)))
    kind = rng.random()
    if kind < 0.5 or not few:
        words = [name]
    elif kind < 0.75:
        words = [name, *few]
    else:
        words = few
    return " ".join([rng.choice(STYLE_NAMES), *words] if rng.random() < 1 / 3 else words)


def captions(
    emoji: data.Emoji, names: list[list[str]], tokenizer: data.CLIPTokenizer, seed: int
) -> Tensor:  # (C, variants, length)
    """Token ids of several captions of each concept."""
    rng = random.Random(seed)
    pairs = zip(names, emoji.keywords, strict=True)
    texts = [caption(n, k, rng) for n, k in pairs for _ in range(CAPTION_VARIANTS)]
    return data.token_ids(tokenizer, texts).view(len(names), CAPTION_VARIANTS, -1)


def drawings_of(emoji: data.Emoji, concepts: np.ndarray) -> np.ndarray:  # (len(concepts), styles)
    """Rows of `emoji.images`: every drawing of a concept, from the first again where it has fewer than styles."""
    own = [np.flatnonzero(emoji.concept == i) for i in concepts]
    return np.stack([np.resize(rows, len(emoji.styles)) for rows in own])


def train(
    model: CLIP,
    emoji: data.Emoji,
    names: list[list[str]],
    tokenizer: data.CLIPTokenizer,
    args: argparse.Namespace,
    config: dict,
) -> tuple[int, Trained]:
    """Fit the model to the concepts that are drawn and not held out."""
    device = next(model.parameters()).device
    drawn = np.isin(np.arange(len(emoji.labels)), emoji.concept)
    seen = np.flatnonzero(drawn & ~emoji.held_out)
    n = min(args.batch, len(seen))
    still = [any(word in emoji.labels[i] for word in DIRECTIONAL) or emoji.groups[i] == "symbols" for i in seen]

    image_of = torch.from_numpy(drawings_of(emoji, seen)).to(device)  # (C, S)
    raw = torch.from_numpy(np.concatenate([emoji.images, emoji.alphas[..., None]], -1)).permute(0, 3, 1, 2)
    raw = raw.contiguous().to(device)  # (N, 4, 64, 64) uint8
    ids_of = captions(emoji, names, tokenizer, args.seed)[torch.from_numpy(seen)].to(device)
    may_flip = ~torch.tensor(still, device=device)
    overlap = word_overlap(emoji)[torch.from_numpy(seen)][:, torch.from_numpy(seen)].to(device)
    trained = Trained([model], device, decay=args.ema, weight_decay=args.weight_decay)

    def both_ways(logits: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))

    def loss_of(picked: Tensor, ids: Tensor, near: Tensor, flip: Tensor, r: Tensor, e: Tensor) -> Tensor:
        """picked: (2n, 4, 64, 64), ids: (n, L), near: (n, n) cosines of words."""
        with torch.no_grad():
            x = augment(picked, r, e, flip.repeat(2))
            target = (1 - args.soft) * torch.eye(n, device=x.device) + args.soft * (near / 0.1).softmax(dim=1)
        with bf16(device):
            image, text = model.encode_image(x), model.encode_text(ids)
        image, text = F.normalize(image.float(), dim=1), F.normalize(text.float(), dim=1)
        one, two = image[:n], image[n:]
        scale = model.logit_scale.clamp(max=math.log(100)).exp()
        match = both_ways(scale * text @ one.T, target) + both_ways(scale * text @ two.T, target)
        return 0.5 * match + args.views * both_ways(scale * one @ two.T, target)

    def build(wrap: Wrap, generator: torch.Generator) -> Step:
        fast = wrap(loss_of)

        def step() -> None:
            c = torch.rand(len(seen), device=device, generator=generator).argsort()[:n]
            slots = torch.rand(n, image_of.shape[1], device=device, generator=generator).argsort(dim=1)
            variant = torch.randint(CAPTION_VARIANTS, (n,), device=device, generator=generator)
            picked = raw[torch.cat([image_of[c, slots[:, 0]], image_of[c, slots[:, 1]]])]
            r = torch.rand(2 * n, RANDOMS, device=device, generator=generator)
            e = torch.randn(2 * n, 3, 64, 64, device=device, generator=generator)
            trained.update(fast(picked, ids_of[c, variant], overlap[c][:, c], may_flip[c], r, e))

        return step

    def keep() -> None:
        with trained.averaged():
            save(model, tokenizer, config, args.out)

    step = prepare(build, device, args.compile, args.seed)
    return run(trained, step, args.steps, args.seconds / 60, args.lr, "judge", keep=keep), trained


def report(model: CLIP, tokenizer: data.CLIPTokenizer, emoji: data.Emoji, name: str) -> None:
    """Retrieval in one line."""
    scores = retrieval(model, lambda texts: data.token_ids(tokenizer, texts), emoji)
    print(f"  {name}: {json.dumps(scores)}", flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=data.JUDGE_PACKED)
    parser.add_argument("--reference", type=Path, default=data.PACKED, help="the model's own styles, to measure on")
    parser.add_argument("--out", type=Path, default=data.JUDGE, help="folder of the finished model")
    parser.add_argument("--tower", choices=TOWERS, default="convnext")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end sooner where steps are slow")
    parser.add_argument("--batch", type=int, default=512, help="concepts a step, two drawings of each")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.5)
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--embed", type=int, default=160)
    parser.add_argument("--text-width", type=int, default=160)
    parser.add_argument("--text-layers", type=int, default=3)
    parser.add_argument("--soft", type=float, default=0.4, help="part of the target that word overlap gives")
    parser.add_argument("--views", type=float, default=1.0, help="weight of the two drawings' agreement")
    parser.add_argument("--compile", default="default", help="torch.compile's mode, or none")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--smoke", action="store_true", help="seconds on a CPU")
    args = parser.parse_args()
    if args.smoke:
        args.seconds, args.batch = 8.0, 16
    return args


def main() -> None:
    """Train, save, measure."""
    args, start = parse(), time.monotonic()
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    emoji, names = data.load(args.data), load_names(args.data)
    known = [i for i in range(len(emoji.labels)) if not emoji.held_out[i]]
    texts = [" ".join([*names[i], *emoji.keywords[i]]) for i in known] + list(STYLE_NAMES) * 50
    tokenizer = data.train_tokenizer(texts, VOCAB, CONTEXT)
    config = model_config(args, len(tokenizer))
    model = CLIP(**config).to(device).train()
    sizes = {k: sum(p.numel() for p in m.parameters()) for k, m in (("all", model), ("images", model.visual))}
    print(f"  parameters: {sizes}", flush=True)
    steps, trained = train(model, emoji, names, tokenizer, args, config)
    trained.use_ema()
    model.eval()
    save(model, tokenizer, config, args.out)
    minutes = (time.monotonic() - start) / 60
    print(f"  {steps} steps, {minutes:.1f} minutes in all, wrote {args.out}", flush=True)
    report(model, tokenizer, emoji, "its own styles")
    report(model, tokenizer, data.load(args.reference), "the styles of the model that it judges")
    facts = {"steps": steps, "batch": args.batch, "minutes": minutes, "device": data.device_name(device)}
    data.record("emoji-judge", **facts)
    (args.out / "training.json").write_text(json.dumps(facts | {"seed": args.seed, "tower": args.tower}) + "\n")


if __name__ == "__main__":
    main()
