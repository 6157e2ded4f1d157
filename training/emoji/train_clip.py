"""Train "emoji-clip", a CLIP of the emoji world, from scratch on the same captioned images.

    s_ij = e^tau <text_i, image_j>,    cross-entropy both ways against  (1 - a) [i = j] + a word overlap_ij

Two drawings of a concept are pulled together as well (images only), a linear head names the concept's
subgroup, and a caption must prefer a clean drawing to a degraded copy of it: blurred, over-saturated, blended
with another, noisy. 200 concepts are never seen; evaluate.py measures retrieval on them.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor

from training.emoji import data
from training.emoji.evaluate import retrieval
from training.emoji.loop import Step, Trained, Wrap, bf16, prepare, run

CONTEXT, VOCAB = 20, 4096
CAPTION_VARIANTS = 48
DEGRADED_PART = 4  # one image in four also gets a degraded copy
RANDOMS = 24  # uniform numbers that one augmented image takes
DIRECTIONAL = ("left", "right", "clock", "north", "south", "east", "west", "arrow", "-thirty", "o'clock")


def model_config(args: argparse.Namespace, vocab_size: int) -> dict:
    """open_clip's `model_cfg`: a residual network and a small text transformer."""
    return {
        "embed_dim": args.embed,
        "vision_cfg": {"image_size": 64, "layers": args.layers, "width": args.width, "head_width": 64},
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": vocab_size,
            "hf_tokenizer_name": "emoji-clip",  # open_clip reads it from the model's own folder
            "width": args.text_width,
            "heads": 4,
            "layers": args.text_layers,
        },
    }


def word_overlap(emoji: data.Emoji) -> Tensor:  # (C, C)
    """Cosines between concepts' bags of words; rare words and the label's own words weigh more."""
    bags = [
        label.split() * 2 + " ".join(keys).split() for label, keys in zip(emoji.labels, emoji.keywords, strict=True)
    ]
    words = {w: i for i, w in enumerate(dict.fromkeys(w for bag in bags for w in bag))}
    counts = np.zeros((len(bags), len(words)), np.float32)
    for row, bag in enumerate(bags):
        for word in bag:
            counts[row, words[word]] += 1
    idf = np.log(len(bags) / (counts > 0).sum(0))
    vectors = torch.from_numpy(np.minimum(counts, 2) * idf.astype(np.float32))
    vectors = F.normalize(vectors, dim=1)
    return vectors @ vectors.T


def augment(raw: Tensor, r: Tensor, noise: Tensor, may_flip: Tensor) -> Tensor:
    """uint8 drawings with alpha (B, 4, 64, 64), moved, recoloured a little, on a background: (B, 3, 64, 64).

    r: (B, RANDOMS) uniform, noise: (B, 3, 64, 64) normal, may_flip: (B,) bool; the result lies in [-1, 1].
    """
    signed = 2 * r - 1
    angle, size = 0.25 * signed[:, 0], torch.exp(0.3 * signed[:, 1])
    flip = torch.where(may_flip & (r[:, 5] < 0.5), -1.0, 1.0)
    sx, sy = torch.exp(0.12 * signed[:, 2]) / size, torch.exp(-0.12 * signed[:, 2]) / size
    theta = torch.stack(
        [
            *(flip * sx * angle.cos(), -sy * angle.sin(), 0.2 * signed[:, 3]),
            *(flip * sx * angle.sin(), sy * angle.cos(), 0.2 * signed[:, 4]),
        ],
        dim=1,
    ).view(-1, 2, 3)
    ink = raw.float() / 255
    ink = torch.cat([1 - ink[:, :3], ink[:, 3:]], dim=1)  # zero is white paper, so padding with zeros is harmless
    ink = F.grid_sample(ink, F.affine_grid(theta, list(ink.shape), align_corners=False), align_corners=False)
    x, alpha = 1 - ink[:, :3], ink[:, 3:]

    def column(i: int, n: int = 1) -> Tensor:
        return r[:, i : i + n].view(-1, n, 1, 1)

    x = x + (column(9) < 0.3) * (1 - alpha) * (column(6, 3) - 1)
    grey = x.mean(dim=1, keepdim=True)
    x = grey + (0.7 + 0.6 * column(10)) * (x - grey)
    x = 0.5 + (0.8 + 0.4 * column(11)) * (x - 0.5) + 0.2 * (column(12) - 0.5)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, soft, (column(13) < 0.3) * column(14))
    x = x + (column(15) < 0.3) * 0.08 * column(16) * noise
    axis = torch.linspace(-1, 1, x.shape[-1], device=x.device)
    wide = (axis - signed[:, 17:18]).abs() < 0.15 + 0.25 * r[:, 18:19]  # (B, 64)
    high = (axis - signed[:, 19:20]).abs() < 0.15 + 0.25 * r[:, 20:21]
    erased = (column(21) < 0.3) & high[:, None, :, None] & wide[:, None, None, :]
    return torch.where(erased, column(22), x).mul(2).sub(1).clamp(-1, 1)


def degrade(x: Tensor, other: Tensor, r: Tensor, noise: Tensor) -> Tensor:
    """Each image spoiled in one of four ways, chosen and dosed by r: (B, 2) uniform."""
    kind, dose = (4 * r[:, 0]).floor().view(-1, 1, 1, 1), r[:, 1].view(-1, 1, 1, 1)
    side = x.shape[-1]
    coarse = [F.interpolate(F.avg_pool2d(x, k), side, mode="bilinear", align_corners=False) for k in (4, 8)]
    grey = x.mean(dim=1, keepdim=True)
    spoiled = [
        torch.lerp(*coarse, dose),
        ((grey + (1.5 + 2 * dose) * (x - grey)) * (1.5 + 2 * dose)).clamp(-1, 1),
        torch.lerp(x, other, 0.35 + 0.3 * dose),
        (x + (0.3 + 0.4 * dose) * noise).clamp(-1, 1),
    ]
    return sum(torch.where(kind == i, y, 0.0) for i, y in enumerate(spoiled))


def train(
    model: CLIP, emoji: data.Emoji, tokenizer: data.CLIPTokenizer, args: argparse.Namespace
) -> tuple[int, Trained]:
    """Fit the model to the concepts that are not held out."""
    device, n = next(model.parameters()).device, args.batch
    seen = np.flatnonzero(~emoji.held_out)
    rows = np.full((len(emoji.labels), len(emoji.styles)), -1)
    rows[emoji.concept, emoji.style] = np.arange(len(emoji.concept))
    rows = np.where(rows < 0, rows[:, :1], rows)[seen]  # a missing style is replaced by the first
    flips = [not any(word in emoji.labels[i] for word in DIRECTIONAL) and emoji.groups[i] != "symbols" for i in seen]
    subgroups = {name: i for i, name in enumerate(sorted(set(emoji.subgroups)))}

    image_of = torch.from_numpy(rows).to(device)  # (C, S)
    raw = torch.from_numpy(np.concatenate([emoji.images, emoji.alphas[..., None]], -1)).permute(0, 3, 1, 2)
    raw = raw.contiguous().to(device)  # (N, 4, 64, 64) uint8
    captions = data.caption_table(emoji, tokenizer, CAPTION_VARIANTS, args.seed)[torch.from_numpy(seen)].to(device)
    may_flip = torch.tensor(flips, device=device)
    subgroup = torch.tensor([subgroups[emoji.subgroups[i]] for i in seen], device=device)
    overlap = word_overlap(emoji)[torch.from_numpy(seen)][:, torch.from_numpy(seen)].to(device)
    head = torch.nn.Linear(args.embed, len(subgroups)).to(device)
    trained = Trained([model, head], device, decay=args.ema, weight_decay=args.weight_decay)

    def both_ways(logits: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))

    def loss_of(picked: Tensor, ids: Tensor, near: Tensor, group: Tensor, flip: Tensor, r: Tensor, e: Tensor) -> Tensor:
        """picked: (2n, 4, 64, 64), ids: (n, L), near: (n, n) cosines of words, group: (n,)."""
        with torch.no_grad():
            clean = augment(picked, r, e, flip.repeat(2))
            part = n // DEGRADED_PART
            spoiled = degrade(clean[:part], clean[part : 2 * part], r[:part, -2:], e[:part])
            x = torch.cat([clean, spoiled]).contiguous(memory_format=torch.channels_last)
            target = (1 - args.soft) * torch.eye(n, device=x.device) + args.soft * (near / 0.1).softmax(dim=1)
        with bf16(device):
            image, text = model.encode_image(x), model.encode_text(ids)
        image, text = F.normalize(image.float(), dim=1), F.normalize(text.float(), dim=1)
        one, two, bad = image[:n], image[n : 2 * n], image[2 * n :]
        scale = model.logit_scale.clamp(max=math.log(100)).exp()
        match = both_ways(scale * text @ one.T, target) + both_ways(scale * text @ two.T, target)
        views = both_ways(scale * one @ two.T, target)
        groups = sum(F.cross_entropy(head(16 * z), group, label_smoothing=0.1) for z in (one, two, text))
        worse = ((bad - one[: len(bad)]) * text[: len(bad)]).sum(dim=1)
        return 0.5 * match + args.views * views + args.groups * groups + args.clean * F.softplus(10 * worse + 1).mean()

    def build(wrap: Wrap, generator: torch.Generator) -> Step:
        fast = wrap(loss_of)

        def step() -> None:
            c = torch.rand(len(seen), device=device, generator=generator).argsort()[:n]
            styles = torch.rand(n, len(emoji.styles), device=device, generator=generator).argsort(dim=1)
            variant = torch.randint(CAPTION_VARIANTS, (n,), device=device, generator=generator)
            picked = raw[torch.cat([image_of[c, styles[:, 0]], image_of[c, styles[:, 1]]])]
            r = torch.rand(2 * n, RANDOMS, device=device, generator=generator)
            e = torch.randn(2 * n, 3, 64, 64, device=device, generator=generator)
            ids = captions[c, styles[:, 0], variant]
            trained.update(fast(picked, ids, overlap[c][:, c], subgroup[c], may_flip[c], r, e))

        return step

    step = prepare(build, device, args.compile, args.seed)
    return run(trained, step, args.steps, args.minutes, args.lr, "clip"), trained


def save(model: CLIP, tokenizer: data.CLIPTokenizer, config: dict, folder: Path) -> None:
    """The layout that open_clip calls `local-dir:`, weights in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {
        "size": 64,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2) + "\n"
    (folder / "open_clip_config.json").write_text(text)
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, folder / "open_clip_model.safetensors")
    tokenizer.save_pretrained(folder)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=data.PACKED)
    parser.add_argument("--out", type=Path, default=data.CLIP, help="folder of the finished model")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end sooner where steps are slow")
    parser.add_argument("--batch", type=int, default=512, help="concepts a step, two drawings of each")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=1.0)
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--embed", type=int, default=128)
    parser.add_argument("--width", type=int, default=28)
    parser.add_argument("--layers", type=int, nargs=4, default=[1, 1, 2, 1])
    parser.add_argument("--text-width", type=int, default=128)
    parser.add_argument("--text-layers", type=int, default=2)
    parser.add_argument("--soft", type=float, default=0.5, help="part of the target that word overlap gives")
    parser.add_argument("--views", type=float, default=1.0, help="weight of the two drawings' agreement")
    parser.add_argument("--groups", type=float, default=0.3, help="weight of naming the subgroup")
    parser.add_argument("--clean", type=float, default=0.6, help="weight of preferring clean to degraded drawings")
    parser.add_argument("--compile", default="default", help="torch.compile's mode, or none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="seconds on a CPU")
    args = parser.parse_args()
    if args.smoke:
        args.minutes, args.batch = 0.1, 16
    return args


def main() -> None:
    """Train, save, measure."""
    args, start = parse(), time.monotonic()
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    emoji = data.load(args.data)
    known = [i for i in range(len(emoji.labels)) if not emoji.held_out[i]]
    texts = [" ".join([emoji.labels[i], *emoji.keywords[i]]) for i in known] + emoji.styles * 50
    tokenizer = data.train_tokenizer(texts, VOCAB, CONTEXT)
    config = model_config(args, len(tokenizer))
    model = CLIP(**config).to(device, memory_format=torch.channels_last).train()
    sizes = {k: sum(p.numel() for p in m.parameters()) for k, m in (("all", model), ("images", model.visual))}
    print(f"  parameters: {sizes}", flush=True)
    steps, trained = train(model, emoji, tokenizer, args)
    for name in ("last", "averaged"):
        if name == "averaged":
            trained.use_ema()
        model.eval()
        scores = retrieval(model, lambda texts: data.token_ids(tokenizer, texts), emoji)
        print(f"  {name} weights: {json.dumps(scores)}", flush=True)
    save(model, tokenizer, config, args.out)
    minutes = (time.monotonic() - start) / 60
    print(f"  {steps} steps, {minutes:.1f} minutes in all, wrote {args.out}", flush=True)
    data.record("emoji-clip", steps=steps, batch=args.batch, minutes=minutes, device=data.device_name(device))


if __name__ == "__main__":
    main()
