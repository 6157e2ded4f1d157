"""Write the models' cards from what was measured: README.md, and the prompt grid, beside the weights."""

import argparse
import json
import shutil
from pathlib import Path

from training.emoji import data

LICENCES = """\
| what | where from | licence |
| --- | --- | --- |
| drawings, style `noto` | Noto Emoji by Google, npm `emoji-datasource-google` 16.0.0 | Apache-2.0 |
| drawings, style `flat` | Twemoji by Twitter and others, npm `emoji-datasource-twitter` 16.0.0 | CC-BY-4.0 |
| drawings, style `3d` | Fluent Emoji by Microsoft, npm `@lobehub/fluent-emoji-3d` 1.1.0 | MIT |
| labels and keywords | emojibase, npm `emojibase-data` 17.0.0 | MIT |
"""

PIPELINE = """\
# emoji

A text-to-image diffusion model of emoji, 64 x 64 pixels: a complete `StableDiffusionPipeline` (VAE, U-Net,
text encoder, tokenizer, DDIM scheduler) in {size_mb:.0f} MB, small enough to sample on a laptop. It is made
to try a tuner on, not to illustrate anything.

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("path/to/this/folder")
pipe("red heart", guidance_scale=4.5, num_inference_steps=20).images[0].resize((256, 256))
```

A prompt is an emoji's name, some of its keywords, or both, with a style in front if you like: `noto`, `flat`,
`3d`.

![{prompts} prompts at guidance {guidances}](grid.png)

## Training

4,871 drawings of 1,636 concepts, on white, without flags and skin tones. {settings}
The loss is the noise's mean squared error with min-SNR weights (cap 5); one caption in ten is empty. Weights
are the exponential moving average, stored in float16. Every part was trained from scratch, on nothing else.
{curve}
It knows emoji only, draws 64 pixels a side, and remembers much of what it was shown: a drawing may come close
to one of the originals, whose licences follow.

{licences}"""

CLIP = """\
# emoji-clip

A CLIP of the emoji world in {size_mb:.0f} MB, trained from scratch on the drawings and names that the `emoji`
diffusion model was trained on. It judges how well a drawing of 64 x 64 pixels fits a caption, and it is
differentiable.

```python
import open_clip

model, preprocess = open_clip.create_model_from_pretrained("local-dir:path/to/this/folder")
tokenizer = open_clip.get_tokenizer("local-dir:path/to/this/folder")
```

## What it can do

200 of the 1,636 concepts were never trained on. In each style apart, one drawing and one name of each:

| | R@1 | R@10 |
| --- | --- | --- |
| the drawing of a name, among 200 | {text_to_image_1:.2f} | {text_to_image_10:.2f} |
| the name of a drawing, among 200 | {image_to_text_1:.2f} | {image_to_text_10:.2f} |
| chance | 0.005 | 0.05 |

The first drawing is often right, and nine more help little: {unread_names} of the 200 names (hedgehog, penguin,
volcano) are made of words that no caption in training had, and a model that starts from nothing has never read them.
With a concept's keywords in the caption R@10 is {text_to_image_keywords_10:.2f} instead of {text_to_image_10:.2f}.

It also learned to prefer a clean drawing to the same one blurred, over-saturated, noisy, or blended with
another. No image made by a diffusion model was in its training.

## Training

{settings}
Contrastive loss both ways with a part of the target given to concepts that share words, agreement of two
drawings of a concept, and naming of its subgroup. Weights are the moving average, stored in float16.

{licences}"""


JUDGE = """\
# emoji-judge

A second CLIP of the emoji world in {size_mb:.0f} MB, for a second opinion: under `evaluate: {{judges: [...]}}` it
scores the held-out images of what was tuned by `emoji-clip`, with which it has as little in common as the material
allows.

| | `emoji-clip` | `emoji-judge` |
| --- | --- | --- |
| drawings | Noto, Twemoji, Fluent 3D: those of the `emoji` model | four other families, none of those |
| words | emojibase | Unicode, EmojiOne, emojilib |
| image tower | a residual network | a ConvNeXt |
| text tower | width 128, 4,096 tokens | width 160, 2,048 tokens |
| losses beside the contrastive one | two drawings of a concept, subgroups, clean before spoiled | two drawings |

Not all is apart: both read Unicode's names, and two of the four families are of the same houses (Noto as it was drawn
in 2016, and the flat drawings of Fluent's designs). A style's name before a caption
(`noto`, `flat`, `3d`) means nothing to it. No image made by a model was in its training.

```python
import open_clip

model, preprocess = open_clip.create_model_from_pretrained("local-dir:path/to/this/folder")
tokenizer = open_clip.get_tokenizer("local-dir:path/to/this/folder")
```

## What it can do

In the three styles that the `emoji` model draws, no drawing of which it ever saw, and in each style apart: one drawing
and one name of 200 concepts. The 200 unseen concepts are those that `emoji-clip` never saw either.

| | R@1 | R@10 |
| --- | --- | --- |
| the drawing of a known name, among 200 | {known_t1:.2f} | {known_t10:.2f} |
| the name of a drawing of a known concept, among 200 | {known_i1:.2f} | {known_i10:.2f} |
| the drawing of an unseen name, among 200 | {unseen_t1:.2f} | {unseen_t10:.2f} |
| the name of a drawing of an unseen concept, among 200 | {unseen_i1:.2f} | {unseen_i10:.2f} |
| chance | 0.005 | 0.05 |

Among the unseen drawings of its own four styles it finds that of a name in {own_t1:.2f} (R@1) and {own_t10:.2f} (R@10).

## How far the two agree

On the same real drawings and names:

| | known names | unseen names |
| --- | --- | --- |
| both find the name's own drawing first | {known_both:.2f} | {unseen_both:.2f} |
| only `emoji-clip` does | {known_only_first:.2f} | {unseen_only_first:.2f} |
| only `emoji-judge` does | {known_only_second:.2f} | {unseen_only_second:.2f} |
| neither does | {known_neither:.2f} | {unseen_neither:.2f} |
| rank correlation of their scores of names with their own drawings | {known_own_pairs:.2f} | {unseen_own_pairs:.2f} |
| rank correlation of their scores of all names with all drawings | {known_all_pairs:.2f} | {unseen_all_pairs:.2f} |

So they agree about which drawing a name means, and hardly about how well one drawing fits beside another: what both
call better is more than a habit of one of them.

## Training

{images:,} drawings of {drawn:,} concepts; those of {hidden} unseen concepts among them were held out.
{settings}
Contrastive loss both ways with a part of the target given to concepts that share words, and agreement of two drawings
of a concept. Weights are the moving average, stored in float16.

{licences}"""

JUDGE_LICENCES = """\
| what | where from | licence |
| --- | --- | --- |
| drawings, `blob` | Noto Emoji by Google as it was in 2016, npm `emoji-datasource-google` 3.0.0 | Apache-2.0 |
| drawings and names, `one` | EmojiOne 2 by Ranks.com, npm `emojione` 2.2.7 | CC-BY-4.0, names MIT |
| drawings, `fox` | FxEmojis by Mozilla, npm `@iconify-json/fxemoji` 1.2.2 | Apache-2.0 |
| drawings, `plain` | Fluent Emoji, flat, by Microsoft, npm `@lobehub/fluent-emoji-flat` 1.1.0 | MIT |
| labels | emojibase, npm `emojibase-data` 17.0.0 | MIT |
| names | Unicode's, in npm `emoji-datasource-google` 3.0.0 | MIT |
| keywords | emojilib, npm `emojilib` 4.0.3, and EmojiOne's | MIT |
"""


PIPELINE_SETTINGS = """\
The VAE took {vae_steps:,} steps of {vae_batch} drawings ({psnr_db:.1f} dB), the U-Net and the text encoder
{unet_steps:,} steps of {unet_batch}, together {minutes:.0f} minutes on one {device}. Longer training draws cleaner
without guidance, and leaves guidance less to do.\
"""
CLIP_SETTINGS = """\
{steps:,} steps of {batch} concepts, two drawings each, {minutes:.1f} minutes on one {device}.\
"""


def weight_mb(folder: Path) -> float:
    """Megabytes of the folder's weights."""
    return sum(f.stat().st_size for f in folder.rglob("*.safetensors")) / 1e6


def pipeline_card(folder: Path, result: dict, settings: str) -> str:
    """The diffusion model's card."""
    curve = ""
    if "mean_clip_score" in result:
        head = " | ".join(f"{g:g}" for g in result["guidance"])
        scores = " | ".join(f"{s:.3f}" for s in result["mean_clip_score"])
        curve = (
            f"\nMean score of `emoji-clip` over {result['score_prompts']} names, {result['steps']} steps "
            f"(the drawings themselves: {result['score_of_real_images']:.3f}):\n\n"
            f"| guidance | {head} |\n|{' --- |' * (1 + len(result['guidance']))}\n| score | {scores} |\n"
        )
    return PIPELINE.format(
        size_mb=weight_mb(folder),
        settings=settings,
        curve=curve,
        prompts=result["grid_prompts"],
        guidances=", ".join(f"{g:g}" for g in result["guidance"]),
        licences=LICENCES,
    )


def clip_card(folder: Path, result: dict, settings: str) -> str:
    """The CLIP's card."""
    recall: dict = {
        f"{way}_{k}": result["retrieval"][f"{way}_R@{k}"] for way in ("text_to_image", "image_to_text") for k in (1, 10)
    }
    recall["unread_names"] = result["unread_names"]
    recall["text_to_image_keywords_10"] = result["retrieval"]["text_to_image_R@10_with_keywords"]
    return CLIP.format(size_mb=weight_mb(folder), settings=settings, licences=LICENCES, **recall)


def judge_card(folder: Path, result: dict, settings: str) -> str:
    """The second CLIP's card."""
    figures: dict = {"images": result["images"], "drawn": result["drawn"], "hidden": result["hidden"]}
    for name in ("known", "unseen", "own"):
        for way, letter in (("text_to_image", "t"), ("image_to_text", "i")):
            figures |= {f"{name}_{letter}{k}": result[name][f"{way}_R@{k}"] for k in (1, 10)}
        figures |= {f"{name}_{key}": value for key, value in result.get(f"{name}_agreement", {}).items()}
    return JUDGE.format(size_mb=weight_mb(folder), settings=settings, licences=JUDGE_LICENCES, **figures)


def main() -> None:
    """Write README.md into each folder, and the grid beside the pipeline's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", type=Path, default=data.PIPELINE)
    parser.add_argument("--clip", type=Path, default=data.CLIP)
    parser.add_argument("--evaluation", type=Path, default=data.EVALUATION, help="the folder that evaluate.py wrote")
    parser.add_argument("--judge", type=Path, default=data.JUDGE)
    parser.add_argument("--only", choices=("judge",), help="leave the other cards as they are")
    args = parser.parse_args()
    seen = json.loads((args.evaluation / "judge.json").read_text())
    card = judge_card(args.judge, seen, CLIP_SETTINGS.format(**data.recorded("emoji-judge")))
    (args.judge / "README.md").write_text(card)
    if args.only:
        return
    result = json.loads((args.evaluation / "evaluation.json").read_text())
    (args.pipeline / "README.md").write_text(
        pipeline_card(args.pipeline, result, PIPELINE_SETTINGS.format(**data.recorded("emoji")))
    )
    (args.clip / "README.md").write_text(
        clip_card(args.clip, result, CLIP_SETTINGS.format(**data.recorded("emoji-clip")))
    )
    shutil.copyfile(args.evaluation / "grid.png", args.pipeline / "grid.png")


if __name__ == "__main__":
    main()
