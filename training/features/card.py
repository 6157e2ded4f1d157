"""The card of a small classifier: what it is, what it measures, where it comes from."""

from __future__ import annotations

from collections.abc import Mapping

SOURCES = {
    "fashion-features": (
        "Fashion-MNIST (28 x 28, ten kinds of clothing)",
        "Fashion-MNIST by Zalando Research, Debian package `dataset-fashion-mnist`",
        "MIT",
        "/usr/share/datasets/fashion-mnist",
    ),
    "digits-features": (
        "the handwritten digits of scikit-learn (8 x 8)",
        "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, as in scikit-learn",
        "CC-BY-4.0, and BSD-3-Clause as in scikit-learn",
        "digits",
    ),
}


def card(
    name: str,
    counts: Mapping[str, int],
    correct: Mapping[str, float],
    measured: Mapping[str, Mapping[str, float]],
    epochs: int,
    shift: int,
    seconds: float,
) -> str:
    """The text of README.md."""
    images, source, licence, data = SOURCES.get(name, (name, name, "that of the images", name))
    rows = "\n".join(f"| {what} | {d['fid']:.2f} | {d['kid']:.3f} |" for what, d in measured.items())
    half = counts["test"] // 2
    moved = f"images moved by up to {shift} pixel; " if shift else ""
    return f"""# {name}

Features of {images}: 64 numbers an image,
from a classifier of two convolutions. They are what `fid`, `kid` and `mmd` compare such images in, where the features
of a large network of photographs say less.

| | images | correct |
| --- | --- | --- |
| train | {counts["train"]:,} | {correct["train"]:.1%} |
| validation | {counts["validation"]:,} | {correct["validation"]:.1%} |
| test | {counts["test"]:,} | {correct["test"]:.1%} |

## What it measures

One half of the test images ({half:,}) against the other half, as they are and with Gaussian noise (standard
deviation of pixels in [0, 1], clipped):

| half of the test images | `fid` | `kid` |
| --- | --- | --- |
{rows}

The scale is this network's own: its values compare with each other, and with no other network's. `fid` leans
upwards at a finite number of samples, which is what the first row shows; `kid` does not.

## Training

{epochs} epochs of 128 images, AdamW and one cycle of the learning rate, {moved}{seconds:.0f} seconds of
processor time on one core. This makes it again:

    python -m training.features.train_classifier --data {data}

| what | where from | licence |
| --- | --- | --- |
| images and labels | {source} | {licence} |
"""
