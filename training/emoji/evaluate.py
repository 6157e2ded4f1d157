"""What the models can do: a grid of pictures, retrieval on unseen concepts, CLIP score against guidance."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from training.emoji import data

GUIDANCES = (1.0, 2.0, 3.0, 4.5, 6.0, 10.0)
PROMPTS = (
    "red heart",
    "house",
    "3d cat face",
    "rocket",
    "flat red apple",
    "smiling face with sunglasses",
    "noto tree",
    "automobile",
    "snowman",
    "3d birthday cake",
)
Tokenize = Callable[[list[str]], Tensor]


@torch.no_grad()
def retrieval(
    model: torch.nn.Module, tokenize: Tokenize, emoji: data.Emoji, concepts: np.ndarray | None = None
) -> dict[str, float]:
    """Recall at 1 and 10 over the held-out concepts, chance 1/200 and 10/200, or over those given by number.

    In each style apart: one drawing and one label a concept. `text_to_image`: the label's own drawing is
    among the k nearest of all drawings; `image_to_text`: the drawing's own label is among the k nearest of
    all labels. Both are means over the styles. `with_keywords` does the same with the keywords after the
    label.
    """
    device = next(model.parameters()).device
    hidden = np.flatnonzero(emoji.held_out) if concepts is None else concepts
    plain = [emoji.labels[i] for i in hidden]
    texts = {"": plain, "_with_keywords": [" ".join([emoji.labels[i], *emoji.keywords[i]]) for i in hidden]}
    text = {k: F.normalize(model.encode_text(tokenize(v).to(device)).float(), dim=1) for k, v in texts.items()}
    found: dict[str, list[float]] = {}
    for style in range(len(emoji.styles)):
        row = {c: i for i, c in enumerate(emoji.concept) if emoji.style[i] == style}
        own = [j for j, c in enumerate(hidden) if c in row]
        x = data.pixels(emoji.images[[row[hidden[j]] for j in own]]).to(device)
        image = F.normalize(model.encode_image(x).float(), dim=1)
        for suffix, vectors in text.items():
            similarity = vectors[own] @ image.T  # (texts, images)
            if not similarity.isfinite().all():
                raise FloatingPointError("the CLIP gives values that are not finite")
            for name, s in (("text_to_image", similarity), ("image_to_text", similarity.T)):
                rank = (s >= s.diagonal()[:, None]).sum(dim=1) - 1  # a tie counts as a miss
                for k in (1, 10):
                    found.setdefault(f"{name}_R@{k}{suffix}", []).append((rank < k).float().mean().item())
    return {k: round(sum(v) / len(v), 4) for k, v in found.items()}


def sample(pipe, prompts: list[str], guidance: float, steps: int, seed: int, batch: int = 128) -> Tensor:
    """One image a prompt, (N, 3, 64, 64) in [0, 1]; the n-th starts from the same noise at any guidance."""
    images = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        generators = [torch.Generator("cpu").manual_seed(seed + start + i) for i in range(len(part))]
        out = pipe(part, guidance_scale=guidance, num_inference_steps=steps, generator=generators, output_type="pt")
        images.append(out.images.float().cpu())
    return torch.cat(images)


def draw_grid(rows: list[list[Tensor]], names: list[str], heads: list[str]) -> Image.Image:
    """Images (3, 64, 64) in a table, a prompt a row and a guidance a column."""
    side, left, top = 64, 170, 16
    sheet = Image.new("RGB", (left + side * len(heads), top + side * len(names)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        pen.text((left + side * column + 20, 2), head, fill="black")
    for row, (name, images) in enumerate(zip(names, rows, strict=True)):
        pen.text((4, top + side * row + 26), name, fill="black")
        for column, image in enumerate(images):
            pixels = image.mul(255).round().byte().permute(1, 2, 0).numpy()
            sheet.paste(Image.fromarray(pixels), (left + side * column, top + side * row))
    return sheet


def load_pipeline(folder: Path, device: torch.device, scheduler: str):
    """The pipeline in float32, silent; `scheduler` is ddim (its own) or dpm."""
    from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler

    pipe = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True).to(device)
    if scheduler == "dpm":
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_clip(folder: Path, device: torch.device) -> tuple[torch.nn.Module, Tokenize]:
    """Model and tokenizer, as any user of open_clip loads them."""
    import open_clip

    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    return model.to(device).eval(), open_clip.get_tokenizer(f"local-dir:{folder}")


@torch.no_grad()
def clip_scores(model: torch.nn.Module, tokenize: Tokenize, images: Tensor, prompts: list[str]) -> Tensor:  # (N,)
    """Cosine of each image with its prompt."""
    device = next(model.parameters()).device
    image = F.normalize(model.encode_image(images.to(device) * 2 - 1).float(), dim=1)
    text = F.normalize(model.encode_text(tokenize(prompts).to(device)).float(), dim=1)
    return (image * text).sum(dim=1).cpu()


def unread_names(emoji: data.Emoji) -> int:
    """How many held-out names have no word that stands in a name or keyword in training."""
    words = [[label.split(), " ".join(keys).split()] for label, keys in zip(emoji.labels, emoji.keywords, strict=True)]
    read = {w for pair, out in zip(words, emoji.held_out, strict=True) if not out for part in pair for w in part}
    return sum(bool(out) and not read & set(name) for (name, _), out in zip(words, emoji.held_out, strict=True))


def main() -> None:
    """Write grid.png and evaluation.json into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=data.PACKED)
    parser.add_argument("--pipeline", type=Path, default=data.PIPELINE)
    parser.add_argument("--clip", type=Path, default=data.CLIP)
    parser.add_argument("--out", type=Path, default=data.EVALUATION)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--scheduler", choices=("ddim", "dpm"), default="ddim")
    parser.add_argument("--count", type=int, default=128, help="prompts of the score curve")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args.out.mkdir(parents=True, exist_ok=True)
    emoji = data.load(args.data)
    result: dict = {"steps": args.steps, "scheduler": args.scheduler, "guidance": list(GUIDANCES)}
    result["grid_prompts"] = len(PROMPTS)
    if args.clip:
        model, tokenize = load_clip(args.clip, device)
        result["retrieval"] = retrieval(model, tokenize, emoji)
        result["unread_names"] = unread_names(emoji)
        known = np.flatnonzero(~emoji.held_out)[:: max(1, (~emoji.held_out).sum() // args.count)][: args.count]
        prompts = [emoji.labels[i] for i in known]
        real = {c: i for i, c in enumerate(emoji.concept) if emoji.style[i] == 0}
        drawn = torch.from_numpy(emoji.images[[real[c] for c in known]]).permute(0, 3, 1, 2) / 255
        result["score_prompts"] = len(prompts)
        result["score_of_real_images"] = round(clip_scores(model, tokenize, drawn, prompts).mean().item(), 4)
    if args.pipeline:
        pipe = load_pipeline(args.pipeline, device, args.scheduler)
        columns = [sample(pipe, list(PROMPTS), g, args.steps, args.seed) for g in GUIDANCES]
        rows = [[column[i] for column in columns] for i in range(len(PROMPTS))]
        draw_grid(rows, list(PROMPTS), [f"{g:g}" for g in GUIDANCES]).save(args.out / "grid.png", optimize=True)
    if args.pipeline and args.clip:
        means = [
            clip_scores(model, tokenize, sample(pipe, prompts, g, args.steps, args.seed), prompts).mean().item()
            for g in GUIDANCES
        ]
        result["mean_clip_score"] = [round(m, 4) for m in means]
    (args.out / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
