"""Write the two models' cards from what was measured: README.md and the prompt grid, beside the weights."""

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


def main() -> None:
    """Write README.md into both folders, and the grid beside the pipeline's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", type=Path, default=data.PIPELINE)
    parser.add_argument("--clip", type=Path, default=data.CLIP)
    parser.add_argument("--evaluation", type=Path, default=data.EVALUATION, help="the folder that evaluate.py wrote")
    args = parser.parse_args()
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
